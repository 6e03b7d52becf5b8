"""A real Gitea: pushes are built, and deletions are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests

from builds.clients.git import RefResolver
from builds.repository import HostKind, Policy, canonical
from tests.parts import gitea as parts
from tests.parts.gitea import OWNER, Delivery, Gitea
from tests.parts.githost import GitHost, git
from tests.parts.installation import SMALL
from tests.parts.kiln import until
from tests.parts.registry import Registry, free_port
from tests.parts.system import System

pytestmark = pytest.mark.slow

SECRET = "a canary of Gitea's webhooks"
FILES = {"Dockerfile": SMALL, "page": "one"}


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory, registry: Registry, host: GitHost
) -> Iterator[tuple[System, Gitea]]:
    """Kiln and Gitea, each configured with the other's address."""
    if reason := parts.missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("gitea")
    port = free_port()
    gitea = Gitea(folder, f"http://127.0.0.1:{port}/")
    config = {
        "hosts": {gitea.host: {"kind": "gitea", "statuses": True, "comment": True}},
        "triggers": [
            {"name": "all", "push": {"branches": ["**"], "tags": ["**"]}, "build": {"tags": ["{ref_name}"]}},
            {"name": "previews", "pull_requests": {"branches": ["main"], "paths": ["page"]}},
            {"name": "guests", "pull_requests": {"branches": ["open"], "from": "anyone"}},
        ],
    }
    allowed = f"http://{gitea.host}/**"
    settings = {"KILN_ALLOWED_REPOSITORIES": allowed, "KILN_PUBLIC_URL": f"http://127.0.0.1:{port}"}
    with System(folder / "kiln", registry=registry, host=host, config=config, **settings) as system:
        for word in ("gitea", "forgejo"):
            (system.secrets / "webhooks" / word).mkdir()
            (system.secrets / "webhooks" / word / "main").write_text(SECRET)
        system.start("web", PORT=str(port))
        system.start("controller")
        with gitea:
            (system.secrets / "statuses").mkdir()
            token = gitea.token("write:repository", "write:issue", "read:user")
            (system.secrets / "statuses" / gitea.host).write_text(token)
            yield system, gitea


def green(system: System, gitea: Gitea, repository: str, commit: str, build: dict[str, Any]) -> None:
    """Waits for the status, which links to the build and names its image."""
    until(lambda: gitea.status(repository, commit)["state"] == "success", 30)
    (status,) = gitea.status(repository, commit)["statuses"]
    assert status["context"] == "kiln/all"
    assert status["target_url"] == f"{gitea.web}builds/{build['name']}"
    assert status["description"].endswith(build["image"]["digest"])
    page = requests.get(status["target_url"], headers=system.authorization, timeout=10)
    assert (page.status_code, build["commit"][:7] in page.text) == (200, True)


def of(event: str, ref: str, commit: str | None = None) -> Callable[[Delivery], bool]:
    def wanted(one: Delivery) -> bool:
        return (one.event, one.payload.get("ref")) == (event, ref) and commit in (None, one.payload.get("after"))

    return wanted


