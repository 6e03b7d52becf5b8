"""Provenance in a real registry: attached by the builder, found and checked by `kiln verify`.

Most of it needs an image in a registry only, and no daemon.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from builds.build import Image, Request
from builds.builder.attest import attest
from builds.builder.spec import Spec, Surroundings
from builds.clients.referrers import Artifact, attach, contents, fallback_tag, referrers
from builds.clients.registry import INDEX, MANIFEST, Descriptor, RegistryRefused, digest_of
from builds.clients.registry import Registry as Client
from builds.provenance import Builder as BuiltBy
from builds.provenance import CausingEvent
from kiln.cli import main
from tests.builds.plan_factories import NOW
from tests.docker.builder.conftest import asked
from tests.parts.building import Builder
from tests.parts.githost import GitHost, git
from tests.parts.ociregistry import Answer, Asked, Behaviour, OciProxy, refusal
from tests.parts.registry import Registry

COMMIT = "c" * 40
KINDS = ("application/vnd.in-toto+json", "application/vnd.dsse.envelope.v1+json")


class Referrers(Behaviour):
    """A registry that keeps the list of what belongs to an image itself (Distribution 1.1), two on a page."""

    def __init__(self) -> None:
        self.known: dict[str, dict[str, dict[str, Any]]] = {}

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:  # noqa: ARG002
        path, _, query = asked.target.partition("?")
        if "/referrers/" in path:
            entries = [*self.known.get(path.rpartition("/")[2], {}).values()]
            start = int(query.removeprefix("from=") or 0)
            more = [("Link", f'<{path}?from={start + 2}>; rel="next"')] if len(entries) > start + 2 else []
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries[start : start + 2]}
            return Answer(200, [("Content-Type", INDEX), *more], json.dumps(index).encode())
        if asked.method == "DELETE":
            for entries in self.known.values():  # type: ignore[assignment]
                entries.pop(path.rpartition("/")[2], None)  # type: ignore[call-overload]
        return None

    def after(self, asked: Asked, answer: Answer) -> Answer:
        if asked.method != "PUT" or "/manifests/" not in asked.target or answer.status != 201:
            return answer
        manifest = json.loads(asked.body)
        if subject := manifest.get("subject", {}).get("digest"):
            answer.set("OCI-Subject", subject)
            digest = digest_of(asked.body)
            entry = {name: manifest[name] for name in ("mediaType", "artifactType", "annotations")}
            self.known.setdefault(subject, {})[digest] = {**entry, "digest": digest, "size": len(asked.body)}
        return answer


class NoSubjects(Behaviour):
    """Takes no manifest that has a subject."""

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:  # noqa: ARG002
        return refusal(400, "MANIFEST_INVALID", "unknown field") if b'"subject"' in asked.body else None


class Interfering(Behaviour):
    """Another client writes the list at the same time, from its earlier content: twice, and then never again.

    The first time, the answer is that of registry 2.8, which fails where two clients write a tag at the same time.
    """

    def __init__(self, theirs: dict[str, Any]) -> None:
        self.index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [theirs]}).encode()
        self.left = 2

    def after(self, asked: Asked, answer: Answer) -> Answer:
        if asked.method == "PUT" and "/manifests/sha256-" in asked.target and self.left:
            self.left -= 1
            assert self.oci_proxy.forward(Asked("PUT", asked.target, {"Content-Type": INDEX}, self.index)).status == 201
            return refusal(500, "UNKNOWN", "unknown error") if self.left else answer
        return answer

    oci_proxy: OciProxy


@pytest.fixture(params=["listed by the registry", "listed under a tag"])
def oci_proxy(request: pytest.FixtureRequest, registry: Registry) -> Iterator[OciProxy]:
    with OciProxy(registry, Referrers() if request.param == "listed by the registry" else None) as oci_proxy:
        yield oci_proxy


def pushed(host: str, path: str, content: str = "", client: Client | None = None) -> Image:
    """An image without layers."""
    client, image = client or Client(), f"{host}/{path}"
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Labels": {"content": content}}}).encode()
    client.upload(image, config)
    described = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest_of(config)}
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {**described, "size": len(config)}, "layers": []}
    body = json.dumps(manifest).encode()
    client.put(image, COMMIT, MANIFEST, body)
    return Image(repository=image, tag=COMMIT, digest=digest_of(body))


def spec_of(image: Image, **around: Any) -> Spec:
    url = "https://github.com/our-org/course"
    request = Request(repository=url, clone_url=f"{url}.git", commit=COMMIT, image=image.repository)
    surroundings = Surroundings(builder=BuiltBy(id="https://kiln.example/"), **around)
    events = (CausingEvent(source="https://github.com", id="d-1", type="com.github.push"),)
    return Spec(
        name="build-course-0",
        attempt=1,
        attempt_label="uid.1",
        request=request,
        events=events,
        surroundings=surroundings,
    )


@pytest.fixture
def attested() -> Callable[..., list[str]]:
    """Attaches a statement as the builder does, and returns what it says in its log."""

    def attested(image: Image, **around: Any) -> list[str]:
        said: list[str] = []
        attest(Client(pushes=True), image, spec_of(image, **around), NOW, said.append)
        return said

    return attested


class Keys:
    def __init__(self, folder: Path, name: str) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pub"
        self.private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        self.public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path, "cosign")


def verify(image: str, *options: str) -> tuple[int, str]:
    """Exit status, and all that was printed, by the command in this process."""
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(said), redirect_stderr(said):
        patch.setattr(sys, "argv", ["kiln", "verify", image, *options])
        try:
            main()
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    raise AssertionError


WANTED = ("--repository", "https://github.com/Our-Org/course.git", "--commit", COMMIT)


def test_a_statement_is_found_by_tag_and_by_digest_and_says_what_was_built(
    path: str, oci_proxy: OciProxy, attested: Callable[..., list[str]]
) -> None:
    image = pushed(oci_proxy.host, path)
    assert attested(image) == ["The image has a provenance statement, unsigned."]
    for name in (f"{image.repository}:{COMMIT}", f"{image.repository}@{image.digest}", image.reference):
        status, said = verify(name, *WANTED, "--builder-id", "https://kiln.example/")
        assert status == 0, said
        assert image.digest in said
        assert "com.github.push d-1 https://github.com" in said
        assert "any client with push access to the registry can have written this" in said
    statement = json.loads(verify(image.reference, "--json")[1])
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"


def test_what_does_not_hold_is_refused_with_the_reason(
    path: str, oci_proxy: OciProxy, attested: Callable[..., list[str]], keys: Keys, tmp_path: Path
) -> None:
    image, bare = pushed(oci_proxy.host, path), pushed(oci_proxy.host, f"{path}-bare", "another")
    attested(image, signing_key=str(keys.private))
    assert verify(image.reference, *WANTED, "--key", str(keys.public))[0] == 0
    assert "signed      by the key" in verify(image.reference, "--key", str(keys.public))[1]
    other = Keys(tmp_path, "other")
    for options, words in (
        (["--repository", "https://github.com/our-org/other"], "not https://github.com/our-org/other"),
        (["--commit", "d" * 40], f"The image's commit is {COMMIT}"),
        (["--builder-id", "https://other.example/"], "The image's builder is https://kiln.example/"),
        (["--key", str(other.public)], "does not match this key"),
    ):
        status, said = verify(image.reference, *options)
        assert (status, words in said) == (1, True), said
    status, said = verify(bare.reference)
    assert (status, "no provenance statement" in said) == (1, True)
    envelope = next(content for _, content in contents(Client(), image.repository, image.digest, KINDS))
    subject = Client().manifest(bare.repository, bare.digest, body=True)
    assert subject
    attach(Client(), bare.repository, subject, Artifact(media_type=KINDS[1], content=envelope))
    status, said = verify(bare.reference, "--key", str(keys.public))
    assert (status, "is about another image" in said) == (1, True)
    attested(bare)
    assert "2 provenance statements" in verify(bare.reference)[1]


def test_what_could_not_be_looked_at_has_a_status_of_its_own(path: str, registry: Registry, tmp_path: Path) -> None:
    image = pushed(registry.host, path)
    assert verify(f"127.0.0.1:1/{path}:{COMMIT}")[0] == 3
    assert verify(f"{registry.host}/{path}:gone")[0] == 3
    assert verify(image.reference, "--key", str(tmp_path / "gone"))[0] == 3


def test_another_attempt_that_says_the_same_adds_nothing_and_a_key_replaces_what_was_unsigned(
    path: str, oci_proxy: OciProxy, attested: Callable[..., list[str]], keys: Keys
) -> None:
    image = pushed(oci_proxy.host, path)
    attested(image)
    assert attested(image) == ["The image has this provenance statement already."]
    assert attested(image, signing_key=str(keys.private)) == ["The image has a provenance statement, signed."]
    assert attested(image, signing_key=str(keys.private)) == ["The image has this provenance statement already."]
    [only] = referrers(Client(), image.repository, image.digest)
    assert only.artifact_type == KINDS[1]
    assert verify(image.reference, "--key", str(keys.public))[0] == 0


def test_what_others_have_attached_stays(
    path: str, oci_proxy: OciProxy, attested: Callable[..., list[str]], keys: Keys
) -> None:
    image = pushed(oci_proxy.host, path)
    subject = Client().manifest(image.repository, image.digest, body=True)
    assert subject
    others = [Artifact(media_type="application/spdx+json", content=b"%d" % number) for number in range(3)]
    theirs = [digest_of(attach(Client(), image.repository, subject, one)) for one in others]
    attested(image)
    attested(image, signing_key=str(keys.private))
    found = referrers(Client(), image.repository, image.digest)
    assert {*theirs} < {one.digest for one in found}
    assert len(found) == 4


def test_who_writes_the_list_at_the_same_time_and_we_lose_nothing(path: str, registry: Registry) -> None:
    image = pushed(registry.host, path)
    direct = Client()
    subject = direct.manifest(image.repository, image.digest, body=True)
    assert subject
    theirs = attach(direct, image.repository, subject, Artifact(media_type="text/theirs", content=b"theirs"))
    entry = {"mediaType": MANIFEST, "digest": digest_of(theirs), "size": len(theirs), "more": "kept as it is"}
    behaviour = Interfering(entry)
    with OciProxy(registry, behaviour) as oci_proxy:
        behaviour.oci_proxy = oci_proxy
        ours = attach(
            Client(), image.repository.replace(registry.host, oci_proxy.host), subject,
            Artifact(media_type="text/ours", content=b"ours"),
        )  # fmt: skip
    assert behaviour.left == 0
    found = direct.manifest(image.repository, fallback_tag(image.digest), body=True)
    assert found
    listed = json.loads(found.body or b"")["manifests"]
    assert [one["digest"] for one in listed] == [digest_of(theirs), digest_of(ours)]
    assert listed[0] == entry


def test_a_tag_that_is_something_else_is_left_alone(
    path: str, registry: Registry, attested: Callable[..., list[str]]
) -> None:
    image = pushed(registry.host, path)
    client = Client()
    client.tag(image.repository, image.digest, fallback_tag(image.digest))
    [said] = attested(image)
    assert "is something else" in said
    found = client.manifest(image.repository, fallback_tag(image.digest))
    assert found
    assert found.digest == image.digest


def test_content_that_is_not_what_its_digest_says_is_refused(path: str, registry: Registry) -> None:
    class Forging(Behaviour):
        def after(self, asked: Asked, answer: Answer) -> Answer:
            if asked.method == "GET" and "/blobs/" in asked.target:
                answer.body = answer.body.replace(b"ours", b"mine")
            return answer

    image = pushed(registry.host, path)
    subject = Client().manifest(image.repository, image.digest, body=True)
    assert subject
    attach(Client(), image.repository, subject, Artifact(media_type=KINDS[0], content=b"ours"))
    with OciProxy(registry, Forging()) as oci_proxy, pytest.raises(RegistryRefused, match="gives other content"):
        [*contents(Client(), f"{oci_proxy.host}/{path}", image.digest, KINDS)]


# By the builder itself. ----------------------------------------------------------------------------------------------


@pytest.fixture
def head(host: GitHost, path: str, tmp_path: Path) -> str:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/Dockerfile").write_text("FROM scratch\nLABEL org.opencontainers.image.source=mine\nCOPY . /\n")
    return host.create(path, tmp_path / "content")


def test_a_build_labels_its_image_and_proves_it_and_one_that_is_there_is_left_alone(
    head: str, path: str, builder: Builder, host: GitHost, registry: Registry, keys: Keys
) -> None:
    request = asked(host, path, head, registry, build_args={"N": "hush-hush-hush"})
    first = builder.run(request, signing_key=str(keys.private))
    image = first.result.image
    assert image, first.text
    assert "The image has a provenance statement, signed." in first.text
    labels = Client().labels(image.repository, image.digest) or {}
    committed = int(git("show", "--no-patch", "--format=%ct", head, cwd=host.bare(path)))
    assert {
        name.rpartition(".")[2]: value for name, value in labels.items() if name.startswith("org.opencontainers")
    } == {
        "source": request.repository,
        "revision": head,
        "version": image.tag,
        "created": datetime.fromtimestamp(committed, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    status, said = verify(
        image.reference, "--repository", request.repository, "--commit", head, "--key", str(keys.public)
    )
    assert status == 0, said
    assert "hush-hush-hush" not in verify(image.reference, "--json")[1]
    again = builder.run(request, signing_key=str(keys.private))
    assert "nothing to build" in again.text
    assert "provenance" not in again.text


@pytest.mark.parametrize(
    ("behaviour", "around", "words"),
    [
        (NoSubjects(), {}, "The image has no provenance statement. The registry"),
        (Behaviour(), {"signing_key": "/gone"}, "The image has no provenance statement. [Errno 2]"),
        (Behaviour(), {"provenance": False}, None),
    ],
)
def test_a_build_succeeds_without_a_statement_and_says_why(
    behaviour: Behaviour, around: dict[str, Any], words: str | None,
    head: str, path: str, builder: Builder, host: GitHost, registry: Registry,
) -> None:  # fmt: skip
    with OciProxy(registry, behaviour) as oci_proxy:
        attempt = builder.run(
            Request(
                repository=f"{host.base}/{path}",
                clone_url=host.url(path),
                commit=head,
                image=f"{oci_proxy.host}/{path}",
            ),
            **around,
        )
        assert attempt.result.image, attempt.text
        assert (words or "provenance") in attempt.text or words is None
        assert words is not None or "provenance" not in attempt.text
        found: tuple[Descriptor, ...] = referrers(
            Client(), attempt.result.image.repository, attempt.result.image.digest
        )
        assert found == ()
