"""Gitea's and Forgejo's webhooks: signatures over the JSON, test deliveries, truncated lists of commits."""

from __future__ import annotations

import json
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
    forgejo,
    gitea,
    gitea_push,
    hexadecimal,
)
from tests.parts.published_data import published_data

GITEA, FORGEJO = DIALECTS["gitea"], DIALECTS["forgejo"]
NOW = datetime.now(UTC)


def facts(**changes: object) -> PushFacts:
    push = push_of(Event(id="1", source="/", type="com.gitea.push", data=gitea_push(**changes)))
    assert push is not None
    return push


def ignored(delivery: Delivery) -> str:
    parsed = GITEA.parse(delivery.headers, delivery.body)
    assert isinstance(parsed, Ignored)
    return parsed.reason


class TestSignature:
    def test_is_plain_hexadecimal(self) -> None:
        delivery = gitea()
        GITEA.verify(delivery.headers, delivery.body, [SECRET], NOW)
        for value in ("", "sha256=", f"sha256={hexadecimal(delivery.body)}", hexadecimal(delivery.body).upper(), "é€"):
            with pytest.raises(SignatureError):
                GITEA.verify(delivery.but(x_gitea_signature=value).headers, delivery.body, [SECRET], NOW)

    def test_no_other_header_signs(self) -> None:
        """Gitea sends an empty signature if the webhook has no secret."""
        for missing in (None, ""):
            delivery = gitea().but(x_gitea_signature=missing)
            with pytest.raises(SignatureError, match="Missing X-Gitea-Signature"):
                GITEA.verify(delivery.headers, delivery.body, [SECRET], NOW)

    def test_of_a_form_is_over_the_json_in_it(self) -> None:
        delivery = gitea(form=True)
        GITEA.verify(delivery.headers, delivery.body, [SECRET], NOW)
        whole = delivery.but(x_gitea_signature=hexadecimal(delivery.body))
        with pytest.raises(SignatureError):
            GITEA.verify(whole.headers, whole.body, [SECRET], NOW)
        assert GITEA.parse(delivery.headers, delivery.body) == GITEA.parse(gitea().headers, gitea().body)

    @pytest.mark.parametrize("body", [b"", b"payload", b"payload=", b"a=b", b"payload={}&payload={}"])
    def test_of_a_form_without_payload_is_over_its_bytes(self, body: bytes) -> None:
        form = gitea(form=True).but(x_gitea_signature=hexadecimal(body))
        GITEA.verify(form.headers, body, [SECRET], NOW)
        with pytest.raises(DecodeError):
            GITEA.parse(form.headers, body)

    def test_forgejo_s_own_comes_first(self) -> None:
        """A valid signature in Gitea's header does not replace an invalid one in Forgejo's."""
        right, wrong = forgejo(), forgejo().but(x_forgejo_signature="0" * 64)
        FORGEJO.verify(right.headers, right.body, [SECRET], NOW)
        FORGEJO.verify(right.but(x_gitea_signature=None).headers, right.body, [SECRET], NOW)
        for delivery in (wrong, right.but(x_forgejo_signature="")):
            with pytest.raises(SignatureError):
                FORGEJO.verify(delivery.headers, delivery.body, [SECRET], NOW)

    def test_forgejo_takes_the_names_of_gitea(self) -> None:
        delivery = gitea()
        FORGEJO.verify(delivery.headers, delivery.body, [SECRET], NOW)
        (event,) = FORGEJO.parse(delivery.headers, delivery.body)  # type: ignore[misc]
        assert (event.type, event.id) == ("com.forgejo.push", "d-1")

    def test_gitea_knows_no_names_of_forgejo(self) -> None:
        delivery = forgejo(names=("X-Forgejo",))
        with pytest.raises(SignatureError):
            GITEA.verify(delivery.headers, delivery.body, [SECRET], NOW)


class TestEvents:
    @pytest.mark.parametrize("event", ["create", "delete"])
    def test_what_a_push_tells_as_well(self, event: str) -> None:
        assert ignored(gitea({"ref": "v1", "ref_type": "tag"}, event))

    def test_a_test_delivery_moves_nothing(self) -> None:
        """Gitea has no ping. For an empty repository its test delivery has only zeros as commits."""
        for commit in (COMMIT, ZERO):
            assert "test delivery" in ignored(gitea(gitea_push(before=commit, after=commit)))

    def test_a_deletion_leaves_nothing_to_build(self) -> None:
        assert "deleted" in ignored(gitea(gitea_push(ref="refs/tags/v1", after=ZERO, head_commit=None, commits=None)))

    @pytest.mark.parametrize(
        ("event", "payload", "type_", "subject"),
        [
            ("pull_request", {"action": "opened", "number": 7}, "com.gitea.pull_request.opened", "7"),
            ("release", {"action": "published", "release": {"id": 5}}, "com.gitea.release.published", "5"),
            ("fork", {}, "com.gitea.fork", None),
        ],
    )
    def test_others_can_be_filtered(
        self, event: str, payload: dict[str, object], type_: str, subject: str | None
    ) -> None:
        delivery = gitea({"repository": {"html_url": "https://h.example/r"}, **payload}, event)
        (made,) = GITEA.parse(delivery.headers, delivery.body)  # type: ignore[misc]
        assert (made.type, made.subject, made.source) == (type_, subject, "https://h.example/r")

    @pytest.mark.parametrize("name", ["X-Gitea-Delivery", "X-Gitea-Event", "Content-Type"])
    def test_missing_header(self, name: str) -> None:
        for value in (None, ""):
            delivery = gitea().but(**{name.lower().replace("-", "_"): value})
            with pytest.raises(DecodeError) as refused:
                GITEA.parse(delivery.headers, delivery.body)
            assert str(refused.value) == f"The header {name} is missing."

    @pytest.mark.parametrize("event", ["Push", "push.x", "../push", "p" * 65, "push\n", "é"])
    def test_bad_event_name(self, event: str) -> None:
        with pytest.raises(DecodeError, match=r"X-Gitea-Event is not the name of an event\."):
            GITEA.parse(gitea().but(x_gitea_event=event).headers, gitea().body)

    @pytest.mark.parametrize(
        "changes",
        [
            {"ref": "main"}, {"ref": "refs/heads/a b"}, {"ref": "--upload-pack=x"}, {"ref": None}, {"before": None},
            {"after": "z" * 40}, {"after": "A" * 40}, {"repository": {}}, {"repository": {"clone_url": 5}},
            {"commits": {}}, {"commits": [{}]}, {"commits": [5]}, {"head_commit": []}, {"total_commits": "1"},
        ],
    )  # fmt: skip
    def test_wrong_types(self, changes: dict[str, object]) -> None:
        with pytest.raises(DecodeError, match=r"^This is not a push of Gitea's: "):
            facts(**changes)


