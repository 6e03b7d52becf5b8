"""The largest pushes of GitHub are decided exactly, in bounded memory."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.parts.kiln import Kiln, Process
from tools.demo.github import delivery

SECRET = b"a canary of the webhooks"
PAGE = "https://github.com/octo/stats"
GROWTH = 150 << 10
"""KiB by which web's peak memory may grow."""
COMMITS = 2047


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "secrets/webhooks/github").mkdir(parents=True)
    (tmp_path / "secrets/webhooks/github/main").write_bytes(SECRET)
    trigger = {"name": "paths", "push": {"branches": ["main"], "paths": ["binder/**"]}}
    (tmp_path / "kiln.yaml").write_text(json.dumps({"triggers": [trigger]}))
    files = {"KILN_SECRETS_DIR": str(tmp_path / "secrets"), "KILN_CONFIG": str(tmp_path / "kiln.yaml")}
    with Kiln(tmp_path, **files) as kiln:
        yield kiln.start("web")


def push(changed: str, size: int, commits: int = COMMITS) -> bytes:
    """A push of about `size` bytes, mostly names of added files; only the last commit modifies `changed`."""
    each = max(1, size // commits // len("data/part-0000/file-0000.csv,__"))
    listed = [
        {"id": f"{n + 1:040x}", "added": [f"data/part-{n:04}/file-{k:04}.csv" for k in range(each)], "removed": []}
        for n in range(commits)
    ]
    whole = [{**commit, "modified": []} for commit in listed]
    whole[-1]["modified"] = [changed]
    repository = {"url": PAGE, "html_url": PAGE, "clone_url": f"{PAGE}.git", "default_branch": "main"}
    facts = {"ref": "refs/heads/main", "before": "f" * 40, "after": whole[-1]["id"], "repository": repository}
    return json.dumps({**facts, "head_commit": whole[-1], "commits": whole}, separators=(",", ":")).encode()


def post(web: Process, body: bytes) -> int:
    connection = http.client.HTTPConnection(urlsplit(web.url or "").netloc, timeout=120)
    connection.request("POST", "/webhooks/github", body, delivery(SECRET, "push", body))
    status = connection.getresponse().status
    connection.close()
    return status


def peak(web: Process) -> int:
    """Return the peak memory of web and its worker in KiB (proc_pid_status(5))."""
    pids = [web.popen.pid]
    pids += map(int, Path(f"/proc/{pids[0]}/task/{pids[0]}/children").read_text().split())
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def test_paths_are_decided_and_memory_is_bounded(web: Process) -> None:
    assert post(web, push("binder/environment.yml", 1000, commits=1)) == 202
    before = peak(web)
    for size in (1_300_000, 5_000_000, 23_500_000):
        assert post(web, push("elsewhere/environment.yml", size)) == 200
        assert post(web, push("binder/environment.yml", size)) == 202
    assert peak(web) - before < GROWTH


def test_many_at_once_take_no_more(web: Process) -> None:
    assert post(web, push("binder/environment.yml", 1000, commits=1)) == 202
    before, body = peak(web), push("binder/environment.yml", 23_500_000)
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(lambda _: post(web, body), range(6))) <= {202, 503}
    assert peak(web) - before < GROWTH
    assert post(web, body) == 202


def test_beyond_that_is_413(web: Process) -> None:
    body = push("binder/environment.yml", 1000, commits=1)
    assert post(web, body.ljust(25 << 20)) == 202
    assert post(web, body.ljust((25 << 20) + 1)) == 413
    assert post(web, body.ljust(40 << 20)) == 413
