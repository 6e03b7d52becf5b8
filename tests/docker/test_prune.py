"""The rule `keep` on a real registry: deleted images, kept images, and the effect on concurrent pulls and pushes."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest
import yaml

from builds.build import Cause, Image, Kind, Request, State
from builds.builder.spec import LABEL_BUILD
from builds.clients.registry import INDEX, MANIFEST, Registry, digest_of
from builds.engines import NotFound, Submission
from builds.engines.local import LocalEngine
from builds.prune import Pruned, Pruner, Retention
from builds.retention import Rule
from tests.builds.engine_factories import local_engine
from tests.parts import ociregistry
from tests.parts.kiln import Kiln
from tests.parts.ociregistry import USER, Answer, Asked, Behaviour, OciProxy, Tokens, refusal
from tests.parts.registry import Registry as Server

NOW = datetime.now(UTC)
MAIN = "refs/heads/main"
RULE = Rule(per_ref=2, period=timedelta(days=30))
LAYER = gzip.compress(bytes(1024), mtime=0)
TYPE = "application/vnd.oci.image"


def manifest(labels: dict[str, str], client: Registry, image: str, *, layer: bool = True, **more: Any) -> bytes:
    """A manifest of an image whose blobs exist."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Labels": labels}}).encode()
    client.upload(image, config)
    layers = [{"mediaType": f"{TYPE}.layer.v1.tar+gzip", "digest": digest_of(LAYER), "size": len(LAYER)}]
    described = {"mediaType": f"{TYPE}.config.v1+json", "digest": digest_of(config), "size": len(config)}
    whole = {"schemaVersion": 2, "mediaType": MANIFEST, "config": described, "layers": layers if layer else []}
    return json.dumps({**whole, **more}).encode()


def index_of(*parts: str) -> bytes:
    described = [{"mediaType": MANIFEST, "digest": digest, "size": 1} for digest in parts]
    return json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": described}).encode()


class Shop:
    """A registry, and the records of a local engine. Images are put there as the builder does it."""

    def __init__(self, folder: Path, host: str) -> None:
        self.folder, self.prefix = folder, f"{host}/org/"
        self.client = Registry()
        folder.mkdir(parents=True, exist_ok=True)
        self.engine: LocalEngine = local_engine(folder / "state")

    def request(self, name: str, number: int) -> Request:
        repository = f"https://github.com/org/{name}"
        return Request(repository=repository, clone_url=repository, commit=f"{number:040x}", image=self.prefix + name)

    def push(self, request: Request, build: str | None, *tags: str, client: Registry | None = None) -> str:
        """Returns the digest."""
        pushes = client or self.client
        labels = {LABEL_BUILD: build} if build else {"made.by": f"hand-{request.commit}"}
        content = manifest(labels, pushes, request.image)
        for tag in (request.commit, *tags):
            pushes.put(request.image, tag, MANIFEST, content)
        return digest_of(content)

    def ask(self, request: Request, build: str, days: float, *refs: str, id_: str = "1") -> None:
        at = NOW - timedelta(days=days)
        causes = [
            Cause(source="/t", id=f"{id_}{ref}", type="t", by=None, at=at, kind=Kind.PUSH, ref=ref)
            for ref in refs or [None]
        ]
        self.engine.accept([Submission(name=build, request=request, cause=cause) for cause in causes])

    def end(self, build: str, digest: str, days: float, state: State = State.SUCCEEDED) -> None:
        """As a controller leaves it."""
        before = self.engine.get(build)
        image = Image(repository=before.request.image, tag=before.request.commit, digest=digest)
        status = msgspec.structs.replace(
            before.status,
            state=state,
            round=1,
            answered=tuple(cause.key for cause in before.causes),
            image=image,
            finished_at=NOW - timedelta(days=days),
        )
        self.engine.write(msgspec.structs.replace(before, status=status, open=False))

    def built(self, name: str, number: int, days: float, *refs: str, tags: tuple[str, ...] = ()) -> str:
        """Returns the digest of an image with its record."""
        request, build = self.request(name, number), f"build-{name}-{number}"
        digest = self.push(request, build, *tags)
        self.ask(request, build, days, *refs)
        self.end(build, digest, days)
        return digest

    def first(self, name: str) -> str:
        """Makes an image repository ready for pushes: the one layer that all images have."""
        self.client.upload(self.prefix + name, LAYER)
        return self.prefix + name

    def pruner(self, rule: Rule = RULE, registry: Callable[[str], Registry] = lambda _: Registry()) -> Pruner:
        return Pruner(records=self.engine, registry=registry, allowed=[f"{self.prefix}**"], rule=rule)

    def prune(self, image: str, **more: Any) -> Pruned:
        pruner = self.pruner(**more)
        return next(pruner.prune(looked) for looked in pruner.review() if looked.repository == image)

    def there(self, image: str, reference: str) -> bool:
        return self.client.manifest(image, reference) is not None


