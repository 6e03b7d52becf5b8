"""GitHub's webhooks: their signatures, their events, and the facts of a push."""

from __future__ import annotations

import hashlib
import hmac
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.errors import DecodeError, SignatureError
from eventing.event import Event
from eventing.hosts import DIALECTS, Ignored, PushFacts, push_of, word_of
from eventing.http import decode, encode
from eventing.wire import load_json, load_object
from tests.eventing.events import events, json_values
from tests.parts.published_data import published_data

GITHUB = DIALECTS["github"]
SAMPLES = Path(__file__).parent / "samples" / "github"
DELIVERY = "72d3162e-cc78-11e3-81ab-4c9367dc0958"
SECRET = b"It's a Secret to Everybody"

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
OLD = "0b19f9d6f2ba0d5cc2d4b4f6f4d4b0bb2ba9d6a9"
WEEK_3, TYPO = (commit["id"] for commit in json.loads((SAMPLES / "push.json").read_text())["commits"])


def headers(event: str = "push", /, **changes: str | None) -> dict[str, str]:
    given = {"Content-Type": "application/json", "X-GitHub-Event": event, "X-GitHub-Delivery": DELIVERY}
    return {name: value for name, value in {**given, **changes}.items() if value is not None}


def sample(name: str) -> dict[str, Any]:
    payload: dict[str, Any] = json.loads((SAMPLES / f"{name}.json").read_text())
    return payload


def parse(payload: object, event: str = "push") -> Event:
    parsed = GITHUB.parse(headers(event), json.dumps(payload).encode())
    assert isinstance(parsed, list)
    (made,) = parsed
    return made


def facts(name: str, **changes: object) -> PushFacts:
    push = push_of(Event(id="1", source="/", type="com.github.push", data={**sample(name), **changes}))
    assert push is not None
    return push


