"""From a push to an image and the event that names it."""

from __future__ import annotations

import secrets
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests

from tests.parts import machine
from tests.parts.installation import SMALL, Webhook, http
from tests.parts.system import System
from tools.demo import github


def names(answer: requests.Response) -> list[str]:
    return [build["name"] for build in answer.json()["builds"]]


def test_a_push_becomes_an_image_and_both_sinks_are_told_its_digest(system: System) -> None:
    commit = system.commit("ada/page", {"Dockerfile": SMALL})
    answer = system.deliver(system.push("ada/page", commit))
    assert answer.status_code == 202
    build = system.ended(names(answer)[0])
    assert (build["state"], build["attempt"]) == ("succeeded", 1), build
    image = build["image"]
    assert image["digest"] == system.digest(image["repository"], commit)
    assert image["tags"] == ["main"]
    assert system.digest(image["repository"], "main") == image["digest"]
    for sink in system.sinks:
        event = system.arrived(sink, build["name"], "succeeded")
        assert isinstance(event.data, dict)
        assert event.data["image"]["reference"] == f"{image['repository']}:{commit}@{image['digest']}"
        assert event.extensions["image"] == image["reference"] == event.data["image"]["reference"]
        assert event.extensions["commit"] == commit
        kinds = [one.type.split(".")[3] for one in system.events(sink, build["name"])]
        assert sorted(kinds) == ["queued", "started", "succeeded"]
    pulled = subprocess.run(
        ["docker", "pull", f"{image['repository']}@{image['digest']}"], check=False, capture_output=True, text=True
    )
    assert pulled.returncode == 0, pulled.stderr


def test_a_webhook_that_is_faster_than_its_host(system: System, tmp_path: Path) -> None:
    """The server that is asked for the commit does not know it yet, and does a little later."""
    system.commit("ada/fast", {"Dockerfile": SMALL})
    bare = system.host.bare("ada/fast")
    late, ahead = tmp_path / "late", tmp_path / "ahead"
    shutil.copytree(bare, late)
    commit = system.commit("ada/fast", {"Dockerfile": SMALL})
    webhook = system.push("ada/fast", commit)
    shutil.move(bare, ahead)
    shutil.move(late, bare)
    (name,) = names(system.deliver(webhook))
    waiting = system.wait(name, lambda found: found["attempt"] == 2 and found["waiting"])
    assert "does not serve the push yet" in waiting["waiting"]
    shutil.move(bare, late)
    shutil.move(ahead, bare)
    build = system.ended(name)
    assert (build["state"], build["commit"]) == ("succeeded", commit)
    assert [attempt["reason"] for attempt in build["attempts"]][:1] == ["infrastructure"]


def test_two_subdirs_of_one_commit_are_two_images(system: System) -> None:
    files = {"one/Dockerfile": SMALL, "one/page": "1", "two/Dockerfile": SMALL, "two/page": "2"}
    commit = system.commit("teaching/course", files)
    made = names(system.deliver(system.push("teaching/course", commit)))
    images = [system.ended(name)["image"] for name in made]
    assert len({image["digest"] for image in images}) == len({image["tag"] for image in images}) == 2
    for subdir, image in zip(("one", "two"), images, strict=True):
        assert image["tags"] == [f"{subdir}-main"]
        assert system.digest(image["repository"], f"{subdir}-main") == image["digest"]


def test_every_spelling_and_every_way_in_is_one_build(system: System) -> None:
    commit = system.commit("ada/spelled", {"Dockerfile": SMALL})
    url = system.host.url("ada/spelled")
    (name,) = names(system.deliver(system.push("ada/spelled", commit)))
    spellings = [url, url.removesuffix(".git"), f"{url.removesuffix('.git')}/", url.replace("http", "HTTP", 1)]
    asked = [system.ask(repository=spelling, commit=commit.upper()) for spelling in spellings]
    asked += [system.ask(repository=url, ref=ref) for ref in ("main", "refs/heads/main", None, commit)]
    assert {answer.status_code for answer in asked} == {202}
    assert {answer.json()["name"] for answer in asked} == {name}
    assert system.ended(name)["attempt"] == 1
    refused = system.ask(repository="git@github.com:Ada/Spelled.git", commit=commit)
    assert refused.status_code == 422
    assert "https://github.com/Ada/Spelled" in refused.json()["detail"]


def test_github_ignores_case(queue: System) -> None:
    asked = [
        queue.ask(repository=url, commit="1" * 40) for url in ("https://github.com/A/B.git", "https://GitHub.com/a/b/")
    ]
    assert len({answer.json()["name"] for answer in asked}) == 1


