"""A complete web over real parts: the local engine in a folder, the intake with its policy, and Git for lookups."""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flask import Flask
from flask.testing import FlaskClient

from builds.build import Attempt, Build, Image, Reason, State
from builds.builder.spec import Surroundings
from builds.clients.git import RefResolver
from builds.engines.local import LocalEngine
from builds.engines.local.sessions import LocalSessions
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.repository import HostKind, Policy
from builds.transitions import change
from builds.triggers import TriggerRule
from handlers.app import Services, create_app
from handlers.auth import Gate, Identity, gate
from tests.builds.rules import load
from tests.parts.kiln import until

PREFIX = "registry.example/kiln/"
REPOSITORY = "https://github.com/octo/stats"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SECRET = b"a canary of the webhooks"
TOKENS = {"ci": b"a canary of the tokens", "second": "zweites Kännchen".encode()}

SPEAKER = """
import json, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]).parent
number, rest = 0, ""
with (folder / "script").open("a+", encoding="utf-8", newline="\\n") as script:
    script.seek(0)
    while folder.exists() and not (folder / "enough").exists():
        *lines, rest = (rest + script.read()).split("\\n")
        for line in lines:
            number += 1
            phase, _, text = line.partition("|")
            print(json.dumps({"n": number, "phase": phase or None, "text": text}))
        sys.stdout.flush()
        time.sleep(0.01)
"""
"""A builder that logs the lines of `script` in its folder, each `<phase>|<text>`.

It ends once the file `enough` exists or the folder is gone.
"""


def body(**changes: object) -> dict[str, object]:
    return {"repository": REPOSITORY, "commit": COMMIT, **changes}


def push(**changes: object) -> dict[str, object]:
    """A push to the default branch as GitHub sends it."""
    repository = {
        "html_url": REPOSITORY,
        "url": REPOSITORY,
        "clone_url": f"{REPOSITORY}.git",
        "full_name": "octo/stats",
    }
    repository |= {"default_branch": "main", "private": False, "name": "stats"}  # type: ignore[dict-item]
    head = {"id": COMMIT, "added": [], "modified": ["README.md"], "removed": []}
    facts = {"ref": "refs/heads/main", "before": "1" * 40, "after": COMMIT, "created": False, "deleted": False}
    return {**facts, "forced": False, "head_commit": head, "commits": [head], "repository": repository, **changes}