@pytest.fixture
def shop(tmp_path: Path, registry: Server) -> Iterator[Shop]:
    made = Shop(tmp_path / "shop", registry.host)
    made.prefix += f"{tmp_path.name.replace('_', '-')}/".lower()
    yield made
    made.engine.close()


@pytest.fixture
def old(shop: Shop) -> tuple[str, str]:
    """An image that the rule does not need: its repository and digest."""
    return shop.first("old"), shop.built("old", 1, 60)


def test_exactly_what_the_rule_names_goes(tmp_path: Path, registry: Server) -> None:
    """200 images of four repositories; the command says beforehand what it deletes then."""
    shop = Shop(tmp_path, registry.host)
    shop.prefix += "two-hundred/"
    names = ["one", "two", "three", "four"]
    for name in names:
        shop.first(name)
    jobs = [(name, number, {4: None}.get(number, f"build-{name}-{number}")) for name in names for number in range(50)]
    clients = {name: Registry() for name in names}

    def push(name: str) -> dict[int, str]:
        return {
            number: shop.push(
                shop.request(name, number), build, *([f"v{number}"] if number % 10 == 0 else []), client=clients[name]
            )
            for other, number, build in jobs
            if other == name
        }

    with ThreadPoolExecutor(4) as pool:
        digests = dict(zip(names, pool.map(push, names), strict=True))
    expected: set[str] = set()
    for name, number, build in jobs:
        digest, days = digests[name][number], 100 - 2 * number
        if number == 5:
            continue  # no record
        request, named = shop.request(name, number), build or f"build-{name}-{number}"
        shop.ask(request, named, days, *([MAIN] if number % 2 else []))
        if number != 6:
            shop.end(named, digest, days)
        if number == 8:
            shop.ask(request, named, 1, id_="again")
        if days >= 30 and number % 10 and number not in (4, 5, 6, 7, 8):
            expected.add(digest)
    for name in names:  # what others have made of an image of Kiln's
        whole = shop.client.manifest(shop.prefix + name, digests[name][7], body=True)
        assert whole
        shop.client.put(shop.prefix + name, "all", INDEX, index_of(whole.digest, digests[name][49]))
    (tmp_path / "kiln.yaml").write_text(yaml.safe_dump({"keep": {"per_ref": 2, "for": "30d"}}))
    shop.engine.close()
    with Kiln(tmp_path, KILN_IMAGE_PREFIX=shop.prefix, KILN_CONFIG=str(tmp_path / "kiln.yaml")) as kiln:
        listed = kiln.run("images", "--json")
        dry, done = kiln.run("images", "prune", "--json"), kiln.run("images", "prune", "--delete", "--json")
    assert [one.returncode for one in (listed, dry, done)] == [0, 0, 0], listed.stderr + done.stderr
    assert dry.stdout == done.stdout
    assert {one["digest"] for one in json.loads(dry.stdout)} == expected
    assert len(json.loads(listed.stdout)) == 4 * 49, "all but those that were pushed by hand"
    assert {one["digest"] for one in json.loads(listed.stdout) if not one["needed"]} == expected
    for name in names:
        left = {digest for digest in digests[name].values() if shop.there(shop.prefix + name, digest)}
        assert left == {*digests[name].values()} - expected
        assert all(shop.there(shop.prefix + name, f"v{number}") for number in range(0, 50, 10))


def test_without_a_rule_images_are_listed_and_none_is_deleted(shop: Shop, old: tuple[str, str]) -> None:
    shop.engine.close()
    (shop.folder / "kiln.yaml").write_text("{}")
    with Kiln(shop.folder, KILN_IMAGE_PREFIX=shop.prefix, KILN_CONFIG=str(shop.folder / "kiln.yaml")) as kiln:
        listed, refused = kiln.run("images"), kiln.run("images", "prune", "--delete")
    image, digest = old
    assert (listed.returncode, listed.stdout) == (0, f"{image}:{1:040x}@{digest}\n")
    assert (refused.returncode, refused.stderr) == (
        1,
        "kiln: error: No retention rule. Set `keep: {for: 30d}` in the YAML file\n",
    )
    assert shop.there(image, digest)


