"""GitLab's webhooks: secret tokens, timestamped signatures, and the facts of a push."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventing.errors import DecodeError, SignatureError
from eventing.event import Event
from eventing.hosts import DIALECTS, Ignored, PushFacts, push_of
from eventing.hosts.standardwebhooks import headers, verify
from tests.eventing.deliveries import (
    BEFORE,
    COMMIT,
    SECRET,
    SIGNING,
    TAG,
    ZERO,
    Delivery,
    gitlab,
    gitlab_push,
    gitlab_signed,
)

GITLAB = DIALECTS["gitlab"]
NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
OTHER = b"whsec_" + base64.b64encode(b"another canary, also for signing")


def parse(payload: object = None, delivery: Delivery | None = None) -> Event:
    delivery = delivery or gitlab(payload)
    parsed = GITLAB.parse(delivery.headers, delivery.body)
    assert isinstance(parsed, list)
    (event,) = parsed
    return event


def facts(**changes: object) -> PushFacts:
    push = push_of(Event(id="1", source="/", type="com.gitlab.push", data=gitlab_push(**changes)))
    assert push is not None
    return push


def refused(delivery: Delivery, *secrets: bytes, at: datetime = NOW) -> str:
    with pytest.raises(SignatureError) as error:
        GITLAB.verify(delivery.headers, delivery.body, secrets, at)
    assert "canary" not in str(error.value)
    return str(error.value)


class TestSecretToken:
    def test_is_compared_as_bytes(self) -> None:
        for secret in (SECRET, "zweites Kännchen".encode()):
            delivery = gitlab(secret=secret)
            GITLAB.verify(delivery.headers, delivery.body, [b"old", secret], NOW)
            assert refused(delivery, b"old")

    @pytest.mark.parametrize("value", ["", "a canary", "a canary of the webhooks ", "A canary of the webhooks", "é€"])
    def test_anything_else(self, value: str) -> None:
        assert refused(gitlab().but(x_gitlab_token=value), SECRET)

    def test_missing(self) -> None:
        assert refused(gitlab().but(x_gitlab_token=None), SECRET).startswith("Missing X-Gitlab-Token")

    def test_a_signing_token_is_never_taken_in_the_clear(self) -> None:
        assert refused(gitlab(secret=SIGNING), SIGNING)


class TestSigningToken:
    def test_vector_of_standard_webhooks(self) -> None:
        """https://github.com/standard-webhooks/standard-webhooks, the tests of its libraries."""
        sent = {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        }
        key, at = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", datetime.fromtimestamp(1614265330, UTC)
        body = b'{"test": 2432232314}'
        verify(sent, body, [key], at)
        assert headers(sent["webhook-id"], body, key, at) == sent
        for wrong in (b'{"test": 2432232315}', b'{"test":2432232314}', b""):
            with pytest.raises(SignatureError):
                verify(sent, wrong, [key], at)

    def test_signs_without_a_secret_token(self) -> None:
        delivery = gitlab_signed(at=NOW)
        GITLAB.verify(delivery.headers, delivery.body, [SECRET, OTHER, SIGNING], NOW)
        assert refused(delivery, OTHER)
        assert refused(delivery, SECRET), "a signature needs its key"

    @pytest.mark.parametrize("seconds", [-300, 0, 300])
    def test_within_the_tolerance(self, seconds: int) -> None:
        delivery = gitlab_signed(at=NOW)
        GITLAB.verify(delivery.headers, delivery.body, [SIGNING], NOW + timedelta(seconds=seconds))

    @pytest.mark.parametrize("seconds", [-301, 301, 3600, 10**9])
    def test_replayed_after_the_tolerance(self, seconds: int) -> None:
        assert "5 minutes" in refused(gitlab_signed(at=NOW), SIGNING, at=NOW + timedelta(seconds=seconds))

    def test_a_secret_token_makes_no_old_or_wrong_signature_good(self) -> None:
        both = gitlab_signed(at=NOW).but(x_gitlab_token=SECRET.decode())
        GITLAB.verify(both.headers, both.body, [SECRET, SIGNING], NOW)
        assert refused(both, SECRET, SIGNING, at=NOW + timedelta(hours=1))
        assert refused(both.but(webhook_signature="v1,AAAA"), SECRET, SIGNING)
        GITLAB.verify(both.headers, both.body, [SECRET], NOW + timedelta(hours=1))

    def test_one_of_several_signatures_is_enough(self) -> None:
        delivery = gitlab_signed(at=NOW, keys=(OTHER, SIGNING))
        for key in (OTHER, SIGNING):
            GITLAB.verify(delivery.headers, delivery.body, [key], NOW)
        others = f"v1a,abc {delivery.headers['webhook-signature']} v2,def"
        GITLAB.verify(delivery.but(webhook_signature=others).headers, delivery.body, [SIGNING], NOW)

    @pytest.mark.parametrize(
        "changes",
        [
            {"webhook_id": None}, {"webhook_id": ""}, {"webhook_id": "d-2"}, {"webhook_timestamp": None},
            {"webhook_timestamp": ""}, {"webhook_timestamp": "now"}, {"webhook_timestamp": "-1"},
            {"webhook_timestamp": "1e9"}, {"webhook_timestamp": "9" * 12}, {"webhook_timestamp": "9" * 11},
            {"webhook_timestamp": "٣"}, {"webhook_signature": ""}, {"webhook_signature": "v1"},
            {"webhook_signature": "v1,"}, {"webhook_signature": "é€"}, {"webhook_signature": "v1,\ud800"},
        ],
    )  # fmt: skip
    def test_malformed(self, changes: dict[str, str | None]) -> None:
        assert refused(gitlab_signed(at=NOW).but(**changes), SIGNING)

    def test_no_other_kind_of_signature(self) -> None:
        delivery = gitlab_signed(at=NOW)
        for kind in ("v1a", "v2", "V1", ""):
            other = delivery.headers["webhook-signature"].replace("v1", kind)
            assert refused(delivery.but(webhook_signature=other), SIGNING)

    @pytest.mark.parametrize("key", [b"whsec_", b"whsec_*", b"whsec_YQ", b"whsec_\xff"])
    def test_a_key_that_is_none_signs_nothing(self, key: bytes) -> None:
        assert refused(gitlab_signed(at=NOW, keys=(b"whsec_",)), key)

    @given(st.dictionaries(st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature"]), st.text()))
    def test_whatever_is_sent(self, sent: dict[str, str]) -> None:
        with pytest.raises(SignatureError):
            verify({**gitlab_signed(at=NOW).headers, **sent}, b"other", [SIGNING, b"whsec_%", b""], NOW)


class TestEvents:
    def test_push(self) -> None:
        assert parse() == Event(
            id="d-1",
            source="https://gitlab.com/uni/stats/course",
            type="com.gitlab.push",
            subject=COMMIT,
            datacontenttype="application/json",
            data=gitlab_push(),
        )

    def test_tag_push(self) -> None:
        event = parse(gitlab_push(object_kind="tag_push", ref="refs/tags/v1", before=ZERO, after=TAG))
        assert (event.type, event.subject) == ("com.gitlab.tag_push", "refs/tags/v1")

    def test_system_hooks_have_an_event_name(self) -> None:
        payload = gitlab_push()
        del payload["object_kind"]
        assert parse(payload).type == "com.gitlab.push"

    def test_id_stays_the_same_when_gitlab_tries_again(self) -> None:
        assert parse(delivery=gitlab_signed(at=NOW)).id == parse().id == "d-1"
        old = gitlab().but(idempotency_key=None)
        tag = gitlab(gitlab_push(object_kind="tag_push", ref="refs/tags/v1", before=ZERO)).but(idempotency_key=None)
        assert parse(delivery=old).id == parse(delivery=old).id
        assert len({parse(delivery=one).id for one in (old, tag, old.but(x_gitlab_event_uuid=None))}) == 3

    @pytest.mark.parametrize("listed", [1, 2, 3])
    def test_a_test_delivery_starts_from_a_commit_that_it_lists(self, listed: int) -> None:
        commits = [{"id": str(number) * 40} for number in range(1, listed + 1)]
        sample = gitlab_push(before="1" * 40, after=str(listed) * 40, commits=commits, total_commits_count=listed)
        ignored = GITLAB.parse(gitlab(sample).headers, gitlab(sample).body)
        assert isinstance(ignored, Ignored)
        assert "test delivery" in ignored.reason

    @pytest.mark.parametrize("kind", ["push", "tag_push"])
    def test_a_deletion_leaves_nothing_to_build(self, kind: str) -> None:
        deleted = gitlab(gitlab_push(object_kind=kind, after=ZERO, checkout_sha=None, commits=[]))
        ignored = GITLAB.parse(deleted.headers, deleted.body)
        assert isinstance(ignored, Ignored)
        assert "deleted" in ignored.reason

    @pytest.mark.parametrize(
        ("kind", "payload", "type_", "subject"),
        [
            ("issue", {"object_attributes": {"state": "opened", "iid": 23}}, "issue.opened", "23"),
            ("merge_request", {"object_attributes": {"action": "open", "iid": 1}}, "merge_request.open", "1"),
            ("pipeline", {"object_attributes": {"status": "success", "id": 31}}, "pipeline.success", "31"),
            ("wiki_page", {"object_attributes": {"action": "create", "slug": "a"}}, "wiki_page.create", "a"),
            ("build", {"build_status": "created", "build_id": 1977}, "job.created", "1977"),
            ("release", {"action": "create"}, "release", None),
        ],
    )
    def test_types_and_subjects_of_the_adapter(
        self, kind: str, payload: dict[str, object], type_: str, subject: str | None
    ) -> None:
        event = parse({"object_kind": kind, "repository": {"homepage": "https://h.example/r"}, **payload})
        assert (event.type, event.subject, event.source) == (f"com.gitlab.{type_}", subject, "https://h.example/r")

    def test_a_comment_s_source_is_what_it_is_on(self) -> None:
        noted = {"noteable_type": "MergeRequest", "id": 5, "url": "https://h.example/r/-/merge_requests/1#note_5"}
        event = parse({"object_kind": "note", "object_attributes": noted})
        assert (event.type, event.source) == ("com.gitlab.note.merge_request", "https://h.example/r/-/merge_requests/1")

    @pytest.mark.parametrize("type_", ["gitlab.push", "gitlabsource.Push Hook"])
    def test_through_knative(self, type_: str) -> None:
        knative = msgspec.structs.replace(parse(), type=f"dev.knative.sources.{type_}", id="random")
        assert push_of(knative) == push_of(parse())

    @pytest.mark.parametrize("kind", [None, "", "Push", "../push", "p" * 65, 5])
    def test_bad_kind(self, kind: object) -> None:
        delivery = gitlab(gitlab_push(object_kind=kind, event_name=kind))
        with pytest.raises(DecodeError, match="object_kind"):
            GITLAB.parse(delivery.headers, delivery.body)

    @pytest.mark.parametrize(
        "changes",
        [
            {"ref": "main"}, {"ref": "refs/heads/a b"}, {"ref": "--upload-pack=x"}, {"ref": None}, {"before": None},
            {"after": "z" * 40}, {"checkout_sha": "main"}, {"project": []}, {"project": {"git_http_url": 5}},
            {"commits": {}}, {"commits": [{}]}, {"total_commits_count": "1"}, {"project": {}, "repository": {}},
        ],
    )  # fmt: skip
    def test_wrong_types(self, changes: dict[str, object]) -> None:
        with pytest.raises(DecodeError, match=r"^This (is not a )?push "):
            facts(**changes)


class TestFacts:
    def test_ordinary_push(self) -> None:
        assert facts() == PushFacts(
            repository="https://gitlab.com/uni/stats/course.git",
            ref="refs/heads/main",
            commit=COMMIT,
            before=BEFORE,
            created=False,
            deleted=False,
            forced=False,
            pushed_at=None,
            default_branch="main",
            paths=("a.txt", "binder/é.yml"),
            private=False,
            message="größer\n",
            pusher="ada",
        )

    def test_new_branch(self) -> None:
        push = facts(before=ZERO)
        assert (push.commit, push.before, push.created, push.paths) == (COMMIT, None, True, None)

    def test_annotated_tag(self) -> None:
        assert facts(ref="refs/tags/v2", before=ZERO, after=TAG, commits=[], total_commits_count=0).commit == COMMIT

    def test_without_checkout_sha(self) -> None:
        assert facts(checkout_sha=None).commit == COMMIT
        tag = facts(ref="refs/tags/v2", after=TAG, checkout_sha=None)
        assert (tag.commit, tag.look_up) == (None, True)

    @pytest.mark.parametrize(
        ("listed", "total", "known"),
        [(1, 1, True), (20, 20, True), (20, 21, False), (2, 4, False), (0, 0, False), (1, None, False)],
    )
    def test_only_the_newest_commits_are_listed(self, listed: int, total: int | None, known: bool) -> None:
        assert (facts(commits=gitlab_push()["commits"] * listed, total_commits_count=total).paths is not None) is known

    def test_commits_that_list_no_files(self) -> None:
        assert facts(commits=None).paths is None
        assert facts(commits=[{"id": COMMIT}]).paths is None

    @pytest.mark.parametrize(("level", "private"), [(0, True), (10, True), (20, False), (None, None)])
    def test_visibility(self, level: int | None, private: bool | None) -> None:
        project = {**gitlab_push()["project"], "visibility_level": level}
        assert facts(project=project).private is private

    def test_payload_of_an_old_version(self) -> None:
        """GitLab 8.4 sends neither a project nor a count."""
        payload = gitlab_push()
        for name in ("project", "event_name", "total_commits_count"):
            del payload[name]
        push = push_of(parse(payload))
        assert push is not None
        assert (push.repository, push.commit) == ("https://gitlab.com/uni/stats/course.git", COMMIT)
        assert (push.default_branch, push.paths) == (None, None)