def signed(payload: object, *, event: str = "push", delivery: str = "d-1", secret: bytes = SECRET) -> dict[str, Any]:
    """Arguments for a client's `post`."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery,
        "X-Hub-Signature-256": "sha256=" + hmac.new(secret, data, hashlib.sha256).hexdigest(),
    }
    return {"data": data, "headers": headers}


def event(**changes: object) -> dict[str, object]:
    """A request for a build as a structured CloudEvent."""
    attributes = {"specversion": "1.0", "id": "e-1", "source": "/tests", "type": "dev.kiln.build.requested.v1"}
    return {**attributes, "datacontenttype": "application/json", "data": body(), **changes}


def structured(value: object, kind: str = "cloudevents") -> dict[str, Any]:
    return {"data": json.dumps(value).encode(), "headers": {"Content-Type": f"application/{kind}+json"}}


class Named:
    """An authenticator that gives every request the same identity."""

    takes = None

    def __init__(self, by: str | None, *, admin: bool = False) -> None:
        self.by = by
        self.admin = admin

    def identify(self, request: object) -> Identity:  # noqa: ARG002
        return Identity(by=self.by, admin=self.admin)


def bearer(name: str = "ci") -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name].decode()}".encode().decode("latin-1")}


@dataclass
class Harness:
    """The application and its engine; its methods act for the controller and the builder."""

    folder: Path
    engine: LocalEngine
    services: Services
    app: Flask
    tokens: dict[str, bytes]

    @property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    def builds(self) -> tuple[Build, ...]:
        return self.engine.list(limit=200).builds

    def ask(self, **changes: object) -> Build:
        answer = self.client.post("/api/v1/builds", json=body(**changes))
        assert answer.status_code == 202, answer.text
        return self.engine.get(answer.get_json()["name"])

    def run(self, name: str) -> Build:
        """Start the attempt that the build waits for, as a controller would."""
        build = self.engine.get(name)
        now = self.services.now()
        attempt = Attempt(number=build.status.attempt, node="local", written_at=now, started_at=now)
        status = change(
            build.status,
            state=State.RUNNING,
            round=max(1, build.status.round),
            started_at=now,
            attempts=(*build.status.attempts, attempt),
        )
        build = self.engine.write(change(build, status=status))
        self.engine.start(build, attempt)
        return build

    def say(self, name: str, *lines: str, attempt: int = 1, phase: str = "build") -> None:
        """Let the builder log these lines, and wait until the engine has them."""
        before = sum(1 for _ in self.engine.log(name, attempt))
        with (self.folder / "attempts" / f"{name}-{attempt}" / "script").open(
            "a", encoding="utf-8", newline="\n"
        ) as script:
            script.write("".join(f"{phase}|{line}\n" for line in lines))
        last = before + len(lines)
        until(lambda: any(line.number == last for line in self.engine.log(name, attempt, after=last - 1)))

    def end(
        self,
        name: str,
        *,
        attempt: int = 1,
        retry: bool = False,
        state: State = State.SUCCEEDED,
        **facts: Any,
    ) -> Build:
        """End the attempt, and without `retry` the build. `facts` are fields of the status: a message, a reason."""
        (self.folder / "attempts" / f"{name}-{attempt}" / "enough").touch()
        build = self.engine.get(name)
        now = self.services.now()
        *before, last = build.status.attempts
        reason = Reason.INFRASTRUCTURE if retry else None
        ended = change(last, state=State.FAILED if retry else state, reason=reason, finished_at=now)
        status = change(build.status, attempts=(*before, ended))
        if retry:
            status = change(status, state=State.QUEUED, attempt=attempt + 1, started_at=None)
        else:
            image = Image(repository=build.request.image, tag=build.request.commit, digest="sha256:" + "a" * 64)
            image_made = image if state is State.SUCCEEDED else None
            answered = tuple(cause.key for cause in build.causes)
            status = change(status, state=state, finished_at=now, image=image_made, answered=answered, **facts)
        return self.engine.write(change(build, status=status))

    def close(self) -> None:
        for script in (self.folder / "attempts").iterdir():
            (script / "enough").touch()
        self.engine.close()


def create_harness(
    folder: Path,
    *,
    auth: Sequence[str] = ("none",),
    events_auth: Sequence[str] | None = None,
    loopback_only: bool = False,
    allowed: Sequence[str] = (),
    triggers: Sequence[TriggerRule] | None = None,
    hosts: Mapping[str, HostKind] | None = None,
    max_queued: int = 1000,
    auth_gate: Gate | None = None,
    instance: str = "test",
    **changes: Any,
) -> Harness:
    engine = LocalEngine(
        folder,
        surroundings=Surroundings(),
        max_queued=max_queued,
        command=(sys.executable, "-c", SPEAKER),
    )
    policy = Policy(allowed=allowed)
    intake = Intake(
        instance=instance,
        policy=policy,
        hosts=hosts or {},
        images=ImagePolicy(PREFIX),
        resolver=RefResolver(policy),
        event_source="/kiln",
    )

    valid = dict(TOKENS)
    sessions = LocalSessions(folder / "signed-out")

    def tokens() -> Mapping[str, bytes]:
        return valid

    services = Services(
        **{
            "records": engine,
            "intake": intake,
            "triggers": load(triggers),
            "webhook_secrets": lambda word: (b"an old one", SECRET) if word == "github" else (),
            "sessions": sessions,
            "auth": auth_gate or gate(auth, tokens=tokens, ended=sessions.ended),
            "events_auth": auth_gate or gate(events_auth or auth, tokens=tokens),
            "find_image": lambda image, tag, build: None,  # noqa: ARG005
            "registry_answers": lambda: True,
            "builder_info": {"build_image": "registry.example/builder:1"},
            "version": "0.0.0",
            "cursor_keys": lambda: [*valid.values()],
            "loopback_only": loopback_only,
            **changes,
        }
    )
    return Harness(folder, engine, services, create_app(services), valid)


def frames(chunks: Iterator[bytes]) -> Iterator[dict[str, str]]:
    """Return the fields of each server-sent event, and comments as `{"comment": …}`."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n\n")
        for frame in whole:
            lines = frame.decode().split("\n")
            yield {name or "comment": value for name, _, value in (line.partition(": ") for line in lines)}