def signed(body: bytes, secret: bytes = SECRET) -> dict[str, str]:
    return {"X-Hub-Signature-256": "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()}


class TestSignature:
    def test_as_github_documents_it(self) -> None:
        """The example of https://docs.github.com/en/webhooks/using-webhooks/validating-webhook-deliveries."""
        signature = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
        GITHUB.verify({"X-Hub-Signature-256": signature}, b"Hello, World!", [SECRET])

    def test_raw_bytes(self) -> None:
        body = b'{"a":\t1}\xff'
        GITHUB.verify(signed(body), body, [SECRET])
        with pytest.raises(SignatureError):
            GITHUB.verify(signed(b'{"a":1}'), body, [SECRET])

    def test_every_secret_is_valid(self) -> None:
        for secret in (b"old", b"new", b"\xff\x00"):
            GITHUB.verify(signed(b"x", secret), b"x", [b"old", b"new", b"\xff\x00"])
        with pytest.raises(SignatureError):
            GITHUB.verify(signed(b"x", b"other"), b"x", [b"old", b"new"])

    @pytest.mark.parametrize("secrets", [[], [b""]])
    def test_no_secret_verifies_nothing(self, secrets: list[bytes]) -> None:
        with pytest.raises(SignatureError):
            GITHUB.verify(signed(b"x", b""), b"x", secrets)

    def test_sha1_is_not_looked_at(self) -> None:
        sha1 = hmac.new(SECRET, b"x", hashlib.sha1).hexdigest()
        for name in ("X-Hub-Signature", "X-Hub-Signature-256"):
            with pytest.raises(SignatureError):
                GITHUB.verify({name: f"sha1={sha1}"}, b"x", [SECRET])
        with pytest.raises(SignatureError):
            GITHUB.verify({"X-Hub-Signature": signed(b"x")["X-Hub-Signature-256"]}, b"x", [SECRET])

    def test_anything_else(self) -> None:
        good = signed(b"x")["X-Hub-Signature-256"]
        for value in (
            "",
            "sha256=",
            good.removeprefix("sha256="),
            good.upper(),
            good + " ",
            good[:-1],
            "\xe9",
            "é€",
            "\ud800",
        ):
            with pytest.raises(SignatureError) as refused:
                GITHUB.verify({"X-Hub-Signature-256": value}, b"x", [SECRET])
            assert refused.value.status == 401
            assert good.removeprefix("sha256=") not in str(refused.value)

    @pytest.mark.parametrize(
        ("sent", "sentence"),
        [
            ({}, "Missing X-Hub-Signature-256. Set the webhook's secret."),
            ({"X-Hub-Signature": f"sha1={'0' * 40}"}, "X-Hub-Signature (SHA-1) is not accepted"),
            ({"X-Hub-Signature-256": f"sha1={'0' * 40}"}, "X-Hub-Signature-256 is not `sha256=` and 64 hexadecimal"),
            (signed(b"y"), "X-Hub-Signature-256 does not match this webhook's secret, or a proxy"),
            (signed(b"x", b"another"), "X-Hub-Signature-256 does not match this webhook's secret, or a proxy"),
        ],
    )
    def test_what_is_wrong_is_said(self, sent: dict[str, str], sentence: str) -> None:
        with pytest.raises(SignatureError) as refused:
            GITHUB.verify(sent, b"x", [SECRET])
        assert str(refused.value).startswith(sentence)

    def test_signed_as_a_form_and_sent_as_json_and_the_other_way_round(self) -> None:
        body = json.dumps(sample("push"), ensure_ascii=False).encode() + b' "~*-._'
        form = urlencode({"payload": body}, safe="*").replace("~", "%7E").encode()
        types = {"Content-Type": "application/json"}, {"Content-Type": "application/x-www-form-urlencoded"}
        for type_, sent, over in ((types[0], body, form), (types[1], form, body)):
            for secrets, sentence in (([SECRET], "another form of this payload"), ([b"another"], "secret")):
                with pytest.raises(SignatureError, match=sentence):
                    GITHUB.verify({**type_, **signed(over)}, sent, secrets)

    @given(st.dictionaries(st.just("x-hub-signature-256") | st.text(), st.text()), st.binary(), st.lists(st.binary()))
    def test_whatever_is_sent(self, headers: dict[str, str], body: bytes, secrets: list[bytes]) -> None:
        with pytest.raises((SignatureError, DecodeError)):
            GITHUB.verify(headers, body, secrets)


class TestEvents:
    def test_push(self) -> None:
        payload = sample("push")
        assert parse(payload) == Event(
            id=DELIVERY,
            source="https://github.com/uni-example/stats-101",
            type="com.github.push",
            subject="refs/heads/main",
            datacontenttype="application/json",
            data=payload,
        )

    def test_form(self) -> None:
        """The signature covers the form; the event comes from the JSON in it."""
        body = urlencode({"payload": json.dumps(sample("push"), ensure_ascii=False)}).encode()
        GITHUB.verify(signed(body), body, [SECRET])
        (event,) = GITHUB.parse(headers(**{"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}), body)  # type: ignore[misc]
        assert event == parse(sample("push"))

    def test_form_with_anything_else(self) -> None:
        form = headers("star", **{"Content-Type": "application/x-www-form-urlencoded"})
        good = b"payload=" + quote('{"repository": {"url": "https://h.example/r"}, "a": "%"}').encode()
        assert isinstance(GITHUB.parse(form, good), list)
        one = "The form must have exactly one field with a value."
        for body, sentence in {
            b"": one,
            b"payload": one,
            b"payload=": one,
            good.replace(b"%25", b"%FF"): "This is not UTF-8 (byte 53).",
            good.replace(b"%25", b"\xff"): "This is not UTF-8 (byte 53).",
            good + b"&" + good: one,
            good + b"&a=b": one,
            good + b"&a=": one,
            good + b"&": one,
            b"over" + good: "The form's field must be named payload.",
        }.items():
            with pytest.raises(DecodeError) as refused:
                GITHUB.parse(form, body)
            assert str(refused.value) == sentence

    @pytest.mark.parametrize("event", ["ping", "create", "delete"])
    def test_ignored(self, event: str) -> None:
        ignored = GITHUB.parse(headers(event), json.dumps(sample("ping")).encode())
        assert isinstance(ignored, Ignored)
        assert ignored.reason.endswith(".")

    def test_deletion_is_ignored(self) -> None:
        ignored = Ignored("The branch or tag was deleted. Nothing to build.")
        assert GITHUB.parse(headers(), (SAMPLES / "push-deleted.json").read_bytes()) == ignored

    def test_others_can_be_filtered(self) -> None:
        event = parse(sample("release"), "release")
        assert (event.type, event.subject) == ("com.github.release.published", "88123")
        assert event.source == "https://api.github.com/repos/uni-example/stats-101"

    @pytest.mark.parametrize(
        ("event", "payload", "type_", "subject"),
        [
            ("pull_request", {"action": "opened", "number": 7}, "com.github.pull_request.opened", "7"),
            ("workflow_run", {"action": "done", "workflow": {"name": "CI"}}, "com.github.workflow_run.done", "CI"),
            ("workflow_dispatch", {"workflow": "b.yml"}, "com.github.workflow_dispatch", "b.yml"),
            ("workflow_dispatch", {"workflow": ""}, "com.github.workflow_dispatch", None),
            ("deployment", {"action": "created", "deployment": {"id": 5}}, "com.github.deployment", "5"),
            ("deployment_status", {"deployment_status": {"state": "x"}}, "com.github.deployment_status.x", None),
            ("membership", {"action": "added", "scope": "team"}, "com.github.membership.team.added", None),
            ("fork", {"forkee": {}}, "com.github.fork", None),
            ("star", {"action": "", "number": True}, "com.github.star", None),
        ],
    )  # fmt: skip
    def test_types_and_subjects_of_the_adapter(
        self, event: str, payload: dict[str, object], type_: str, subject: str | None
    ) -> None:
        made = parse({"repository": {"url": "https://h.example/r"}, **payload}, event)
        assert (made.type, made.subject, made.source) == (type_, subject, "https://h.example/r")

    @pytest.mark.parametrize(
        "payload",
        [
            {"organization": {"url": "https://h.example/o"}},
            {"installation": {"account": {"url": "https://h.example/o"}}},
        ],
    )
    def test_source_without_repository(self, payload: dict[str, object]) -> None:
        made = parse({"action": "x", "sender": {"url": "https://h.example/u"}, **payload}, "organization")
        assert made.source == "https://h.example/o"

    @pytest.mark.parametrize("name", ["X-GitHub-Delivery", "X-GitHub-Event", "Content-Type"])
    def test_missing_header(self, name: str) -> None:
        for value in (None, ""):
            with pytest.raises(DecodeError) as refused:
                GITHUB.parse(headers(**{name: value}), json.dumps(sample("push")).encode())
            assert (refused.value.status, str(refused.value)) == (400, f"The header {name} is missing.")

    @pytest.mark.parametrize(
        ("sent", "body", "sentence"),
        [
            (headers("a push"), b"{}", "X-GitHub-Event is not the name of an event."),
            (headers(**{"Content-Type": "text/xml"}), b"{}", "Set the webhook's content type to application/json."),
            (headers(), b"[]", "The payload is not a JSON object."),
            (
                headers(),
                b'{"repository": {"url": "/"}}',
                "This is not a push of GitHub's: Object missing required field `clone_url` - at `$.repository`.",
            ),
        ],
    )
    def test_what_is_wrong_is_said(self, sent: dict[str, str], body: bytes, sentence: str) -> None:
        with pytest.raises(DecodeError) as refused:
            GITHUB.parse(sent, body)
        assert str(refused.value) == sentence

    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b'{"a":1,"a":2}', b"{}", b"[" * 100_000])
    def test_bad_body(self, body: bytes) -> None:
        with pytest.raises(DecodeError):
            GITHUB.parse(headers(), body)

    @pytest.mark.parametrize("event", ["Push", "push.x", "../push", "", "p" * 65, "push\n", "é"])
    def test_bad_event_name(self, event: str) -> None:
        with pytest.raises(DecodeError):
            GITHUB.parse(headers(event), json.dumps(sample("push")).encode())

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            ("repository", []), ("repository", None), ("repository", "x"), ("repository", 5), ("repository", {}),
            ("repository.url", "not a url"), ("repository.clone_url", 5), ("repository.clone_url", None),
            ("repository.default_branch", []), ("repository.private", "no"), ("repository.pushed_at", "today"),
            ("repository.pushed_at", -1), ("repository.pushed_at", 10**12),
            ("repository.pushed_at", "2026-09-14T10:00:00"),
            ("ref", None), ("ref", []), ("ref", "main"), ("ref", "refs/"), ("ref", "refs/heads/a b"),
            ("ref", "refs/heads/a\n"),
            ("ref", "--upload-pack=x"), ("before", None), ("before", "abc"), ("before", 0), ("after", "z" * 40),
            ("after", "A" * 40), ("after", "a" * 40 + "\n"), ("created", "no"), ("deleted", 0), ("forced", None),
            ("head_commit", []), ("head_commit", "x"), ("head_commit.id", None), ("head_commit.id", "main"),
            ("commits", {}), ("commits", 5), ("commits", [5]), ("commits", [{}]), ("commits.0.added", "x"),
            ("commits.0.added", [5]),
        ],
    )  # fmt: skip
    def test_wrong_types(self, path: str, value: object) -> None:
        payload = sample("push")
        *parents, last = path.split(".")
        place: Any = payload
        for name in parents:
            place = place[int(name) if name.isdigit() else name]
        place[last] = value
        with pytest.raises(DecodeError) as refused:
            parse(payload)
        assert refused.value.status == 400

    @given(
        st.dictionaries(st.text(), st.text()), st.binary() | json_values.map(lambda value: json.dumps(value).encode())
    )
    def test_whatever_is_sent(self, others: dict[str, str], body: bytes) -> None:
        for sent in (others, {**others, **headers()}, {**others, **headers("release")}):
            try:
                parsed = GITHUB.parse(sent, body)
            except DecodeError as error:
                assert 0 < len(str(error)) < 500  # noqa: PT017
            else:
                assert isinstance(parsed, list | Ignored)

    @given(
        st.sampled_from(["push", "push-annotated-tag", "push-deleted", "release"]),
        st.sampled_from(
            ["ref", "before", "after", "repository", "commits", "head_commit", "deleted", "sender", "release"]
        ),
        json_values,
    )
    def test_whatever_is_in_it(self, name: str, member: str, value: object) -> None:
        event, payload = name.partition("-")[0], {**sample(name), member: value}
        try:
            parsed = GITHUB.parse(headers(event), json.dumps(payload).encode())
        except DecodeError:
            return
        for made in parsed if isinstance(parsed, list) else []:
            push_of(made)
            assert decode(*encode(made, "structured")) == [made]


