"""Concise factories of builds, causes and attempts for tests of the plan."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import msgspec

from builds.build import (
    Attempt,
    Build,
    BuildStatus,
    Cancel,
    Cause,
    Image,
    Kind,
    Node,
    Phase,
    Push,
    Reason,
    Request,
    Resend,
    Result,
    Sighting,
    State,
    Trouble,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
IMAGE = Image(repository="r/x", tag="t", digest="sha256:" + "0" * 64)
replace = msgspec.structs.replace


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def cause(
    id_: str = "1", *, kind: Kind = Kind.PERSON, by: str | None = "user:a", push: Push | None = None, **more: object
) -> Cause:
    fields: dict[str, object] = {"source": "/s", "type": "t", "at": ago(60), "ref": "refs/heads/main", **more}
    return Cause(id=id_, kind=kind, by=by, push=push, **fields)  # type: ignore[arg-type]


def pushed(id_: str, before: str | None = None, at: float | None = None) -> Cause:
    """The cause of a push; `at` is in seconds after noon, by the host's clock."""
    time = None if at is None else NOW + timedelta(seconds=at)
    who = {"by": "webhook:github.com", "credentials": True}
    return cause(id_, kind=Kind.PUSH, push=Push(before=before, at=time), **who)  # type: ignore[arg-type]


def build(
    name: str = "b",
    *causes: Cause,
    repository: str = "https://github.com/a/b",
    commit: str = "c" * 40,
    cancel: Cancel | None = None,
    created: float = 60,
    resends: tuple[Resend, ...] = (),
    **status: object,
) -> Build:
    """A build in round 1 that waits for its first attempt, unless `status` says otherwise."""
    fields: dict[str, object] = {"round": 1, "queued_at": ago(created), **status}
    return Build(
        name=name,
        uid=f"uid-{name}",
        request=Request(repository=repository, clone_url=repository, commit=commit, image="r/x"),
        causes=causes or (cause(),),
        created_at=ago(created),
        status=BuildStatus(**fields),  # type: ignore[arg-type]
        cancel=cancel,
        resends=resends,
    )


def attempt(number: int = 1, node: str = "n1", **more: object) -> Attempt:
    fields: dict[str, object] = {"written_at": ago(30), **more}
    return Attempt(number=number, node=node, **fields)  # type: ignore[arg-type]


def failed(number: int, node: str = "n1", **more: object) -> Attempt:
    fields: dict[str, object] = {"state": State.FAILED, "reason": Reason.INFRASTRUCTURE, "message": "gone", **more}
    return attempt(number, node, **fields)


def running(name: str = "b", *causes: Cause, node: str = "n1", **more: object) -> Build:
    live = attempt(1, node, started_at=ago(20))
    return build(name, *causes, **{"state": State.RUNNING, "attempts": (live,), **more})  # type: ignore[arg-type]


def sighting_of(of: Build, phase: Phase = Phase.RUNNING, result: Result | None = None, **more: object) -> Sighting:
    assert of.live is not None
    fields: dict[str, object] = {"node": of.live.node, "started_at": of.live.started_at, **more}
    return Sighting(build=of.name, attempt=of.live.number, phase=phase, result=result, **fields)  # type: ignore[arg-type]


def unpinned(number: int = 1, **more: object) -> Attempt:
    return replace(attempt(number, **more), node=None)


ELSEWHERE = Trouble(message="0/3 nodes are available.", elsewhere=True)
NOWHERE = Trouble(message='secret "push" not found.', elsewhere=False)


def node(name: str = "n1", *, ready: bool = True, why: str | None = None) -> Node:
    return Node(name=name, ready=ready, why=why)
