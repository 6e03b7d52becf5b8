"""BinderHub's API over the real thing: what a script sees that speaks plain HTTP."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from builds.clients.registry import Registry as Client
from tests.parts.githost import GitHost
from tests.parts.installation import SMALL, http
from tests.parts.registry import Registry
from tests.parts.system import System

Message = dict[str, Any]


def address(system: System, path: str, ref: str, base: str | None = None) -> str:
    return f"{base or system.url}build/git/{quote(system.host.url(path), safe='')}/{ref}?build_only=true"


def messages(system: System, url: str, **headers: str) -> Iterator[Message]:
    """The messages with their ids, as they arrive."""
    with closing(http("GET", url, headers=system.authorization | headers, stream=True, timeout=50)) as answer:
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/event-stream")
        fields: dict[str, str] = {}
        for line in answer.iter_lines(decode_unicode=True):
            name, _, value = line.partition(": ")
            if line:
                fields[name] = value
            elif "data" in fields:
                yield {**json.loads(fields["data"]), "id": fields.get("id")}
                fields = {}


def test_a_cold_build_and_a_warm_image(system: System) -> None:
    commit = system.commit("ada/binder", {"Dockerfile": SMALL})
    said = list(messages(system, address(system, "ada/binder", "main")))
    phases = list(dict.fromkeys(message["phase"] for message in said))
    assert phases in (
        ["waiting", "fetching", "building", "ready"],
        ["waiting", "fetching", "building", "pushing", "ready"],
    )
    image, _, tag = said[-1]["imageName"].rpartition(":")
    assert (tag, system.digest(image, tag)) == (commit, said[-1]["imageDigest"])
    name = said[-1]["id"].partition(":")[0]
    build = system.ended(name)
    assert (build["state"], build["causes"][0]["by"]) == ("succeeded", None)
    assert "".join(one["message"] for one in said if one["phase"] not in ("waiting", "ready")) == system.log(name)
    # Of another process of web, by another spelling.
    other = next(str(web.url) for web in system.web if web.url != system.url)
    (end,) = messages(system, address(system, "ada/binder", commit, other))
    assert (end["message"], end["imageDigest"]) == ("Done! Found built image\n", said[-1]["imageDigest"])
    assert len(system.one(name)["causes"]) == 1


def test_an_image_that_was_pushed_by_somebody_else(system: System) -> None:
    """It may hold anything, so the build that is requested is done."""
    commit = system.commit("ada/found", {"Dockerfile": SMALL})
    name = system.build("ada/found", commit)
    image = system.ended(name)["image"]
    other = system.commit("ada/found", {"Dockerfile": SMALL})
    Client().tag(image["repository"], image["digest"], other)
    *_, end = messages(system, address(system, "ada/found", "main"))
    assert (end["phase"], end["imageName"]) == ("ready", f"{image['repository']}:{other}")
    found = [build["commit"] for build in system.listed() if build["repository"].endswith("ada/found")]
    assert found == [other, commit]


def test_a_failing_repository(system: System) -> None:
    system.commit("ada/fails", {"Dockerfile": "FROM scratch\nCOPY nothing-of-that-name /\n"})
    *_, end = messages(system, address(system, "ada/fails", "main"))
    assert end["phase"] == "failed"
    assert "nothing-of-that-name" in end["message"]
    name = end["id"].partition(":")[0]
    (again,) = messages(system, address(system, "ada/fails", "main"), **{"Last-Event-ID": end["id"]})
    assert again == end
    assert system.ended(name)["attempt"] == 1


def test_two_viewers_and_one_who_comes_back_at_another_process(system: System) -> None:
    system.running("ada/viewed", 4)
    bases = [str(web.url) for web in system.web]
    seen: list[Message] = []
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(lambda: list(messages(system, address(system, "ada/viewed", "main", bases[0]))))
        with closing(messages(system, address(system, "ada/viewed", "main", bases[0]))) as first:
            for message in first:
                seen.append(message)
                if message["phase"] == "building":
                    break
        seen += messages(system, address(system, "ada/viewed", "main", bases[1]), **{"Last-Event-ID": seen[-1]["id"]})
        everything = whole.result(timeout=50)
    assert [one for one in seen if one["phase"] != "waiting"] == [
        one for one in everything if one["phase"] != "waiting"
    ]
    build = system.ended(seen[-1]["id"].partition(":")[0])
    assert (build["state"], build["attempt"], len(build["causes"])) == ("succeeded", 1, 2)


def test_a_ref_with_a_slash_by_curl_without_accept(system: System) -> None:
    commit = system.commit("ada/slashes", {"Dockerfile": SMALL}, branch="release/2026/autumn")
    url = address(system, "ada/slashes", "release/2026/autumn")
    command = [
        "curl",
        "--silent",
        "--show-error",
        "--fail",
        "--no-buffer",
        "--max-time",
        "50",
        "--header",
        "Accept:",
        "--header",
        f"Authorization: {system.authorization['Authorization']}",
        url,
    ]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    *_, end = [
        json.loads(line.removeprefix("data: ")) for line in done.stdout.splitlines() if line.startswith("data: ")
    ]
    assert (end["phase"], end["imageName"].rpartition(":")[2]) == ("ready", commit)


def test_what_is_not_there(system: System) -> None:
    system.commit("ada/there", {"Dockerfile": SMALL})
    for path, ref in (("ada/there", "nowhere"), ("ada/nobody", "main")):
        (end,) = messages(system, address(system, path, ref))
        assert (end["phase"], end["status_code"]) == ("failed", 422)


def test_an_address_that_is_not_there_tells_nothing_of_one_that_is(system: System) -> None:
    """Not even with its commit, and where BinderHub's name of the image would be the same."""
    commit = system.commit("ada-eve/secret", {"Dockerfile": SMALL})
    image = system.ended(system.build("ada-eve/secret", commit))["image"]
    *said, end = messages(system, address(system, "ada/eve-secret", commit))
    assert (end["phase"], "no such repository" in end["message"]) == ("failed", True)
    for told in (image["digest"], image["repository"], "imageName"):
        assert told not in json.dumps([*said, end])
    (build,) = (one for one in system.listed() if one["repository"].endswith("/ada/eve-secret"))
    assert build["state"] == "failed"
    assert build["image"]["repository"] != image["repository"]
    assert build["image"]["digest"] is None


def test_the_other_endpoints(system: System) -> None:
    assert system.get("versions").json()["builder_info"]["repo2docker-version"]
    assert system.get("health").json()["ok"] is True
    assert {each["id"] for each in system.get("api/repoproviders").json()} == {"gh", "gl", "git", "gist"}


def test_a_registry_that_is_deaf_holds_nobody_up(tmp_path: Path, host: GitHost) -> None:
    """Two seconds, and then the build is asked for."""
    with Registry(tmp_path / "registry") as registry, System(tmp_path / "kiln", registry=registry, host=host) as system:
        system.commit("ada/deaf", {"Dockerfile": SMALL})
        system.start("web")
        registry.pause()
        began = time.monotonic()
        with closing(messages(system, address(system, "ada/deaf", "main"))) as said:
            assert next(said)["phase"] == "waiting"
        assert 2 <= time.monotonic() - began < 8
        assert len(system.listed()) == 1
        health = system.get("health")
        assert (health.status_code, health.json()["checks"][0]) == (503, {"service": "Docker registry", "ok": False})
