"""Private repositories on a Git host that requires a password: permission to build them, and to view the builds."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient

from builds.build import Cause, Kind, Request
from builds.clients.git import RefResolver, Stored
from builds.engines import Submission
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.private import Private, PrivateRule
from builds.repository import Policy
from handlers.app import Services
from handlers.auth import Gate, Identity
from tests.handlers.harness import PREFIX, Harness
from tests.parts.githost import GitHost

CANARY = "a canary of the credential"
PEOPLE = {
    "ada": Identity(by="user:ada", groups=frozenset({"staff"})),
    "kim": Identity(by="user:kim"),
    "root": Identity(by="user:root", admin=True),
    "ci": Identity(by="token:ci", admin=True),
}


class Named:
    """An authenticator that trusts the name in `Authorization`."""

    takes = "a name"

    def identify(self, request: Any) -> Identity | None:
        return PEOPLE.get(request.headers.get("Authorization", ""))


class Scene:
    """Two repositories with a stored credential, one of them in `private`, and two public ones."""

    def __init__(self, harnesses: Callable[..., Harness], host: GitHost, folder: Path) -> None:
        self.host = host
        self.commits = {}
        for name in ("named", "unnamed", "public", "public-too"):
            source = folder / name
            source.mkdir()
            (source / "Dockerfile").write_text(f"FROM {name}\n")
            self.commits[name] = host.create(f"org/{name}", source)
        host.passwords["/org/named.git"] = host.passwords["/org/unnamed.git"] = ("kiln", CANARY)
        stored = Stored(folder / "git-credentials")
        address = host.base.replace("://", f"://kiln:{quote(CANARY)}@")
        (folder / "git-credentials").write_text(f"{address}/org/named\n{address}/org/unnamed\n")
        rule = PrivateRule(match=self.url("named"), use_by=("webhooks", "group:staff"))
        private = Private([rule], stored=stored.fits)
        policy = Policy(allowed=[f"{host.base}/**"])
        intake = Intake(
            instance="test",
            policy=policy,
            hosts={},
            images=ImagePolicy(PREFIX),
            resolver=RefResolver(policy),
            entitled=RefResolver(policy, stored),
            private=private,
        )
        gate = Gate((Named(),))
        self.harness = harnesses(auth_gate=gate, events_auth=("none",), intake=intake, private=private)

    @property
    def services(self) -> Services:
        return self.harness.services

    def url(self, name: str) -> str:
        return self.host.url(f"org/{name}")

    def client(self, who: str) -> FlaskClient:
        client = self.harness.client
        client.environ_base["HTTP_AUTHORIZATION"] = who
        return client

    def ask(self, who: str, name: str, **more: str) -> Any:
        return self.client(who).post("/api/v1/builds", json={"repository": self.url(name), **more})

    def pushed(self, name: str) -> str:
        """Accept the build that a webhook of the host requests; return its name."""
        ask = self.services.intake.submission(
            wanted(self.url(name), self.commits[name]),
            source="/hook",
            id=f"push-{name}",
            type="com.github.push",
            by="webhook:github",
            kind=Kind.PUSH,
            now=self.services.now(),
        )
        (build,) = self.harness.engine.accept([ask])
        return build.name

    def seen(self, who: str, name: str) -> set[int]:
        """Return the statuses of all addresses of a build. Lists must agree with them."""
        client = self.client(who)
        paths = (f"/api/v1/builds/{name}", f"/api/v1/builds/{name}/log", f"/builds/{name}")
        statuses = {client.get(path).status_code for path in paths}
        listed = client.get("/api/v1/builds").json["items"]
        shown = any(build["name"] == name for build in listed), f'href="/builds/{name}"' in client.get("/").text
        assert set(shown) == {statuses == {200}}
        return statuses


def wanted(url: str, commit: str) -> Any:
    from builds.triggers import from_event_data  # noqa: PLC0415

    return from_event_data({"repository": url, "commit": commit})


@pytest.fixture
def scene(harnesses: Callable[..., Harness], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scene")
    with GitHost(folder / "host") as host:
        yield Scene(harnesses, host, folder)


def test_who_is_named_has_it_built_and_seen(scene: Scene) -> None:
    answer = scene.ask("ada", "named", ref="main")
    assert answer.status_code == 202, answer.text
    build = scene.harness.engine.get(answer.json["name"])
    assert build.request.commit == scene.commits["named"], "the ref was looked up with the credential"
    assert [cause.credentials for cause in build.causes] == [True]
    assert scene.seen("ada", build.name) == {200}
    for who in ("kim", "root", "ci"):
        assert scene.seen(who, build.name) == {404}
        assert scene.client(who).delete(f"/api/v1/builds/{build.name}").status_code == 404


@pytest.mark.parametrize("who", ["kim", "root", "ci"])
def test_who_is_not_named_is_refused_even_with_the_commit(scene: Scene, who: str) -> None:
    for more in ({"ref": "main"}, {"commit": scene.commits["named"]}, {}):
        answer = scene.ask(who, "named", **more)
        assert answer.status_code == 403, answer.text
        assert "private" in answer.json["detail"]
    path = f"/build/git/{quote(scene.url('named'), safe='')}/{scene.commits['named']}"
    assert '"status_code": 403' in scene.client(who).get(path).text
    assert not scene.harness.builds()


def test_what_was_built_for_a_webhook_is_not_had_by_naming_its_commit(scene: Scene) -> None:
    name = scene.pushed("unnamed")
    assert scene.harness.engine.get(name).causes[0].credentials
    answer = scene.ask("kim", "unnamed", commit=scene.commits["unnamed"])
    assert answer.status_code == 422, "the host itself does not show it"
    assert len(scene.harness.engine.get(name).causes) == 1
    assert scene.seen("kim", name) == {404}
    assert scene.seen("root", name) == {200}
    assert CANARY not in answer.text


def test_a_reconnecting_viewer_is_asked_again(scene: Scene) -> None:
    name = scene.pushed("named")
    path = f"/build/git/{quote(scene.url('named'), safe='')}/{scene.commits['named']}"
    answer = scene.client("kim").get(path, headers={"Last-Event-ID": f"{name}:1:0"})
    assert '"status_code": 404' in answer.text


def test_what_everybody_can_see_is_built_for_everybody_without_a_credential(scene: Scene) -> None:
    name = scene.pushed("public")
    for more in ({"ref": "main"}, {"commit": scene.commits["public"]}):
        answer = scene.ask("kim", "public", **more)
        assert (answer.status_code, answer.json["name"]) == (202, name)
    assert not any(cause.credentials for cause in scene.harness.engine.get(name).causes)
    assert scene.seen("kim", name) == {200}
    assert not [target for target in scene.host.credentials if "/public" in target]


def test_a_credential_that_has_become_needless_hides_nothing(scene: Scene) -> None:
    """A request without the credential could fetch the repository, too."""
    name = scene.pushed("unnamed")
    del scene.host.passwords["/org/unnamed.git"]
    assert scene.ask("kim", "unnamed", commit=scene.commits["unnamed"]).json["name"] == name
    assert scene.seen("kim", name) == {200}


def test_records_keep_what_was_checked(scene: Scene) -> None:
    """The record carries the decision, so a later leader does not evaluate the rules again."""
    now = scene.services.now()
    cause = Cause(source="/s", id="1", type="t", by="user:ada", at=now, kind=Kind.PERSON, credentials=True)
    request = Request(repository="https://a.example/b", clone_url="https://a.example/b", commit="1" * 40, image="r/x")
    (made,) = scene.harness.engine.accept([Submission(name="build-x", request=request, cause=cause)])
    assert scene.harness.engine.get(made.name).causes[0].credentials


def lists(scene: Scene, who: str, query: str = "") -> Iterator[tuple[list[str], str | None]]:
    """Yield each page of the list as its names and its cursor."""
    client, cursor = scene.client(who), ""
    while True:
        page = client.get(f"/api/v1/builds?{query}&continue={cursor}").json
        yield [build["name"] for build in page["items"]], page["continue"]
        if page["continue"] is None:
            return
        cursor = page["continue"]


def told(cursor: str) -> bytes:
    """Return everything that a client can read from a cursor without its key."""
    parts = (base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)) for part in cursor.split("."))
    inner = re.findall(rb"[A-Za-z0-9_-]{8,}={0,2}", read := b" ".join(parts))
    return b" ".join([read, *(base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4)) for part in inner)])


def test_a_list_is_paged_as_if_there_were_nothing_private(scene: Scene) -> None:
    first, hidden, last = (scene.pushed(name) for name in ("public", "named", "public-too"))
    assert [names for names, _ in lists(scene, "ada", "limit=1")] == [[last], [hidden], [first]]
    seen = [*lists(scene, "kim", "limit=1")]
    assert [names for names, _ in seen] == [[last], [first]]
    for _, cursor in seen:
        assert hidden.encode() not in told(cursor or "")
    assert last.encode() in told(seen[0][1] or "")
    of_it = f"limit=1&repository={quote(scene.url('named'), safe='')}"
    assert [*lists(scene, "kim", of_it)] == [([], None)]
    assert [*lists(scene, "ada", of_it)] == [([hidden], None)]


def test_a_long_way_past_what_is_private_is_gone_in_several_requests(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlers.builds.MAX_EXAMINED", 1)
    monkeypatch.setattr("handlers.builds.BATCH", 1)
    first = scene.pushed("public")
    hidden = [scene.pushed(name) for name in ("named", "unnamed")]
    seen = [*lists(scene, "kim", "limit=1")]
    assert [name for names, _ in seen for name in names] == [first]
    assert len(seen) > 1
    assert not any(name.encode() in told(cursor or "") for name in hidden for _, cursor in seen)
