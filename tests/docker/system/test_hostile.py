"""Repositories, refs, folders and images that try to be something else, by every route: refused with a sentence."""

from __future__ import annotations

import json
import re
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import requests

from tests.parts import machine
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, Webhook, http
from tests.parts.system import System
from tools.demo import github

COMMIT = "1" * 40
MARKER = Path("/tmp/kiln-was-here")
PASSWORD = "c4n4ry-p4ssw0rd"
WITH_BUSYBOX = "FROM scratch\nCOPY busybox /bin/sh\nCOPY busybox /bin/busybox\n"

REPOSITORIES = [
    f"--upload-pack=touch {MARKER}",
    f"--upload-pack=touch${{IFS}}{MARKER}",
    f"-u{MARKER}",
    f"ext::sh -c touch% {MARKER}",
    f"ext::sh%20-c%20touch%20{MARKER}",
    f"https://github.com/a/b;touch {MARKER}",
    f"https://github.com/a/`touch${{IFS}}{MARKER}`",
    "file:///etc",
    "/etc",
    "ssh://git@github.com/a/b",
    "git://github.com/a/b",
    "git@github.com:a/b.git",
    f"https://user:{PASSWORD}@github.com/a/b",
    f"https://{PASSWORD}@github.com/a/b",
    "http://github.com/a/b",
    "http://169.254.169.254/latest/meta-data",
    "https://169.254.169.254/latest/meta-data",
    "https://127.0.0.1/a/b",
    "https://2130706433/a/b",
    "https://0x7f000001/a/b",
    "https://0177.0.0.1/a/b",
    "https://127.1/a/b",
    "https://0/a/b",
    "https://[::1]/a/b",
    "https://[::ffff:127.0.0.1]/a/b",
    "https://[::ffff:7f00:1]/a/b",
    "https://[64:ff9b::7f00:1]/a/b",
    "https://[fd00::1]/a/b",
    "https://localhost/a/b",
    "https://LOCALHOST./a/b",
    "https://10.0.0.1/a/b",
    "https://192.168.1.1/a/b",
    "https://github.com/a/../../etc/passwd",
    "https://github.com/a/b\nhttps://127.0.0.1/",
    "https://github.com\\@127.0.0.1/a/b",
    "https://github.com/a/b?x=y",
    "https://github.com/a/b#x",
    "",
]
REFS = ["--upload-pack=x", "-x", "main\nx", "main\0", "a..b", "a b", "refs/heads/../x", "@{1}", "main.lock", "x" * 1025]
SUBDIRS = ["..", "../x", "a/../../x", "/etc", "a\0b", "a\nb", "--subdir", "x" * 2000, "a//../..", "\\..\\x"]
COMMITS = ["main", "1" * 39, "g" * 40, "-" * 40, "1" * 40 + "\n", "0x" + "1" * 38]
IMAGES = [
    "registry.example/stolen",
    "{prefix}../other/x",
    "{prefix}x:tag",
    "{prefix}x@sha256:" + "1" * 64,
    "--push",
    "",
]


@pytest.fixture(autouse=True)
def nothing_was_started(queue: System) -> Iterator[None]:
    before = queue.listed()
    yield
    assert queue.listed() == before
    assert not MARKER.exists()


def check(answer: requests.Response) -> str:
    """Checks that the request is refused, and returns the reason."""
    assert answer.status_code in (400, 403, 422), (answer.status_code, answer.text)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert PASSWORD not in answer.text
    detail: str = answer.json()["detail"]
    assert re.match(r"\S+ .*\.", detail), detail
    return detail


def event(**data: object) -> dict[str, object]:
    made = {"specversion": "1.0", "id": uuid.uuid4().hex, "source": "/x", "type": "dev.kiln.build.requested.v1"}
    return {**made, "data": data}


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_a_repository(queue: System, repository: str) -> None:
    details = {check(queue.ask(repository=repository, commit=COMMIT)), check(queue.ask(repository=repository))}
    structured = {"Content-Type": "application/cloudevents+json", **queue.authorization}
    body = event(repository=repository, commit=COMMIT)
    details.add(check(http("POST", f"{queue.url}events", json=body, headers=structured)))
    assert len(details) == 1


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_a_repository_by_webhook(queue: System, repository: str) -> None:
    """Signed with the right secret, by a compromised host or after the secret has leaked."""
    told = {"url": repository or "x", "clone_url": repository, "default_branch": "main"}
    push = {"ref": "refs/heads/main", "before": "0" * 40, "after": COMMIT, "head_commit": {"id": COMMIT}}
    body = json.dumps({**push, "repository": told}).encode()
    answer = queue.deliver(Webhook(github.delivery(queue.webhook_secret.encode(), "push", body), body))
    if answer.status_code == 200:  # verified, and refused by policy: hosts disable hooks that fail
        assert answer.json()["builds"] == []
        assert answer.json()["reason"].endswith(".")
        assert PASSWORD not in answer.text
    else:
        check(answer)


@pytest.mark.parametrize("ref", REFS)
def test_a_ref(queue: System, ref: str) -> None:
    requests_before = len(queue.host.requests)
    check(queue.ask(repository=queue.host.url("a/b"), ref=ref))
    check(queue.ask(repository=queue.host.url("a/b"), ref=ref, commit=COMMIT))
    assert len(queue.host.requests) == requests_before


@pytest.mark.parametrize("commit", COMMITS)
def test_a_commit(queue: System, commit: str) -> None:
    check(queue.ask(repository=queue.host.url("a/b"), commit=commit))


@pytest.mark.parametrize("subdir", SUBDIRS)
def test_a_subdir(queue: System, subdir: str) -> None:
    check(queue.ask(repository=queue.host.url("a/b"), commit=COMMIT, subdir=subdir))


