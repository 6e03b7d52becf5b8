"""The webhooks of Bitbucket Cloud and Data Center: several refs in one delivery, unsigned test deliveries."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from eventing.errors import DecodeError, SignatureError
from eventing.event import Event
from eventing.hosts import DIALECTS, Ignored, PushFacts, push_of
from tests.eventing.deliveries import (
    BEFORE,
    COMMIT,
    SECRET,
    TAG,
    ZERO,
    Delivery,
    bitbucket,
    bitbucket_push,
    cloud_change,
    cloud_ref,
    hexadecimal,
    server,
    server_change,
    server_push,
)
from tests.eventing.pullrequests import server_request

CLOUD, SERVER = DIALECTS["bitbucket"], DIALECTS["bitbucket-server"]
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
BOTH = pytest.mark.parametrize(("dialect", "make"), [(CLOUD, bitbucket), (SERVER, server)])


def cloud_events(*changes: dict[str, Any]) -> list[Event]:
    delivery = bitbucket(bitbucket_push(*changes))
    parsed = CLOUD.parse(delivery.headers, delivery.body)
    assert isinstance(parsed, list)
    return parsed


def server_events(*changes: dict[str, Any], **others: object) -> list[Event]:
    delivery = server(server_push(*changes, **others))
    parsed = SERVER.parse(delivery.headers, delivery.body)
    assert isinstance(parsed, list)
    return parsed


def facts(events: list[Event]) -> PushFacts:
    (event,) = events
    push = push_of(event)
    assert push is not None
    return push


def ignored(dialect: Any, delivery: Delivery) -> str:
    parsed = dialect.parse(delivery.headers, delivery.body)
    assert isinstance(parsed, Ignored)
    return parsed.reason


class TestSignature:
    @BOTH
    def test_is_sha256_whatever_the_header_is_called(self, dialect: Any, make: Any) -> None:
        right = make()
        dialect.verify(right.headers, right.body, [b"old", SECRET], NOW)
        signature = hexadecimal(right.body)
        for value in ("", "sha256=", signature, f"sha1={signature[:40]}", f"sha256={signature.upper()}", "é€"):
            with pytest.raises(SignatureError, match="does not match"):
                dialect.verify(right.but(x_hub_signature=value).headers, right.body, [SECRET], NOW)
        for other in (None, "X-Hub-Signature-256"):
            headers = {**right.but(x_hub_signature=None).headers, **({other: f"sha256={signature}"} if other else {})}
            with pytest.raises(SignatureError, match="Missing X-Hub-Signature"):
                dialect.verify(headers, right.body, [SECRET], NOW)

    def test_a_test_of_the_connection_need_not_be_signed(self) -> None:
        """The test delivery has no effect, so its body does not matter."""
        for body in (b'{"test": true}', server().body, b"", b"{"):
            ping = Delivery({"X-Event-Key": "diagnostics:ping", "X-Request-Id": "d-1"}, body)
            SERVER.verify(ping.headers, ping.body, [SECRET], NOW)
            assert "unsigned" in ignored(SERVER, ping)

    @pytest.mark.parametrize("secrets", [[], [b""]])
    def test_unless_there_is_no_secret(self, secrets: list[bytes]) -> None:
        with pytest.raises(SignatureError):
            SERVER.verify({"X-Event-Key": "diagnostics:ping"}, b"{}", secrets, NOW)

    def test_a_wrong_signature_is_wrong_for_a_test_as_well(self) -> None:
        ping = server({"test": True}, "diagnostics:ping", secret=b"another")
        with pytest.raises(SignatureError):
            SERVER.verify(ping.headers, ping.body, [SECRET], NOW)

    @pytest.mark.parametrize("key", ["repo:refs_changed", "Diagnostics:ping", "diagnostics:ping ", ""])
    def test_nothing_else_comes_in_unsigned(self, key: str) -> None:
        with pytest.raises(SignatureError):
            SERVER.verify(server().but(x_hub_signature=None, x_event_key=key).headers, server().body, [SECRET], NOW)

    def test_cloud_has_no_such_test(self) -> None:
        ping = bitbucket({"test": True}, "diagnostics:ping").but(x_hub_signature=None)
        with pytest.raises(SignatureError):
            CLOUD.verify(ping.headers, ping.body, [SECRET], NOW)


class TestCloud:
    def test_push(self) -> None:
        (event,) = cloud_events()
        assert (event.id, event.type, event.subject) == ("d-1", "com.bitbucket.push", "refs/heads/main")
        assert event.source == "https://bitbucket.org/Team/course"
        assert facts([event]) == PushFacts(
            repository="https://bitbucket.org/Team/course.git",
            ref="refs/heads/main",
            commit=COMMIT,
            before=BEFORE,
            created=False,
            deleted=False,
            forced=False,
            pushed_at=None,
            default_branch=None,
            paths=None,
            private=True,
            message="größer\n",
            pusher="ada",
        )

    def test_many_refs_in_one_delivery(self) -> None:
        """A deleted ref gives no event. The other events have distinct ids, and a redelivery repeats those ids."""
        changes = [
            cloud_change(cloud_ref("main", "1" * 40), cloud_ref(commit=BEFORE)),
            cloud_change(None, cloud_ref("gone")),
            cloud_change(cloud_ref("feature/x", "2" * 40)),
            cloud_change(cloud_ref("v1", "3" * 40, "tag")),
        ]
        events = cloud_events(*changes)
        assert [event.id for event in events] == ["d-1.1", "d-1.3", "d-1.4"]
        assert [event.subject for event in events] == ["refs/heads/main", "refs/heads/feature/x", "refs/tags/v1"]
        assert [facts([event]).commit for event in events] == ["1" * 40, "2" * 40, "3" * 40]
        assert cloud_events(*changes) == events

    def test_new_branch(self) -> None:
        push = facts(cloud_events(cloud_change(cloud_ref())))
        assert (push.created, push.before) == (True, None)

    def test_the_page_is_not_on_the_host_of_the_api(self) -> None:
        """The documentation's examples name the API's host in the link to the page."""
        repository = bitbucket_push()["repository"]
        links = {"html": {"href": "https://api.bitbucket.org/Team/course"}}
        delivery = bitbucket(bitbucket_push(repository={**repository, "links": links}))
        assert CLOUD.parse(delivery.headers, delivery.body)[0].source == "https://bitbucket.org/Team/course"  # type: ignore[index]
        assert facts(CLOUD.parse(delivery.headers, delivery.body)) == facts(cloud_events())  # type: ignore[arg-type]

    def test_forced(self) -> None:
        assert facts(cloud_events(cloud_change(cloud_ref(), cloud_ref(commit=BEFORE), forced=True))).forced

    @pytest.mark.parametrize(
        ("kind", "ref"),
        [
            ("branch", "refs/heads/x"),
            ("named_branch", "refs/heads/x"),
            ("tag", "refs/tags/x"),
            ("annotated_tag", "refs/tags/x"),
        ],
    )
    def test_kinds_of_refs(self, kind: str, ref: str) -> None:
        assert facts(cloud_events(cloud_change(cloud_ref("x", type=kind)))).ref == ref

    def test_what_is_on_no_commit_has_to_be_looked_up(self) -> None:
        tag = {"type": "tag", "name": "v1", "target": {"type": "tag", "hash": TAG}}
        push = facts(cloud_events(cloud_change(tag)))
        assert (push.commit, push.look_up) == (None, True)

    @pytest.mark.parametrize("changes", [[cloud_change(None, cloud_ref())], []])
    def test_nothing_to_build(self, changes: list[dict[str, Any]]) -> None:
        assert ignored(CLOUD, bitbucket(bitbucket_push(push={"changes": changes})))

    def test_others_can_be_filtered(self) -> None:
        opened = bitbucket({**bitbucket_push(), "pullrequest": {"id": 7}}, "pullrequest:created")
        (event,) = CLOUD.parse(opened.headers, opened.body)  # type: ignore[misc]
        assert (event.type, event.subject) == ("com.bitbucket.pullrequest.created", "7")
        assert push_of(event) is None

    def test_main_branch_where_it_is_said(self) -> None:
        repository = {**bitbucket_push()["repository"], "mainbranch": {"type": "branch", "name": "trunk"}}
        delivery = bitbucket(bitbucket_push(repository=repository))
        assert facts(CLOUD.parse(delivery.headers, delivery.body)).default_branch == "trunk"  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "change",
        [
            {}, {"new": None, "old": None}, {"new": 5}, {"new": {}}, {"new": {**cloud_ref(), "type": "wiki"}},
            {"new": {**cloud_ref(), "name": "a b"}}, {"new": {**cloud_ref(), "name": ""}},
            {"new": {**cloud_ref(), "target": None}}, {"new": cloud_ref(commit="main")},
            {"new": cloud_ref(commit="c" * 12)},
        ],
    )  # fmt: skip
    def test_wrong_types(self, change: dict[str, Any]) -> None:
        with pytest.raises(DecodeError, match=r"^This is not a push of Bitbucket's: "):
            cloud_events(change)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("x_request_uuid", None),
            ("x_event_key", None),
            ("x_event_key", "push"),
            ("x_event_key", "repo:push\n"),
            ("x_event_key", "Repo:Push"),
        ],
    )
    def test_headers(self, name: str, value: str | None) -> None:
        with pytest.raises(DecodeError):
            CLOUD.parse(bitbucket().but(**{name: value}).headers, bitbucket().body)


class TestServer:
    def test_push(self) -> None:
        (event,) = server_events()
        assert (event.id, event.type, event.subject) == ("d-1", "com.bitbucket-server.push", "refs/heads/main")
        assert event.source == "https://git.example.com/scm/lab/sample"
        assert facts([event]) == PushFacts(
            repository="https://git.example.com/scm/lab/sample.git",
            ref="refs/heads/main",
            commit=COMMIT,
            before=BEFORE,
            created=False,
            deleted=False,
            forced=False,
            pushed_at=datetime(2026, 11, 29, 2, 45, 32, tzinfo=UTC),
            default_branch=None,
            paths=None,
            private=True,
            message="größer",
            pusher="ada",
        )

    def test_many_refs_in_one_delivery(self) -> None:
        """In a delivery with several refs, no field says which commit a tag points to."""
        changes = [
            server_change(after="1" * 40),
            server_change("refs/heads/gone", after=ZERO),
            server_change("refs/tags/v1", before=ZERO, after=TAG),
        ]
        events = server_events(*changes)
        assert [event.id for event in events] == ["d-1.1", "d-1.3"]
        branch, tag = (facts([event]) for event in events)
        assert (branch.ref, branch.commit) == ("refs/heads/main", "1" * 40)
        assert (tag.ref, tag.commit, tag.look_up) == ("refs/tags/v1", None, True)
        assert server_events(*changes) == events

    def test_annotated_tag(self) -> None:
        change = server_change("refs/tags/v1", before=ZERO, after=TAG)
        assert facts(server_events(change)).commit == COMMIT
        old = facts(server_events(change, toCommit=None))
        assert (old.commit, old.look_up) == (None, True)

    def test_new_branch(self) -> None:
        push = facts(server_events(server_change(before=ZERO)))
        assert (push.created, push.before) == (True, None)

    @pytest.mark.parametrize("changes", [[server_change(after=ZERO)], []])
    def test_nothing_to_build(self, changes: list[dict[str, Any]]) -> None:
        assert ignored(SERVER, server(server_push(changes=changes)))

    @pytest.mark.parametrize(
        ("date", "at"),
        [
            ("2017-09-19T09:45:32+1000", datetime(2017, 9, 18, 23, 45, 32, tzinfo=UTC)),
            ("2017-09-19T09:45:32+10:00", datetime(2017, 9, 18, 23, 45, 32, tzinfo=UTC)),
            ("2017-09-19T09:45:32Z", datetime(2017, 9, 19, 9, 45, 32, tzinfo=UTC)),
            ("2017-09-19T09:45:32", None),
            ("0001-01-01T00:00:00+1000", None),
            ("yesterday", None),
            (None, None),
        ],
    )
    def test_when_it_was_pushed(self, date: str | None, at: datetime | None) -> None:
        assert facts(server_events(date=date)).pushed_at == at

    def test_the_name_of_who_pushed_is_no_part_of_the_url(self) -> None:
        repository = server_push()["repository"]
        links = {"clone": [{"href": "https://ada@git.example.com/scm/lab/sample.git", "name": "http"}]}
        assert facts(server_events(repository={**repository, "links": links})) == facts(server_events())

    def test_without_links_nobody_knows_where_it_is(self) -> None:
        """Links are missing before version 5.13, and without a base URL."""
        repository = server_push()["repository"]
        del repository["links"]
        with pytest.raises(DecodeError, match="base URL"):
            server_events(repository=repository)

    def test_others_can_be_filtered(self) -> None:
        repository = server_push()["repository"]
        for key, payload, subject, source in (
            ("repo:forked", {"repository": repository}, None, "https://git.example.com/scm/lab/sample"),
            (
                "pr:reviewer:approved",
                server_request("pr:reviewer:approved"),
                "7",
                "https://git.example.com/scm/lab/sample",
            ),
        ):
            delivery = server(payload, key)
            (event,) = SERVER.parse(delivery.headers, delivery.body)  # type: ignore[misc]
            type_ = f"com.bitbucket-server.{key.replace(':', '.')}"
            assert (event.type, event.subject, event.source) == (type_, subject, source)

    @pytest.mark.parametrize(
        "change",
        [
            {}, {**server_change(), "refId": "main"}, {**server_change(), "toHash": None},
            {**server_change(), "fromHash": "abc"}, {**server_change(), "refId": "refs/heads/a b"}, 5,
        ],
    )  # fmt: skip
    def test_wrong_types(self, change: dict[str, Any]) -> None:
        with pytest.raises(DecodeError, match=r"^This is not a push of Bitbucket's: "):
            server_events(change)
