"""Answers of other servers to Kiln: a Git host that gets a status, an issuer with its keys and tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from itertools import chain, repeat
from typing import Any, cast

from builds.clients.oidc import Issuer, IssuerAway, TokenRefused
from eventing.sinks import Outcome
from eventing.statuses import APIS, HostResponse, redirected
from eventing.statuses.exchange import Conversation
from eventing.statuses.words import Said
from tests.fuzz.message import read_message

NOW = datetime(2026, 11, 29, tzinfo=UTC)
SAID = Said(
    word="failed",
    reason="repository",
    context="kiln/courses",
    description="repository: x",
    url="https://kiln.example/builds/build-x",
    commit="0123456789abcdef0123456789abcdef01234567",
    ref="refs/heads/main",
)
REPOSITORIES = {"bitbucket-server": "https://git.example.edu/scm/our/course"}
MOST_REQUESTS = 20
HOST = "https://git.example.edu/"


def status_answers(data: bytes) -> None:
    """`data`: HTTP messages with the status before the head, and four empty lines between them; the last is repeated.

    Kiln sends the host a bounded number of requests, at its own address, and reaches an outcome.
    """
    messages = data.split(b"\n\n\n\n\n")
    for word, api in APIS.items():
        repository = REPOSITORIES.get(word, "https://git.example.edu/our-org/course")
        outcome = _outcome(api.status(repository, "git.example.edu", SAID), [_answer(each) for each in messages])
        assert isinstance(outcome, Outcome)


def _outcome(talk: Conversation, answers: Sequence[HostResponse]) -> Outcome:
    request = next(talk)
    for answer in chain(answers, repeat(answers[-1], MOST_REQUESTS)):
        assert request.url.startswith(HOST)
        moved = redirected(request, answer)
        assert moved is None or moved.url.startswith(HOST)
        try:
            request = talk.send(answer)
        except StopIteration as ended:
            return cast("Outcome", ended.value)
    raise AssertionError("it asks for ever")


def _answer(message: bytes) -> HostResponse:
    status, _, rest = message.partition(b"\n")
    headers, body = read_message(rest)
    code = int(status) if status.isdigit() and len(status) == 3 else 200
    return HostResponse(
        status=code, headers={name.lower(): value for name, value in headers.items()}, body=body, at=NOW
    )


class _Told(Issuer):
    """An issuer that publishes the given keys."""

    def __init__(self, keys: bytes) -> None:
        super().__init__("https://issuer.example")
        self._told_keys = keys

    def _call(self, method: str, url: str, **sent: Any) -> bytes:  # noqa: ARG002
        keys = b'{"issuer":"https://issuer.example","jwks_uri":"https://issuer.example/keys"}'
        return self._told_keys if url.endswith("/keys") else keys


def issuer_tokens(data: bytes) -> None:
    """`data`: a token, a line end, and the issuer's key set."""
    token, _, keys = data.partition(b"\n")
    issuer = _Told(keys)
    try:
        with suppress(TokenRefused, IssuerAway):
            claims = issuer.claims(token.decode("latin-1"), ["kiln"])
            assert claims is None or claims.all["iss"] == "https://issuer.example"
    finally:
        issuer._pool.close()