class TestFacts:
    def test_ordinary_push(self) -> None:
        assert facts() == PushFacts(
            repository="https://git.example.com/lab/sample.git",
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
        assert facts(ref="refs/tags/v2", before=ZERO, after=TAG, commits=[], total_commits=0).commit == COMMIT

    def test_a_tag_of_an_old_version_has_to_be_looked_up(self) -> None:
        push = facts(ref="refs/tags/v2", before=ZERO, after=TAG, head_commit=None)
        assert (push.commit, push.look_up) == (None, True)

    def test_a_branch_of_an_old_version_is_at_after(self) -> None:
        push = facts(head_commit=None)
        assert (push.commit, push.look_up) == (COMMIT, False)

    @pytest.mark.parametrize(
        ("listed", "total", "known"),
        [(1, 1, True), (5, 5, True), (5, 6, False), (5, 300, False), (30, 30, True), (0, 0, False), (1, None, False)],
    )
    def test_only_the_newest_commits_may_be_listed(self, listed: int, total: int | None, known: bool) -> None:
        push = facts(commits=[gitea_push()["head_commit"]] * listed, total_commits=total)
        assert (push.paths is not None) is known

    @pytest.mark.parametrize("commits", [None, [{"id": COMMIT, "added": None, "removed": None, "modified": None}]])
    def test_commits_that_list_no_files(self, commits: object) -> None:
        assert facts(commits=commits).paths is None


RECORDED: dict[str, tuple[str, str] | None] = {
    "create-branch": None,
    "create-tag": None,
    "delete-branch": None,
    "delete-tag": None,
    "push": ("refs/heads/main", "5cc6cf4ba5643b8a2d0bcb2e572538d46da68b51"),
    "push-branch-new": ("refs/heads/same-commit", "b9e7c43d50064a611e3b3bf71b5696cbb5784c4e"),
    "push-branch-new-commits": ("refs/heads/topic", "984a97b5f02ef2bde147fbaf10c9bc63edf6cdc1"),
    "push-commits": ("refs/heads/main", "eab03f5d98f92bbf347a96cf9a8fde1bdad72933"),
    "push-empty-commit": ("refs/heads/main", "b9e7c43d50064a611e3b3bf71b5696cbb5784c4e"),
    "push-first": ("refs/heads/main", "98c723cc6c696ff63f3c70a5feb66bdfa791d803"),
    "push-forced": ("refs/heads/topic", "abdb193bddb62c1d2098e13ee660a723eab73825"),
    "push-tag": ("refs/tags/v1", "abdb193bddb62c1d2098e13ee660a723eab73825"),
    "push-tag-annotated": ("refs/tags/v2", "abdb193bddb62c1d2098e13ee660a723eab73825"),
    "push-tag-deleted": None,
    "push-through-api": ("refs/heads/main", "75ab6fcd1e27a93deb6b5379f77988fa0a390345"),
    "redelivery": None,
    "test-delivery": None,
}
"""The ref and commit to build for each delivery recorded from Gitea 1.27.3, or None."""


class TestPublished:
    @pytest.mark.parametrize("name", RECORDED)
    def test_as_recorded(self, name: str) -> None:
        assert self.built(name) == RECORDED[name]

    def test_a_form_is_the_push_that_it_holds(self) -> None:
        assert self.built("push-form") is not None

    @pytest.mark.parametrize("name", ["pull-request-opened", "release-published", "repository-created"])
    def test_what_is_no_push(self, name: str) -> None:
        assert self.built(name) is None

    def test_files(self) -> None:
        recorded = {path.stem for path in published_data("gitea").glob("*.json")}
        for name in recorded:
            self.built(name)
        assert {*RECORDED} < recorded
        push = self.push("push-commits")
        assert push is not None
        assert push.paths == ("more0.txt", "more1.txt", "more2.txt")

    def built(self, name: str) -> tuple[str, str | None] | None:
        push = self.push(name)
        return None if push is None else (push.ref, push.commit)

    def push(self, name: str) -> PushFacts | None:
        recorded: dict[str, Any] = json.loads(published_data(f"gitea/{name}.json").read_text())
        headers, body = recorded["headers"], recorded["body"].encode()
        GITEA.verify(headers, body, [b"another", b"recorded-not-secret"], NOW)
        with pytest.raises(SignatureError):
            GITEA.verify(headers, body, [b"another"], NOW)
        parsed = GITEA.parse(headers, body)
        if isinstance(parsed, Ignored):
            return None
        (event,) = parsed
        assert event.id == headers["X-Gitea-Delivery"]
        assert event.source == "https://git.example.com/lab/sample"
        push = push_of(event)
        assert push is None or push.repository == "https://git.example.com/lab/sample.git"
        return push
