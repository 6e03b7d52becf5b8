"""Registries that answer otherwise than registry:2: the specification's MUST decides.

Each is a real registry behind a oci_proxy that behaves as the registry in the test's name.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from builds.build import Request
from builds.builder.spec import Tags
from builds.clients.registry import Registry as Client
from builds.clients.registry import Unauthorized
from tests.docker.builder.conftest import asked
from tests.docker.builder.test_provenance import COMMIT, pushed
from tests.parts.building import Builder
from tests.parts.githost import GitHost, commit
from tests.parts.ociregistry import PASSWORD, USER, Answer, Asked, Behaviour, OciProxy, Tokens, refusal
from tests.parts.registry import Registry


def who_can_make_it(there: bool, actions: set[str]) -> set[str]:
    """quay.io, for a missing repository: a client that may create it gets all actions, a client that only pulls gets
    none."""
    return actions if there or "push" in actions else set()


class Robot(Tokens):
    """No token suffices to look up a missing manifest."""

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:
        looks = asked.method in ("GET", "HEAD") and "/manifests/" in asked.target
        if looks and asked.token and not oci_proxy.has(asked.name):
            more = 'error="insufficient_scope"'
            return refusal(self.denied, "DENIED", "not authorized for that", self.challenge(asked, oci_proxy, more))
        return super().before(asked, oci_proxy)


class Artifactory(Behaviour):
    """Basic credentials; 403 for the lookup of a missing manifest."""

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:
        if asked.login != f"{USER}:{PASSWORD}":
            return refusal(401, "UNAUTHORIZED", "authentication required", 'Basic realm="Artifactory"')
        if asked.method in ("GET", "HEAD") and "/manifests/" in asked.target and not oci_proxy.has(asked.name):
            return refusal(403, "DENIED", "The client does not have permission for manifest")
        return None


class OldQuay(Behaviour):
    """202 for a manifest."""

    def after(self, asked: Asked, answer: Answer) -> Answer:
        if asked.method == "PUT" and "/manifests/" in asked.target and answer.status == 201:
            answer.status = 202
        return answer


class NoDigest(Behaviour):
    def after(self, asked: Asked, answer: Answer) -> Answer:
        if asked.method == "HEAD":
            answer.set("Docker-Content-Digest", None)
        return answer


class NoHead(Behaviour):
    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:  # noqa: ARG002
        by_us = asked.method == "HEAD" and "requests" in asked.headers.get("User-Agent", "")
        return refusal(405, "UNSUPPORTED", "HEAD is not supported") if by_us else None


class Immutable(Behaviour):
    """ECR, Harbor: an existing tag never changes."""

    def __init__(self, status: int = 412) -> None:
        self.status = status

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:
        if asked.method != "PUT" or "/manifests/" not in asked.target:
            return None
        there = oci_proxy.forward(Asked("HEAD", asked.target, asked.headers, b"")).status == 200
        return refusal(self.status, "TAG_INVALID", "The tag is immutable") if there else None


class Elsewhere(Behaviour):
    """Names another host's token service."""

    def __init__(self, url: str) -> None:
        self.url = url

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:  # noqa: ARG002
        return refusal(401, "UNAUTHORIZED", "authentication required", f'Bearer realm="{self.url}/token"')


class Shouting(Tokens):
    """The challenge in other spellings that RFC 9110 allows, for us: docker's push does not take all of them."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling

    def before(self, asked: Asked, oci_proxy: OciProxy) -> Answer | None:
        answer = super().before(asked, oci_proxy)
        ours = "requests" in asked.headers.get("User-Agent", "")
        if ours and answer is not None and (usual := dict(answer.headers).get("WWW-Authenticate")):
            answer.set("WWW-Authenticate", None)
            realm, scope = f"{oci_proxy.url}/token?account=a%26b", re.findall(r'scope="(.*?)"', usual)[0]
            for line in self.spelling.format(realm=realm, scope=scope).split("\n"):
                answer.headers.append(("WWW-Authenticate", line))
        return answer


SPELLINGS = {
    "several in one header": 'Negotiate, Basic realm="x, y", Bearer realm="{realm}",service="f",scope="{scope}"',
    "one header each": 'Digest realm="x", nonce="a=b"\nBearer realm="{realm}",scope="{scope}"\nBasic realm="x"',
    "upper case and spaces": 'BEARER REALM = "{realm}" , SERVICE="f", Scope="{scope}"',
    "unquoted": "Bearer realm={realm},service=oci_proxy",
    "the known one last": 'NTLM TlRMTVNTUAAB==, Custom a=b, bearer scope="{scope}", realm="{realm}"',
}


@pytest.fixture
def head(host: GitHost, path: str, tmp_path: Path) -> str:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    return host.create(path, tmp_path / "content")


@pytest.fixture
def oci_proxy(registry: Registry) -> Iterator[OciProxy]:
    with OciProxy(registry) as oci_proxy:
        yield oci_proxy


@pytest.fixture
def known(tmp_path: Path, oci_proxy: OciProxy) -> str:
    """The path of a docker config.json."""
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "docker.json").write_text(json.dumps({"auths": {oci_proxy.host: {"auth": auth}}}))
    return str(tmp_path / "docker.json")


@pytest.fixture
def request_(host: GitHost, path: str, head: str, registry: Registry, oci_proxy: OciProxy) -> Request:
    return msgspec.structs.replace(asked(host, path, head, registry), image=f"{oci_proxy.host}/{path}")


BEHAVIOURS = {
    "docker hub": Tokens(),
    "quay": Tokens(who_can_make_it),
    "quay with 403": Tokens(who_can_make_it, denied=403),
    "a robot": Robot(),
    "a robot with 403": Robot(denied=403),
    "artifactory": Artifactory(),
    "old quay": OldQuay(),
    "no digest": NoDigest(),
}
FOR_US = {"no head": NoHead(), **{name: Shouting(spelling) for name, spelling in SPELLINGS.items()}}
"""Behaviours that docker's own requests do not meet."""


@pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=BEHAVIOURS)
def test_the_first_build_is_pushed_and_tagged_in_one_attempt(
    behaviour: Behaviour,
    request_: Request,
    path: str,
    builder: Builder,
    registry: Registry,
    oci_proxy: OciProxy,
    known: str,
) -> None:
    oci_proxy.behaviour = behaviour
    attempt = builder.run(request_, registry_config=known, tags=(Tags(ref=None, names=("course",)),))
    assert attempt.status == 0, attempt.text
    image = attempt.result.image
    assert image
    assert image.tags == ("course",)
    there = Client().manifest(f"{registry.host}/{path}", "course")
    assert there
    assert there.digest == image.digest
    assert PASSWORD not in attempt.everything
    again = builder.run(request_, registry_config=known)
    assert "nothing to build" in again.text
    assert again.result.image
    assert again.result.image.reference == image.reference


@pytest.mark.parametrize("behaviour", FOR_US.values(), ids=FOR_US)
def test_an_image_is_looked_up_put_and_tagged(
    behaviour: Behaviour, path: str, registry: Registry, oci_proxy: OciProxy, known: str
) -> None:
    """By the requests of a build: each of them meets the challenge, for reads and for writes."""
    oci_proxy.behaviour = behaviour
    client, image = Client(known, pushes=True), f"{oci_proxy.host}/{path}"
    assert client.labels(image, COMMIT) is None
    digest = pushed(oci_proxy.host, path, client=client).digest
    client.tag(image, digest, "course")
    there = Client().manifest(f"{registry.host}/{path}", "course")
    assert there
    assert there.digest == digest
    again = Client(known)
    found = again.manifest(image, COMMIT)
    assert found
    assert (found.digest, again.labels(image, COMMIT)) == (digest, {"content": ""})


def test_a_tag_that_may_not_be_moved_fails_nothing(
    request_: Request, builder: Builder, oci_proxy: OciProxy, known: str, tmp_path: Path, host: GitHost, path: str
) -> None:
    oci_proxy.behaviour = Immutable()
    tags = (Tags(ref=None, names=("v1",)), Tags(ref=None, names=("course",)))
    first = builder.run(request_, registry_config=known, tags=tags).result.image
    assert first
    assert (first.tags, first.refused_tags) == (("v1", "course"), ())
    again = builder.run(request_, registry_config=known, tags=tags).result.image
    assert again
    assert (again.tags, again.refused_tags) == (("v1", "course"), ()), "each is what it should be already"

    moved = msgspec.structs.replace(request_, commit=commit(host.bare(path), tmp_path / "content", message="Moved on"))
    for status in (412, 400, 403, 409):  # the first one pushes the image, the others find it
        oci_proxy.behaviour = Immutable(status)
        attempt = builder.run(moved, registry_config=known, tags=tags)
        assert attempt.status == 0, attempt.text
        assert attempt.result.image
        assert attempt.result.image.tags == ()
        assert [one.name for one in attempt.result.image.refused_tags] == ["v1", "course"]
        assert "The tag is immutable" in attempt.result.image.refused_tags[0].message
        assert "The tag v1 is not set: " in attempt.text


def test_what_the_registry_says_is_told(oci_proxy: OciProxy, path: str, known: str) -> None:
    oci_proxy.behaviour = Tokens(lambda *_: set())
    with pytest.raises(Unauthorized, match=r": not authorized for that\.$"):
        Client(known).manifest(f"{oci_proxy.host}/{path}", "x")


def test_a_password_goes_to_no_strange_token_service(oci_proxy: OciProxy, path: str, known: str) -> None:
    with OciProxy(oci_proxy.registry, Tokens()) as other:
        elsewhere = other.url.replace("127.0.0.1", "localhost")
        oci_proxy.behaviour = Elsewhere(elsewhere)
        with pytest.raises(Unauthorized, match="would not be safe with"):
            Client(known).manifest(f"{oci_proxy.host}/{path}", "x")
        assert other.requests == []