def test_who_asks_while_an_image_is_deleted_gets_the_same_one(
    shop: Shop, registry: Server, old: tuple[str, str]
) -> None:
    image, digest = old

    class Late(Behaviour):
        def after(self, asked: Asked, answer: Answer) -> Answer:
            if asked.method == "DELETE":
                shop.ask(shop.request("old", 1), "build-old-1", 0, id_="late")
            return answer

    with OciProxy(registry, Late()) as oci_proxy:
        pruned = shop.prune(image, registry=lambda _: _Through(registry.host, oci_proxy.host))
    assert pruned == Pruned(deleted=[])
    assert shop.client.manifest(image, f"{1:040x}") == shop.client.manifest(image, digest)
    assert shop.there(image, digest)


class _Through(Registry):
    """Speaks to a oci_proxy in place of the registry that images are called after."""

    def __init__(self, host: str, oci_proxy: str, *more: Any, **named: Any) -> None:
        super().__init__(*more, **named)
        self._host, self._front = host, oci_proxy

    def _url(self, image: str, path: str) -> str:
        return super()._url(image, path).replace(f"//{self._host}/", f"//{self._front}/", 1)


def test_a_tag_that_was_set_since_the_look_keeps_an_image(shop: Shop, old: tuple[str, str]) -> None:
    image, digest = old
    pruner = shop.pruner()
    (looked,) = pruner.review()
    shop.client.tag(image, digest, "mine")
    assert [one.image.digest for one in looked.unneeded] == [digest]
    assert pruner.prune(looked) == Pruned(deleted=[])
    assert shop.there(image, "mine")


def test_who_asked_since_the_look_keeps_an_image(shop: Shop, old: tuple[str, str]) -> None:
    pruner = shop.pruner()
    (looked,) = pruner.review()
    shop.ask(shop.request("old", 1), "build-old-1", 0, id_="late")
    assert pruner.prune(looked) == Pruned(deleted=[])
    assert shop.there(*old)


def test_what_belongs_to_an_image_goes_with_it(shop: Shop, old: tuple[str, str]) -> None:
    """Its provenance has the tag that stands in for the referrers API, which this registry does not have."""
    image, digest = old
    statement = manifest({}, shop.client, image, subject={"mediaType": MANIFEST, "digest": digest, "size": 1})
    other = manifest({"of": "another"}, shop.client, image)
    for content in (statement, other):
        shop.client.put(image, digest_of(content), MANIFEST, content)
    shop.client.put(image, digest.replace(":", "-"), INDEX, index_of(digest_of(statement)))
    shop.client.put(image, "all", INDEX, index_of(digest_of(other)))
    shop.client.put(image, f"sha256-{'0' * 64}", INDEX, index_of(digest_of(other)))
    assert [one.digest for one in shop.prune(image).deleted] == [digest]
    assert not shop.there(image, digest_of(statement))
    assert not shop.there(image, digest.replace(":", "-"))
    assert shop.there(image, digest_of(other))
    assert shop.there(image, f"sha256-{'0' * 64}")


def test_an_index_of_kilns_own_goes_with_its_parts(shop: Shop) -> None:
    """As a daemon with containerd's store pushes it."""
    image, request = shop.first("parted"), shop.request("parted", 1)
    parts = [manifest({LABEL_BUILD: "b", "n": str(number)}, shop.client, image) for number in range(3)]
    for part in parts:
        shop.client.put(image, digest_of(part), MANIFEST, part)
    own = index_of(*map(digest_of, parts[:2]), digest_of(parts[2]))
    shop.client.put(image, request.commit, INDEX, own)
    shop.client.put(image, "kept", MANIFEST, parts[2])
    shop.ask(request, "b", 60)
    shop.end("b", digest_of(own), 60)
    assert [one.digest for one in shop.prune(image).deleted] == [digest_of(own)]
    assert [shop.there(image, digest_of(part)) for part in parts] == [False, False, True]


