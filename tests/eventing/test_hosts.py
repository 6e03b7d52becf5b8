"""Properties of the webhooks of every Git host, independent of its terms."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.repository import HostKind
from eventing.errors import DecodeError, EventError, SignatureError
from eventing.event import Event
from eventing.hosts import DIALECTS, Ignored, push_of, word_of
from eventing.http import decode, encode
from tests.eventing.deliveries import COMMIT, PUSHES, REPOSITORIES, SECRET, SIGNING, encoded
from tests.eventing.events import json_values

NOW = datetime.now(UTC)

SECRETS: dict[str, list[bytes]] = {"gitlab": [SECRET, SIGNING]}
"""The secrets of hosts with more than one kind of secret."""

words = pytest.mark.parametrize("word", PUSHES)


def parse(word: str, **options: object) -> Event:
    delivery = PUSHES[word](**options)
    parsed = DIALECTS[word].parse(delivery.headers, delivery.body)
    assert isinstance(parsed, list)
    (event,) = parsed
    return event


def test_a_row_per_host() -> None:
    assert [dialect.word for dialect in DIALECTS.values()] == [*DIALECTS]
    assert {*DIALECTS} == {*HostKind}, "builds/repository.py"
    assert {*PUSHES} == {*REPOSITORIES} == {*DIALECTS} - {"github"}, "PUSHES and REPOSITORIES in deliveries.py"
    types = [type_ for dialect in DIALECTS.values() for type_ in dialect.pushes]
    assert len(types) == len({*types}), "a type is of one host"


@words
def test_whose_delivery_it_is(word: str) -> None:
    assert word_of({name.lower(): value for name, value in PUSHES[word]().headers.items()}) == word


@words
def test_a_payload_alone_is_the_push_that_it_was(word: str) -> None:
    delivery = PUSHES[word]()
    made = DIALECTS[word].headers_for(json.loads(delivery.body), "d-1")
    assert word_of(made) == word
    assert DIALECTS[word].parse(made, delivery.body) == [parse(word)]
    with pytest.raises(DecodeError):
        DIALECTS[word].headers_for({"action": "created"}, "d-1")


@pytest.mark.parametrize("word", DIALECTS)
def test_what_is_signed_as_the_host_signs_is_accepted(word: str) -> None:
    dialect = DIALECTS[word]
    stale = dict.fromkeys(("X-Hub-Signature", "X-Hub-Signature-256", "X-Gitea-Signature"), "stale")
    for secret in SECRETS.get(word, [SECRET]):
        headers = dialect.signed({**stale, "X-Kept": "1"}, b"{}", secret, NOW)
        assert headers["x-kept"] == "1"
        dialect.verify(headers, b"{}", [secret], NOW)
        with pytest.raises(SignatureError):
            dialect.verify(headers, b"{}", [b"another"], NOW)


@words
def test_a_push_is_an_event_of_the_host_s_own(word: str) -> None:
    event = parse(word)
    assert event.type == f"com.{word}.push"
    assert event.source == REPOSITORIES[word]
    push = push_of(event)
    assert push is not None
    assert (push.repository, push.ref, push.commit) == (f"{REPOSITORIES[word]}.git", "refs/heads/main", COMMIT)
    assert (push.created, push.deleted) == (False, False)
    assert decode(*encode(event, "structured")) == [event]


@words
def test_a_repeated_delivery_is_the_same_event(word: str) -> None:
    assert parse(word) == parse(word)
    assert parse(word).id != parse(word, id="d-2").id


@words
def test_every_secret_is_valid(word: str) -> None:
    for secret in (b"old", b"new", b"\xff\x00"):
        delivery = PUSHES[word](secret=secret)
        DIALECTS[word].verify(delivery.headers, delivery.body, [b"old", b"new", b"\xff\x00"], NOW)
    with pytest.raises(SignatureError):
        DIALECTS[word].verify(delivery.headers, delivery.body, [b"old", b"new"], NOW)


@words
@pytest.mark.parametrize("secrets", [[], [b""]])
def test_no_secret_verifies_nothing(word: str, secrets: list[bytes]) -> None:
    for secret in (b"", SECRET):
        delivery = PUSHES[word](secret=secret)
        with pytest.raises(SignatureError):
            DIALECTS[word].verify(delivery.headers, delivery.body, secrets, NOW)


@words
def test_refusals_tell_no_secret(word: str) -> None:
    delivery = PUSHES[word](secret=b"another canary")
    for headers in (delivery.headers, {}):
        with pytest.raises(SignatureError) as refused:
            DIALECTS[word].verify(headers, delivery.body, [SECRET], NOW + timedelta(days=1))
        assert refused.value.status == 401
        assert "canary" not in str(refused.value)
        assert str(refused.value).endswith(".")


@words
@given(headers=st.dictionaries(st.text(), st.text()), body=st.binary(), secrets=st.lists(st.binary()))
def test_nobody_forges_a_signature(word: str, headers: dict[str, str], body: bytes, secrets: list[bytes]) -> None:
    for given_ in (headers, {**PUSHES[word](secret=b"another").headers, **headers}):
        with pytest.raises((SignatureError, DecodeError)):
            DIALECTS[word].verify(given_, body, secrets, NOW)


@words
@given(headers=st.dictionaries(st.text(), st.text()), value=st.binary() | json_values)
def test_whatever_is_sent(word: str, headers: dict[str, str], value: object) -> None:
    body = encoded(value)
    for given_ in (headers, {**PUSHES[word]().headers, **headers}):
        try:
            parsed = DIALECTS[word].parse(given_, body)
        except DecodeError as error:
            assert 0 < len(str(error)) < 500  # noqa: PT017
        else:
            assert isinstance(parsed, list | Ignored)


@words
@given(data=st.data(), value=json_values)
def test_whatever_is_in_a_push(word: str, data: st.DataObject, value: object) -> None:
    """Any value at any place gives either events that can be sent on and facts, or the package's own error."""
    payload = parse(word).data
    assert isinstance(payload, dict)
    place: object = payload
    for _ in range(data.draw(st.integers(0, 4))):
        below = [
            part for part in (place.values() if isinstance(place, dict) else place) if isinstance(part, dict | list)
        ]
        below = [part for part in below if part]
        if not below:
            break
        place = data.draw(st.sampled_from(below))
    key = data.draw(st.sampled_from([*place] if isinstance(place, dict) else range(len(place))))  # type: ignore[arg-type]
    place[key] = value  # type: ignore[index]
    delivery = PUSHES[word](encoded(payload))
    try:
        parsed = DIALECTS[word].parse(delivery.headers, delivery.body)
    except EventError as error:
        assert error.status == 400  # noqa: PT017
        return
    for made in parsed if isinstance(parsed, list) else []:
        assert decode(*encode(made, "structured")) == [made]
        push = push_of(made)
        assert push is None or not push.deleted