def test_copies_of_one_webhook_and_twenty_events_are_one_build(system: System) -> None:
    """200 simultaneous copies over two processes; then the same commit by other deliveries, the API and CloudEvents."""
    commit = system.commit("ada/popular", {"Dockerfile": SMALL})
    url = system.host.url("ada/popular")
    copy = system.push("ada/popular", commit)
    webs = [str(web.url) for web in system.web]

    def again(number: int) -> int:
        secret = system.webhook_secret.encode()
        other = Webhook(github.delivery(secret, "push", copy.body), copy.body)
        return system.deliver(other, webs[number % 2]).status_code

    def api(number: int) -> int:
        return system.ask(webs[number % 2], repository=url, commit=commit).status_code

    def cloudevent(number: int) -> int:
        event = {"specversion": "1.0", "id": f"{number}", "source": "/twenty", "type": "dev.kiln.build.requested.v1"}
        event_body = {**event, "data": {"repository": url, "commit": commit}}
        kind = {"Content-Type": "application/cloudevents+json", **system.authorization}
        return http("POST", f"{webs[number % 2]}events", json=event_body, headers=kind).status_code

    with ThreadPoolExecutor(32) as senders:
        copies = list(senders.map(lambda number: system.deliver(copy, webs[number % 2]), range(200)))
        ways = [again] * 7 + [api] * 7 + [cloudevent] * 6
        others = list(senders.map(lambda numbered: numbered[1](numbered[0]), enumerate(ways)))
    assert {answer.status_code for answer in copies} | {*others} == {202}
    (name,) = {name for answer in copies for name in names(answer)}
    build = system.ended(name)
    assert build["state"] == "succeeded"
    assert len(build["causes"]) == 21
    assert len({(cause["source"], cause["id"]) for cause in build["causes"]}) == 21
    system.wait(name, lambda found: all(one["state"] == "delivered" for one in found["deliveries"]))
    assert [attempt["number"] for attempt in system.one(name)["attempts"]] == [1]
    assert len(system.attempts(name)) == 1
    for sink in system.sinks:
        ids = {event.id for event in system.events(sink, name, "succeeded")}
        own = [one for one in ids if one.endswith(".1.succeeded")]
        assert len(own) == 1
        assert all(one.startswith(f"{own[0]}.") for one in ids - {*own})


def test_who_asks_when_it_is_done_is_answered_with_the_same_image(system: System) -> None:
    commit = system.commit("ada/again", {"Dockerfile": SMALL})
    webhook = system.push("ada/again", commit)
    (name,) = names(system.deliver(webhook))
    first = system.ended(name)
    assert system.build("ada/again", commit, tags=["later"]) == name
    found = system.wait(name, lambda build: "later" in (build["image"]["tags"] or []))
    assert found["image"]["digest"] == first["image"]["digest"] == system.digest(found["image"]["repository"], "later")
    for sink in system.sinks:
        system.taken(sink, name, "succeeded", 2)
    assert len(system.attempts(name)) == 1


def test_tags_of_who_joins_a_build_that_runs_are_set(system: System) -> None:
    commit, seconds = system.running("ada/joined", 5)
    name = system.build("ada/joined", commit, tags=["first"])
    system.step_runs(name, seconds)
    assert system.build("ada/joined", commit, tags=["joined"]) == name
    found = system.wait(name, lambda build: {"first", "joined"} <= {*(build["image"]["tags"] or [])})
    assert found["image"]["digest"] == system.digest(found["image"]["repository"], "joined")
    for sink in system.sinks:
        system.taken(sink, name, "succeeded", 2)
    assert len(system.attempts(name)) == 1


def test_force_builds_anew(system: System) -> None:
    commit = system.commit("ada/forced", {"Dockerfile": SMALL, "note": secrets.token_hex(4)})
    name = system.build("ada/forced", commit)
    system.ended(name)
    assert system.build("ada/forced", commit, force=True) == name
    found = system.wait(name, lambda build: build["attempt"] == 2 and build["state"] == "succeeded")
    assert [attempt["number"] for attempt in found["attempts"]] == [1, 2]


def test_a_step_that_fails_is_told_at_once(system: System) -> None:
    busybox = machine.program("busybox", "busybox-static").read_bytes()
    dockerfile = "FROM scratch\nCOPY busybox /bin/sh\nRUN echo the dog ate it >&2 && exit 7\n"
    commit = system.commit("ada/failing", {"Dockerfile": dockerfile, "busybox": busybox})
    (name,) = names(system.deliver(system.push("ada/failing", commit)))
    build = system.ended(name)
    assert (build["state"], build["reason"], build["attempt"]) == ("failed", "repository", 1)
    assert "exit code: 7" in build["message"]
    assert "the dog ate it" in build["message"]
    for sink in system.sinks:
        event = system.arrived(sink, name, "failed")
        assert isinstance(event.data, dict)
        assert (event.extensions["reason"], event.data["message"]) == ("repository", build["message"])
        assert "image" not in event.extensions
    assert system.digest(build["image"]["repository"], commit) is None