@pytest.mark.parametrize("status", [404, 405])
def test_a_registry_that_deletes_nothing_is_told_of(
    shop: Shop, registry: Server, old: tuple[str, str], status: int
) -> None:
    class Forbids(Behaviour):
        def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:  # noqa: ARG002
            return refusal(status, "UNSUPPORTED", "no") if asked.method == "DELETE" else None

    with OciProxy(registry, Forbids()) as oci_proxy:
        pruned = shop.prune(old[0], registry=lambda _: _Through(registry.host, oci_proxy.host))
    assert pruned.error == f"The registry {registry.host} does not let images be deleted: no."
    assert shop.there(*old)


def test_a_token_that_may_delete_is_asked_for(
    shop: Shop, registry: Server, old: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ociregistry._NEEDED, "DELETE", "delete")
    login = shop.folder / "config.json"
    login.write_text(json.dumps({"auths": {registry.host: {"username": USER, "password": ociregistry.PASSWORD}}}))
    with OciProxy(registry, Tokens()) as oci_proxy:
        reads = _Through(registry.host, oci_proxy.host, login, pushes=True)
        assert [one.digest for one in shop.prune(old[0], registry=lambda _: reads).deleted] == [old[1]]


def test_a_name_that_was_never_pushed_is_no_error(shop: Shop, registry: Server, old: tuple[str, str]) -> None:
    """This holds although some registries refuse to answer about it."""

    class Hides(Behaviour):
        def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:  # noqa: ARG002
            return refusal(403, "DENIED", "denied")

    with OciProxy(registry, Hides()) as oci_proxy:
        pruner = shop.pruner(registry=lambda _: _Through(registry.host, oci_proxy.host))
        errors = {looked.repository: looked.error for looked in pruner.review([f"{shop.prefix}never"])}
    assert errors[f"{shop.prefix}never"] is None
    assert "denied" in (errors[old[0]] or "")


def test_tags_and_repositories_are_read_to_the_last_page(shop: Shop, registry: Server) -> None:
    image = shop.first("paged")
    digest = shop.push(shop.request("paged", 1), "b", *(f"t{number}" for number in range(5)))

    class Pages(Behaviour):
        def after(self, asked: Asked, answer: Answer) -> Answer:
            path, _, query = asked.target.partition("?")
            name = {"list": "tags", "_catalog": "repositories"}.get(path.rpartition("/")[2])
            if name is None:
                return answer
            found = json.loads(answer.body)
            all_, start = sorted(found[name]), int(query.rpartition("=")[2]) if query.startswith("last") else 0
            answer.body = json.dumps({**found, name: all_[start : start + 2]}).encode()
            if start + 2 < len(all_):
                answer.set("Link", f'<http://elsewhere.invalid{path}?last={start + 2}>; rel="next"')
            return answer

    with OciProxy(registry, Pages()) as oci_proxy:
        through = _Through(registry.host, oci_proxy.host)
        assert sorted(through.tags(image)) == sorted([f"{1:040x}", *(f"t{number}" for number in range(5))])
        assert image in through.catalog(image)
    assert shop.client.tags(f"{image}-of-nobody") == []
    assert shop.there(image, digest)


def test_a_record_goes_when_its_image_has_gone_and_its_time_is_over(shop: Shop, registry: Server) -> None:
    image = shop.first("ledger")
    shop.built("ledger", 1, 60)
    shop.built("ledger", 2, 50, MAIN)
    absent = shop.request("ledger", 3)
    shop.ask(absent, "absent", 40, MAIN)
    shop.end("absent", f"sha256:{'0' * 64}", 40)
    shop.ask(shop.request("ledger", 4), "recent", 2)
    shop.end("recent", f"sha256:{'1' * 64}", 2)
    turns = Retention(
        shop.pruner(), records=shop.engine, forget=shop.engine.forget, history=timedelta(days=7), leading=lambda: True
    )
    registry.stop()
    try:
        turns.run_once(Event())
    finally:
        registry.start()
    assert shop.engine.get("absent"), "nobody knows"
    turns.run_once(Event())
    for gone in ("build-ledger-1", "absent"):
        with pytest.raises(NotFound):
            shop.engine.get(gone)
    assert shop.engine.get("recent")
    assert shop.engine.get("build-ledger-2").status.image
    assert shop.there(image, f"{2:040x}")
    assert not shop.there(image, f"{1:040x}")