class TestFacts:
    def test_ordinary_push(self) -> None:
        before = sample("push")["before"]
        assert facts("push") == PushFacts(
            repository="https://github.com/uni-example/stats-101.git",
            ref="refs/heads/main",
            commit=TYPO,
            before=before,
            created=False,
            deleted=False,
            forced=False,
            pushed_at=datetime(2026, 9, 14, 8, 1, 39, tzinfo=UTC),
            default_branch="main",
            paths=("binder/environment.yml", "data/café.csv", "week3/intervals.ipynb"),
            private=False,
            message="Mend a typo; the caf\u00e9 data is not used any more",
            pusher="rosa",
        )

    def test_new_branch(self) -> None:
        push = facts("push-new-branch")
        assert (push.commit, push.before, push.created, push.paths) == (TYPO, None, True, None)

    def test_forced(self) -> None:
        """No commit of the push lists the commits that the force removed, so the paths are unknown."""
        push = facts("push-forced")
        assert (push.commit, push.forced, push.paths) == (WEEK_3, True, None)
        assert push.before == sample("push-forced")["before"]

    def test_tag(self) -> None:
        assert facts("push-tag").ref == "refs/tags/v1.0"
        assert facts("push-tag").commit == TYPO

    def test_annotated_tag(self) -> None:
        """`after` is the hash of the tag object; Kiln builds the commit that it points to."""
        assert facts("push-annotated-tag").commit == TYPO != sample("push-annotated-tag")["after"]
        without = facts("push-annotated-tag", head_commit=None)
        assert (without.commit, without.look_up, without.deleted) == (None, True, False)
        assert not facts("push-annotated-tag").look_up

    def test_deletion(self) -> None:
        push = facts("push-deleted")
        assert (push.commit, push.before, push.deleted, push.paths) == (None, TYPO, True, None)

    def test_hashes_tell_without_flags(self) -> None:
        for zero in ("0" * 40, "0" * 64):
            assert facts("push", before=zero).created
            assert facts("push", after=zero, head_commit=None).deleted

    def test_without_head_commit(self) -> None:
        assert facts("push", head_commit=None).commit == sample("push")["after"]

    def test_sha256_repository(self) -> None:
        assert facts("push", after="a" * 64, head_commit={"id": "a" * 64}).commit == "a" * 64

    @pytest.mark.parametrize(("count", "known"), [(0, False), (1, True), (20, True), (2047, True), (2048, False)])
    def test_a_list_of_commits_may_be_cut(self, count: int, known: bool) -> None:
        commit = {**sample("push")["commits"][0]}
        assert (facts("push", commits=[commit] * count).paths is not None) is known

    @pytest.mark.parametrize(("count", "known"), [(0, False), (1, True), (2999, True), (3000, False)])
    def test_a_list_of_files_may_be_cut(self, count: int, known: bool) -> None:
        files = [f"{number}.txt" for number in range(count)]
        whole = {**sample("push")["commits"][0]}
        commit = {"id": WEEK_3, "added": files[:1000], "modified": files[1000:2000], "removed": files[2000:]}
        for commits in ([commit], [commit, whole], [whole, commit]):
            assert (facts("push", commits=commits).paths is not None) is known

    @pytest.mark.parametrize("commit", [{"added": None, "modified": ["a"], "removed": []}, {"added": ["a"]}, {}])
    def test_commits_that_do_not_list_their_files(self, commit: dict[str, object]) -> None:
        assert facts("push", commits=[{"id": WEEK_3, **commit}]).paths is None

    @given(st.lists(st.lists(st.text(), min_size=1, max_size=3), min_size=1, max_size=3))
    def test_paths_of_a_large_push(self, files: list[list[str]]) -> None:
        """The commits of a large push are parsed one by one, and the result is the same."""
        commits = [{"id": WEEK_3, "added": part[:1], "modified": part[1:2], "removed": part[2:]} for part in files]
        text = json.dumps({**sample("push"), "commits": commits}, ensure_ascii=False).encode(errors="replace")
        ordinary, large = (
            Event(id="1", source="/", type="com.github.push", data=data)
            for data in (load_json(text), load_object(text, pieces="commits"))
        )
        assert large == ordinary
        push = push_of(large)
        assert push == push_of(ordinary)
        assert push is not None
        assert push.paths is not None
        assert len(list(push.paths)) == len(list(push.paths)) == sum(map(len, files))

    def test_large_push(self) -> None:
        payload = {**sample("push"), "commits": sample("push")["commits"] * 1000}
        event = parse(payload)
        assert event.data == payload
        assert push_of(event) == push_of(parse(sample("push")))
        assert decode(*encode(event, "structured")) == [event]

    @pytest.mark.parametrize("commit", ["{}", "5", '{"id": 1, "id": 1}', "NaN", '{"id": "\xff"}', "[" * 2000, "]", ""])
    def test_large_push_with_a_bad_commit(self, commit: str) -> None:
        body = json.dumps({**sample("push"), "commits": sample("push")["commits"] * 1000})
        for bad in (body.replace('"commits": [', f'"commits": [{commit}, '), body.replace("{", '{"ref": 1, ', 1)):
            with pytest.raises(DecodeError):
                GITHUB.parse(headers(), bad.encode("latin-1"))

    def test_pushed_at_as_text(self) -> None:
        repository = {**sample("push")["repository"], "pushed_at": "2026-09-14T10:01:39+02:00"}
        assert facts("push", repository=repository).pushed_at == facts("push").pushed_at
        assert facts("push", repository={"clone_url": "x"}).pushed_at is None

    def test_through_knative(self) -> None:
        event = parse(sample("push"))
        knative = msgspec.structs.replace(event, type="dev.knative.source.github.push", subject=TYPO)
        assert push_of(knative) == push_of(event)

    @pytest.mark.parametrize("data", [None, "x", b"x", [], {}])
    def test_push_in_name_only(self, data: object) -> None:
        with pytest.raises(DecodeError):
            push_of(Event(id="1", source="/", type="com.github.push", data=data))

    @given(events())
    def test_other_events_are_no_pushes(self, event: Event) -> None:
        assert push_of(event) is None