def test_pushes_are_built_and_what_is_taken_away_is_not(scene: tuple[System, Gitea]) -> None:
    system, gitea = scene
    url = gitea.create("course")
    hook = gitea.hook("course", "gitea", SECRET)

    first = gitea.commit("course", FILES)
    gitea.push("course", "main")
    pushed = gitea.delivered(of("push", "refs/heads/main", first))
    assert pushed.status == 202
    (name,) = [build["name"] for build in pushed.answer["builds"]]
    build = system.ended(name)
    assert (build["state"], build["repository"], build["commit"]) == ("succeeded", url, first)
    (cause,) = build["causes"]
    assert (cause["source"], cause["id"], cause["by"]) == (url, pushed.id, "webhook:gitea")
    assert (cause["type"], cause["ref"]) == ("com.gitea.push", "refs/heads/main")
    event = system.arrived("first", name, "succeeded")
    assert (event.extensions["repository"], event.extensions["commit"]) == (url, first)
    green(system, gitea, "course", first, build)

    git("tag", "v1", cwd=gitea.folder / "course")
    git("tag", "--annotate", "--message=two", "v2", cwd=gitea.folder / "course")
    gitea.push("course", "v1", "v2")
    for tag in ("v1", "v2"):
        delivery = gitea.delivered(of("push", f"refs/tags/{tag}"))
        assert [build["name"] for build in delivery.answer["builds"]] == [name]
        assert gitea.delivered(lambda one, tag=tag: one.event == "create" and one.ref == tag).status == 200
    system.wait(name, lambda build: {"main", "v1", "v2"} <= {*(build["image"]["tags"] or [])})

    second = gitea.commit("course", {"page": "two"}, "--amend")
    gitea.push("course", "--force", "main")
    forced = gitea.delivered(of("push", "refs/heads/main", second))
    (other,) = [build["name"] for build in forced.answer["builds"]]
    assert other != name
    assert system.ended(other)["commit"] == second

    gitea.push("course", "main:refs/heads/side/größe")
    new = gitea.delivered(of("push", "refs/heads/side/größe"))
    assert [build["name"] for build in new.answer["builds"]] == [other]
    gitea.push("course", "--delete", "side/größe", "v1")
    gone = [
        gitea.delivered(of("push", "refs/tags/v1", "0" * 40)),
        gitea.delivered(of("delete", "v1")),
        gitea.delivered(of("delete", "side/größe")),
    ]
    gitea.test("course", hook)
    gone.append(gitea.delivered(lambda one: one.event == "push" and one.payload["before"] == one.payload["after"]))
    for delivery in gone:
        assert (delivery.status, delivery.answer["builds"]) == (200, [])
        assert delivery.answer["reason"]
    assert {build["name"] for build in system.listed() if build["repository"] == url} == {name, other}


def about(number: int, action: str) -> Callable[[Delivery], bool]:
    def wanted(one: Delivery) -> bool:
        return one.event == "pull_request" and (one.payload["number"], one.payload["action"]) == (number, action)

    return wanted


def test_pull_requests_are_built_of_its_own_branches_and_of_forks_only_where_they_may(
    scene: tuple[System, Gitea],
) -> None:
    system, gitea = scene
    url = gitea.create("review")
    gitea.hook("review", "gitea", SECRET)
    gitea.commit("review", FILES)
    gitea.push("review", "main", "main:open")

    commit = gitea.commit("review", {"page": "two"})
    gitea.push("review", "HEAD:topic")
    (pushed,) = gitea.delivered(of("push", "refs/heads/topic", commit)).answer["builds"]
    system.ended(pushed["name"])  # a request that joins a running build gets no tag
    number = gitea.request("review", "topic")
    opened = gitea.delivered(about(number, "opened"))
    assert opened.status == 202, opened.answer
    (built,) = opened.answer["builds"]
    build = system.wait(built["name"], lambda build: f"pr-{number}" in (build["image"]["tags"] or []))
    assert (build["repository"], build["commit"]) == (url, commit)
    assert ("previews", f"refs/pull/{number}/head") in {(cause["trigger"], cause["ref"]) for cause in build["causes"]}

    until(lambda: gitea.comments("review", number), 30)
    (comment,) = gitea.comments("review", number)
    name, digest = build["image"]["repository"], build["image"]["digest"]
    assert f"docker run --rm -it -p 8888:8888 {name}@{digest}\n" in comment["body"]
    assert f"<{gitea.web}builds/{build['name']}>" in comment["body"]

    moved = gitea.commit("review", {"page": "three"})
    gitea.push("review", "HEAD:topic")
    synchronized = gitea.delivered(about(number, "synchronized"))
    assert [build["commit"] for build in system.listed() if build["name"] in str(synchronized.answer)] == [moved]
    until(lambda: moved[:12] in gitea.comments("review", number)[0]["body"], 60)
    assert [one["id"] for one in gitea.comments("review", number)] == [comment["id"]], "it is kept up to date"
    gitea.close("review", number)
    closed = gitea.delivered(about(number, "closed"))
    assert (closed.status, closed.answer["builds"]) == (200, [])
    assert "closed" in closed.answer["reason"]

    gitea.guest("mallory")
    gitea.fork("review", "mallory")
    stranger = gitea.commit("review", {"page": "four"})
    gitea.push("review", "HEAD:theirs", by="mallory", to="mallory")
    gitea.push("review", "HEAD:refs/for/main/theirs", by="mallory")
    agit = gitea.delivered(
        lambda one: one.event == "pull_request" and one.payload["pull_request"]["head"]["sha"] == stranger
    )
    refused = [agit, gitea.delivered(about(gitea.request("review", "theirs", by="mallory"), "opened"))]
    for delivery in refused:
        assert (delivery.status, delivery.answer["builds"]) == (200, [])
        assert "fork" in delivery.answer["reason"]

    number = gitea.request("review", "theirs", "open", by="mallory")
    (built,) = gitea.delivered(about(number, "opened")).answer["builds"]
    build = system.ended(built["name"])
    assert (build["state"], build["repository"], build["commit"]) == ("succeeded", url, stranger), build["message"]
    assert build["image"]["tags"] == [f"pr-{number}"]


