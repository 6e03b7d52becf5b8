"""`builds`: untrusted input of requests: addresses, patterns, templates, bodies."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import NamedTuple

from builds.build import Kind
from builds.errors import RequestError, RuleError
from builds.image import ImagePolicy
from builds.intake import Intake
from builds.repository import HostKind, Policy, Repository, canonical, glob_match, repository_pattern
from builds.triggers import Trigger, requested_builds, template
from eventing.errors import DecodeError
from eventing.event import Event
from eventing.wire import load_json
from handlers.providers import PROVIDERS, source

HOSTS = {"git.example.edu": HostKind.GITLAB}


class Found(NamedTuple):
    ref: str | None
    commit: str


class Resolver:
    def resolve(self, repository: Repository, ref: str | None) -> Found:  # noqa: ARG002
        return Found("refs/heads/main", "a" * 40)


INTAKE = Intake(
    instance="local",
    policy=Policy(["https://**", "http://127.0.0.1:*/**"]),
    hosts=HOSTS,
    images=ImagePolicy("registry.example/org/"),
    resolver=Resolver(),
)


def repository_url(data: bytes) -> None:
    """`data`: the URL. A canonical URL is a fixed point, and its clone URL is of the same repository."""
    with suppress(RequestError):
        repository = canonical(data.decode(errors="surrogateescape"), HOSTS)
        assert canonical(repository.url, HOSTS).url == repository.url
        assert canonical(repository.clone_url, HOSTS).url == repository.url
        assert repository.clone_url.isascii()
        assert repository.clone_url.isprintable()
        Policy().check(repository)
        assert repository.scheme == "https"


def binder_spec(data: bytes) -> None:
    """`data`: `<provider>/<spec>`. A provider with its own host gives URLs on that host only."""
    provider, _, spec = data.decode(errors="replace").partition("/")
    with suppress(RequestError):
        found = source(provider, spec)
        assert found.ref
        base = PROVIDERS[provider].base
        assert base is None or found.repository.startswith(f"{base}/")
        assert base is None or canonical(found.repository).host == base.removeprefix("https://")


def trigger_template(data: bytes) -> None:
    """`data`: a template, and after a NUL the text for its placeholders."""
    text, _, value = data.decode(errors="replace").partition("\0")
    with suppress(RuleError):
        filled = template(text).fill(lambda _: value)
        assert filled.fill(lambda _: "never") == filled
        assert isinstance(filled.text(), str)


def pattern(data: bytes) -> None:
    """`data`: a pattern, and after a NUL the text."""
    text, _, matched = data.decode(errors="replace").partition("\0")
    assert glob_match(text, matched) in (True, False)
    with suppress(RuleError):
        assert repository_pattern(repository_pattern(text)) == repository_pattern(text)


def build_request(data: bytes) -> None:
    """`data`: the JSON of a request for a build, also used as the data of an event that a trigger matches."""
    triggers = [
        Trigger(
            name="a",
            repository=template("{data.repository}"),
            ref=template("{data.ref}"),
            tags=(template("{ref_name}"),),
        )
    ]
    with suppress(DecodeError, RequestError):
        value = load_json(data)
        for type_ in ("dev.kiln.build.requested.v1", "org.example.course", "com.github.push"):
            event = Event(id="1", source="/", type=type_, data=value)
            with suppress(DecodeError, RequestError):
                for want in requested_builds(triggers, event):
                    INTAKE.submission(
                        want,
                        source="/",
                        id="1",
                        type=type_,
                        by=None,
                        chooses=True,
                        kind=Kind.PUSH,
                        now=datetime(2026, 1, 1, tzinfo=UTC),
                    )