class TestPublished:
    """Deliveries recorded from GitHub."""

    def test_new_branch(self) -> None:
        (event,) = GITHUB.parse(headers(), published_data("github/push-new-branch.json").read_bytes())  # type: ignore[misc]
        assert event.source == "https://github.com/Codertocat/Hello-World"
        push = push_of(event)
        assert push is not None
        assert (push.ref, push.commit, push.created, push.before, push.private) == (
            "refs/heads/master", "6113728f27ae82c7b1a177c8d03f9e96e0adf246", True, None, False,
        )  # fmt: skip
        assert push.pushed_at is not None

    def test_ordinary_push_derived_from_it(self) -> None:
        payload = json.loads(published_data("github/push-new-branch.json").read_bytes())
        push = push_of(parse({**payload, "created": False, "before": OLD}))
        assert push is not None
        assert (push.before, push.created, push.paths) == (OLD, False, ("README.md",))

    @pytest.mark.parametrize(("name", "event"), [("push-tag-deleted", "push"), ("delete", "delete"), ("ping", "ping")])
    def test_nothing_to_do(self, name: str, event: str) -> None:
        body = published_data(f"github/{name}.json").read_bytes()
        assert isinstance(GITHUB.parse(headers(event), body), Ignored)
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        assert isinstance(GITHUB.parse(headers(event, **form), b"payload=" + quote(body).encode()), Ignored)

    def test_tag_deleted(self) -> None:
        payload = json.loads(published_data("github/push-tag-deleted.json").read_bytes())
        push = push_of(Event(id="1", source="/", type="com.github.push", data=payload))
        assert push is not None
        assert (push.deleted, push.commit) == (True, None)


class TestPayloadAlone:
    """Payloads saved without their headers."""

    @pytest.mark.parametrize(
        ("name", "event"), [("push", "push"), ("push-tag", "push"), ("ping", "ping"), ("release", "release")]
    )
    def test_its_headers_say_what_it_is(self, name: str, event: str) -> None:
        body = (SAMPLES / f"{name}.json").read_bytes()
        made = GITHUB.headers_for(json.loads(body), DELIVERY)
        assert made["x-github-event"] == event
        assert word_of(made) == "github"
        assert GITHUB.parse(made, body) == GITHUB.parse(headers(event), body)

    def test_what_shows_no_event_is_refused(self) -> None:
        with pytest.raises(DecodeError, match="X-GitHub-Event"):
            GITHUB.headers_for({"action": "created"}, DELIVERY)