@pytest.mark.parametrize(
    ("word", "event", "payload"),
    [
        ("gitea", "package", {"action": "created"}),
        ("gitlab", "System Hook", {"event_name": "user_create", "username": "ada"}),
        ("bitbucket", "workspace:updated", {"actor": {}}),
        ("bitbucket-server", "project:modified", {"eventKey": "project:modified", "old": {}, "new": {}}),
    ],
)
def test_what_is_about_no_repository_is_no_failure(word: str, event: str, payload: dict[str, object]) -> None:
    """Hosts stop sending to a webhook whose deliveries fail."""
    delivery = PUSHES[word](payload, event)
    assert isinstance(DIALECTS[word].parse(delivery.headers, delivery.body), Ignored)


@words
@pytest.mark.parametrize("data", [None, "x", b"x", [], {}])
def test_push_in_name_only(word: str, data: object) -> None:
    for type_ in DIALECTS[word].pushes:
        with pytest.raises(DecodeError):
            push_of(Event(id="1", source="/", type=type_, data=data))


@words
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":1,"a":2}', b"{}", b"[" * 100_000])
def test_a_body_that_is_no_push(word: str, body: bytes) -> None:
    delivery = PUSHES[word](body)
    with pytest.raises(DecodeError):
        DIALECTS[word].parse(delivery.headers, delivery.body)