def test_the_paths_that_a_request_changes(scene: tuple[System, Gitea]) -> None:
    _, gitea = scene
    repository = canonical(gitea.create("paths"), {gitea.host: HostKind.GITEA})
    gitea.commit("paths", {**FILES, "old": "a line that is long enough to be known again\n" * 9})
    gitea.push("paths", "main")
    (gitea.folder / "paths" / "old").rename(gitea.folder / "paths" / "new")
    gitea.commit("paths", {"README.md": "x"})
    gitea.push("paths", "HEAD:other")
    number = gitea.request("paths", "other")

    def told() -> set[str]:
        """As a client would see it that remembers no earlier silence of a busy machine."""
        return {*(RefResolver(Policy([f"http://{gitea.host}/**"])).changed(repository, number) or ())}

    until(lambda: told() == {"README.md", "new", "old"}, 30)


def test_a_form_is_taken_and_another_secret_is_not(scene: tuple[System, Gitea]) -> None:
    system, gitea = scene
    url = gitea.create("forms")
    gitea.hook("forms", "gitea", SECRET, form=True)
    wrong, unsigned = gitea.hook("forms", "gitea", "another"), gitea.hook("forms", "gitea", "")
    commit = gitea.commit("forms", FILES)
    gitea.push("forms", "main")
    gitea.delivered(lambda one: one.status == 202 and one.payload.get("after") == commit)
    until(lambda: [one.status for one in gitea.deliveries if one.payload.get("after") == commit].count(401) == 2)
    for hook in (wrong, unsigned):
        gitea.remove_hook("forms", hook)
    assert [build["commit"] for build in system.listed() if build["repository"] == url] == [commit]


def test_a_private_repository_is_built_with_its_credential(scene: tuple[System, Gitea]) -> None:
    system, gitea = scene
    url = gitea.create("secret", private=True)
    (system.secrets / "git-credentials").mkdir()
    (system.secrets / "git-credentials" / "gitea").write_text(gitea.credential("secret"))
    gitea.hook("secret", "gitea", SECRET)
    commit = gitea.commit("secret", FILES)
    gitea.push("secret", "main")
    (built,) = gitea.delivered(of("push", "refs/heads/main", commit)).answer["builds"]
    build = system.ended(built["name"])
    assert (build["state"], build["repository"], build["commit"]) == ("succeeded", url, commit), build["message"]
    green(system, gitea, "secret", commit, build)
    stranger = system.ask(repository=url, ref="main")
    assert stranger.status_code == 422


def test_a_push_of_more_commits_than_gitea_lists_may_have_changed_anything(scene: tuple[System, Gitea]) -> None:
    """Gitea lists the newest five. This trigger has no paths, so the count is that of Gitea's real payload."""
    _, gitea = scene
    gitea.create("long")
    gitea.hook("long", "gitea", SECRET)
    gitea.commit("long", FILES)
    gitea.push("long", "main")
    commits = [gitea.commit("long", {f"{number}.txt": "x"}) for number in range(8)]
    gitea.push("long", "main")
    delivery = gitea.delivered(of("push", "refs/heads/main", commits[-1]))
    assert (len(delivery.payload["commits"]), delivery.payload["total_commits"]) == (5, 8)
    assert delivery.status == 202


def test_the_route_of_another_kind_takes_none_of_its_repositories(scene: tuple[System, Gitea]) -> None:
    """Forgejo reads Gitea's names as well, but this host is configured as Gitea. Gitea has no webhooks of its kind."""
    _, gitea = scene
    gitea.create("strange")
    with pytest.raises(requests.HTTPError):
        gitea.hook("strange", "forgejo", SECRET)
    gitea.hook("strange", "gitea", SECRET, word="forgejo")
    commit = gitea.commit("strange", FILES)
    gitea.push("strange", "main")
    refused = gitea.delivered(lambda one: one.event == "push" and one.payload["after"] == commit)
    assert refused.status == 403
    assert refused.payload["repository"]["full_name"] == f"{OWNER}/strange"
