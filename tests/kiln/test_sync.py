"""`kiln sync`, and the controller's own polls: real processes and a real Git host, no webhook."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.parts.githost import GitHost, commit
from tests.parts.kiln import Kiln, Process, get, until


class Installation(Kiln):
    """Kiln with a Git host that has `ada/page`. A test can replace its configuration.

    Nothing is built, for lack of a daemon.
    """

    def __init__(self, folder: Path, host: GitHost) -> None:
        self.host = host
        super().__init__(
            folder,
            KILN_CONFIG=str(folder / "kiln.yaml"),
            KILN_ALLOWED_REPOSITORIES=f"{host.base}/**",
            KILN_DOCKER_HOST=f"unix://{folder}/docker.sock",
        )
        (folder / "content").mkdir()
        (folder / "content" / "page").touch()
        self.head = host.create("ada/page", folder / "content")

    @property
    def url(self) -> str:
        return self.host.url("ada/page")

    def list(self, *repositories: Mapping[str, str], **more: object) -> None:
        (self.folder / "kiln.yaml").write_text(yaml.safe_dump({"repositories": [*repositories], **more}))

    def builds(self, web: Process) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(get(f"{web.url}api/v1/builds", self.authorization)[1])["items"]
        return found


@pytest.fixture
def kiln(tmp_path: Path) -> Iterator[Installation]:
    with GitHost(tmp_path / "host") as host, Installation(tmp_path, host) as installation:
        installation.list({"url": installation.url})
        yield installation


def test_sync_asks_for_what_is_missing_and_then_for_nothing(kiln: Installation) -> None:
    dry = kiln.run("sync", "--dry-run")
    first, second = kiln.run("sync"), kiln.run("sync")
    assert (dry.returncode, first.returncode, second.returncode) == (0, 0, 0), first.stderr
    assert dry.stdout.splitlines()[0] == f"{kiln.url}: 1 would be requested, 0 known already"
    assert first.stdout.splitlines()[0] == f"{kiln.url}: 1 requested, 0 known already"
    assert dry.stdout.splitlines()[1] == first.stdout.splitlines()[1]
    assert first.stdout.splitlines()[1].startswith("  build-ada-page-")
    assert first.stdout.endswith(f" refs/heads/main {kiln.head[:12]}\n")
    assert second.stdout == f"{kiln.url}: 0 requested, 1 known already\n"
    (build,) = kiln.builds(kiln.start("web"))
    assert build["commit"] == kiln.head
    assert [(cause["by"], cause["type"], cause["ref"]) for cause in build["causes"]] == [
        ("sync", "com.github.push", "refs/heads/main")
    ]


def test_what_cannot_be_looked_at_is_named_and_the_rest_is_done(kiln: Installation) -> None:
    gone = kiln.host.url("ada/gone")
    kiln.list({"url": gone}, {"url": kiln.url})
    done = kiln.run("sync")
    assert done.returncode == 1
    assert done.stdout.startswith(f"{kiln.url}: 1 requested")
    assert done.stderr.startswith(f"kiln: error: {gone}: The Git host has no such repository.")


def test_sync_of_those_given(kiln: Installation) -> None:
    """A listed repository keeps its spelling in the list. A repository outside the list is synced, too."""
    kiln.host.create("ada/other", kiln.folder / "content")
    other = kiln.host.url("ada/other")
    done = kiln.run("sync", kiln.url.removesuffix(".git"), other, f"{other}/", "no-url")
    assert done.returncode == 1
    assert [line.partition(": ")[0] for line in done.stdout.splitlines() if not line.startswith(" ")] == [
        kiln.url,
        other,
    ]
    assert done.stderr == (
        "kiln: error: no-url: The repository's address is incomplete. Give one such as https://github.com/owner/name.\n"
    )


def test_sync_of_nothing_is_an_error(kiln: Installation) -> None:
    kiln.list()
    done = kiln.run("sync")
    assert (done.returncode, done.stdout) == (1, "")
    assert "No repositories." in done.stderr


def test_what_is_left_out_and_what_is_not_built_are_said(kiln: Installation) -> None:
    """Sync leaves half of the queue to other requests."""
    for branch in ("a", "b"):
        commit(kiln.host.bare("ada/page"), kiln.folder / "content", branch, message=branch)
    kiln.list({"url": kiln.url}, triggers=[{"name": "t", "push": {"branches": ["a", "b"]}}])
    done = kiln.run("sync", KILN_MAX_QUEUED="2")
    assert done.returncode == 1
    assert done.stdout.startswith(f"{kiln.url}: 1 requested")
    assert "1 skipped, because too many builds wait already" in done.stderr
    kiln.list({"url": kiln.url}, triggers=[{"name": "t", "build": {"subdir": "{data.pusher.name}"}}])
    done = kiln.run("sync")
    assert done.returncode == 0
    assert "  not built: refs/heads/a: The event has no value for {data.pusher.name}" in done.stdout


def test_records_that_cannot_be_used_are_told_in_a_sentence(kiln: Installation) -> None:
    (kiln.folder / "file").touch()
    done = kiln.run("sync", KILN_STATE_DIR=str(kiln.folder / "file" / "state"))
    assert done.returncode == 1
    assert "(KILN_STATE_DIR) cannot be used" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_lists_repositories_and_refuses_those_that_are_not_allowed(kiln: Installation) -> None:
    kiln.list({"url": kiln.url, "poll": "10m"})
    done = kiln.run("check")
    assert done.returncode == 0
    assert f"repository: {kiln.url}, polled every 600 s\n" in done.stdout
    kiln.list({"url": kiln.url, "poll": "10m"}, {"url": "https://github.com/a/b"})
    done = kiln.run("check")
    assert done.returncode == 1
    assert "repositories[1].url: https://github.com/a/b is not allowed here" in done.stdout


def test_the_controller_that_leads_looks_by_itself(kiln: Installation) -> None:
    kiln.list({"url": kiln.url, "poll": "10m"}, {"url": kiln.host.url("ada/gone"), "poll": "10m"})
    web, first = kiln.start("web"), kiln.start("controller")
    until(lambda: kiln.builds(web))
    (build,) = kiln.builds(web)
    until(lambda: b'kiln_sync_looks_total{outcome="failed"} 1.0' in get(f"{first.ops}/metrics")[1])
    assert b"kiln_sync_asked_total 1.0" in get(f"{first.ops}/metrics")[1]
    assert [line["build"] for line in first.lines if "without a webhook" in line["message"]] == [build["name"]]
    looked = len(kiln.host.requests)
    second = kiln.start("controller")
    until(lambda: any("Another controller" in line["message"] for line in second.lines))
    assert len(kiln.host.requests) == looked
    first.stop()
    until(lambda: len(kiln.host.requests) > looked)
    assert second.stop() == 0
    assert len(kiln.builds(web)) == 1


def test_a_host_that_does_not_answer_delays_no_end(kiln: Installation) -> None:
    kiln.host.hanging.add("/ada/page.git")
    kiln.list({"url": kiln.url, "poll": "10m"})
    controller = kiln.start("controller")
    until(lambda: kiln.host.requests)
    assert controller.stop() == 0