@pytest.mark.parametrize("image", IMAGES)
def test_an_image(queue: System, image: str) -> None:
    check(queue.ask(repository=queue.host.url("a/b"), commit=COMMIT, image=image.replace("{prefix}", queue.prefix)))


def test_no_such_ref_and_no_such_repository(queue: System) -> None:
    queue.commit("ada/there", {"Dockerfile": SMALL})
    answers = [
        queue.ask(repository=queue.host.url("ada/there"), ref="gone"),
        queue.ask(repository=queue.host.url("x/y")),
    ]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert "gone" in check(answers[0])


def test_a_name_that_leads_to_this_machine(queue: System) -> None:
    name = socket.gethostname()
    try:
        private = socket.gethostbyname(name).startswith("127.")
    except OSError:
        private = False
    if not private:
        pytest.skip("this machine's name does not lead to its loopback address")
    assert "private" in check(queue.ask(repository=f"https://{name}.:{queue.host.port}/a/b"))


# Attacks that only a fetch reveals -----------------------------------------------------------------------------------


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[GitHost]:
    """Another host, which no pattern names: in a private network, as seen from Kiln."""
    with GitHost(tmp_path, "127.0.0.2") as running:
        running.create("secret/one")
        yield running


def failed(system: System, name: str) -> str:
    """Why the build failed, at its first attempt and for good."""
    build = system.ended(name)
    assert (build["state"], build["reason"], build["attempt"]) == ("failed", "repository", 1), build
    assert build["image"]["digest"] is None
    return str(build["message"])


def test_a_redirect_is_not_followed(system: System, inside: GitHost) -> None:
    system.host.redirects["/ada/moved.git"] = inside.url("secret/one")
    url = system.host.url("ada/moved")
    assert "redirect" in check(system.ask(repository=url)).lower()
    name = system.ask(repository=url, commit=COMMIT).json()["name"]
    assert "redirect" in failed(system, name).lower()
    assert inside.requests == []


@pytest.mark.parametrize("spelled", ["http://127.0.0.2:{port}/secret/one.git", "http://2130706434:{port}/secret/one"])
def test_a_submodule_there_is_refused(system: System, inside: GitHost, spelled: str) -> None:
    address = spelled.replace("{port}", str(inside.port))
    modules = f'[submodule "x"]\n\tpath = x\n\turl = {address}\n'
    path = f"ada/linked-{uuid.uuid4().hex}"
    commit = system.commit(path, {"Dockerfile": SMALL, ".gitmodules": modules}, links={"x": COMMIT})
    assert "submodule" in failed(system, system.build(path, commit)).lower()
    assert inside.requests == []


@pytest.mark.parametrize("place", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_a_step_is_nobody_to_the_web_of_its_machine(system: System, place: str) -> None:
    """The daemon runs `ADD` on this machine, so it reaches services that listen on loopback only."""
    target = f"ada/target-{uuid.uuid4().hex}"
    wanted = system.commit(target, {"Dockerfile": SMALL})
    quoted, web = quote(system.host.url(target), safe=""), f"http://{place}:{urlsplit(system.url).port}"
    for path in (f"build/git/{quoted}/{wanted}", "api/v1/builds"):
        assert re.search(r"status_code\W+40[13]|response status 40[13]", added(system, f"{web}/{path}"))
    assert system.get(f"api/v1/builds?repository={quoted}").json()["items"] == []


def added(system: System, url: str) -> str:
    """The log of a build that adds, and prints, what is at the URL."""
    path = f"ada/adds-{uuid.uuid4().hex}"
    dockerfile = f"{WITH_BUSYBOX}ADD {url} /x\nRUN busybox cat /x\n"
    name = system.build(path, system.commit(path, {"Dockerfile": dockerfile, "busybox": busybox()}))
    system.ended(name)
    return system.log(name)


def test_a_command_of_a_step_does_not_reach_the_web_of_its_machine(system: System) -> None:
    port, path = urlsplit(system.url).port, f"ada/asks-{uuid.uuid4().hex}"
    gateway = "$(busybox ip route | busybox awk '/default/ {print $3}')"
    ask = f"busybox wget -T 3 -qO- http://$at:{port}/"
    dockerfile = f"{WITH_BUSYBOX}RUN for at in 127.0.0.1 {gateway}; do echo at $at; {ask} && exit 1; done; exit 0\n"
    name = system.build(path, system.commit(path, {"Dockerfile": dockerfile, "busybox": busybox()}))
    build = system.ended(name)
    assert build["state"] == "succeeded", build
    assert len(re.findall(r" at \d+\.\d+\.\d+\.\d+$", system.log(name), re.MULTILINE)) == 2


def busybox() -> bytes:
    return machine.program("busybox", "busybox-static").read_bytes()


def test_a_submodule_that_would_run_something(system: System) -> None:
    modules = f'[submodule "x"]\n\tpath = x\n\turl = ext::sh -c touch% {MARKER}\n\tupdate = !touch {MARKER}\n'
    path = f"ada/linked-{uuid.uuid4().hex}"
    commit = system.commit(path, {"Dockerfile": SMALL, ".gitmodules": modules}, links={"x": COMMIT})
    assert "submodule" in failed(system, system.build(path, commit)).lower()


def test_a_repository_configures_neither_the_tool_nor_git(system: System) -> None:
    path = f"ada/configured-{uuid.uuid4().hex}"
    files = {
        "Dockerfile": SMALL,
        "repo2docker_config.py": f"open('{MARKER}', 'w')\n",
        ".git-hooks/post-checkout": f"#!/bin/sh\ntouch {MARKER}\n",
        ".gitattributes": "* filter=x diff=x\n",
    }
    build = system.ended(system.build(path, system.commit(path, files)))
    assert build["state"] == "succeeded"
