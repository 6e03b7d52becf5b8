"""The pages about pushed images, docs/provenance.md and docs/retention.md: their shell blocks, with a real registry.

The images have a few bytes. `tests/test_docs.py` runs the blocks of the other pages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from builds.builder.attest import attest
from builds.clients.registry import Registry as Client
from tests.docker.builder.test_provenance import COMMIT, pushed, spec_of
from tests.docker.test_prune import MAIN, Shop
from tests.parts.reader import ROOT, Reader, blocks
from tests.parts.registry import Registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


def test_the_blocks_about_provenance_run(registry: Registry, tmp_path: Path) -> None:
    """The blocks on keys come first: the image is signed with the key that they make."""
    found = [*blocks(ROOT / "docs" / "provenance.md")]
    keys = [block for block in found if not block.mark]
    reader = Reader(tmp_path, names={"registry.example": registry.host}, COMMIT=COMMIT)
    reader.follow(keys)
    image = pushed(registry.host, "org/course-0123456789")
    client = Client(pushes=True)
    client.put(image.repository, "main", *_manifest(client, image.repository, COMMIT))
    spec = spec_of(image, signing_key=str(reader.clone / "cosign.key"))
    attest(client, image, spec, datetime.now(UTC), print)
    said = reader.follow([block for block in found if block.mark])
    assert re.search(r"^  signed +by the key$", said, re.MULTILINE), said
    assert reader.used == {"kiln", "cosign"}


def _manifest(client: Client, name: str, tag: str) -> tuple[str, bytes]:
    manifest = client.manifest(name, tag, body=True)
    assert manifest
    assert manifest.body
    return manifest.media_type, manifest.body


def test_the_blocks_about_retention_run(registry: Registry, tmp_path: Path) -> None:
    """Of five old images of one branch, the rule of the page keeps three."""
    found = [*blocks(ROOT / "docs" / "retention.md")]
    rule = found[0].values
    assert rule
    shop = Shop(tmp_path / "shop", registry.host)
    shop.first("stats")
    digests = [shop.built("stats", number, 50 - number, MAIN) for number in range(1, 6)]
    shop.engine.close()
    (tmp_path / "kiln.yaml").write_text(rule)
    reader = Reader(
        tmp_path,
        KILN_CONFIG=str(tmp_path / "kiln.yaml"),
        KILN_IMAGE_PREFIX=shop.prefix,
        KILN_STATE_DIR=str(tmp_path / "shop" / "state"),
    )
    said = reader.follow(found)
    assert [said.count(digest) for digest in digests] == [3, 3, 1, 1, 1], said
    assert said.count("kiln: 2 images deleted") == 1, said
    assert "kiln: 0 images would be deleted" in said, "the last block is run in the controller's pod"
    assert reader.used == {"kiln", "kubectl"}
