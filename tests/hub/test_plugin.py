"""The Hub plug-in, copied alone into a real JupyterHub, against all of Kiln.

One Hub whose plug-in speaks to Kiln through what can break, and beside it to a receiver that shows its events.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from integrations.jupyterhub import kiln_hub
from tests.parts import hub as parts
from tests.parts.githost import GitHost
from tests.parts.hub import Hub
from tests.parts.hubservice import BASE
from tests.parts.installation import BROKEN, SMALL
from tests.parts.kiln import until
from tests.parts.proxy import Proxy
from tests.parts.registry import Registry
from tests.parts.sink import SILENT, EventSink
from tests.parts.system import System

PLUGIN = Path(kiln_hub.__file__)

CONFIG = """
from kiln_hub import KilnHandler, image_hook

kiln = {kiln!r}
c.EventLogger.handlers = [KilnHandler(*kiln), KilnHandler({sink!r}, None, source="https://hub.example/")]
c.Spawner.pre_spawn_hook = image_hook(*kiln, time_limit=40, patience=2, fallback="last")
c.Spawner.environment = {{"IMAGE": lambda spawner: str(getattr(spawner, "image", None))}}
c.Spawner.consecutive_failure_limit = 2
c.JupyterHub.allow_named_servers = True
"""

PROFILES = """
import asyncio, json, sys
sys.path.insert(0, {folder!r})
from kiln_hub import profile_list
from kubespawner import KubeSpawner

async def started(options):
    spawner = KubeSpawner(_mock=True)
    spawner.profile_list = offered
    spawner.user_options = options
    form = await spawner.get_options_form() if not options else ""
    await spawner.load_user_options()
    return {{"image": spawner.image, "form": form, "profiles": await offered(spawner)}}

offered = profile_list(*{kiln!r}, only={only!r})
print(json.dumps(asyncio.run(started(json.loads(sys.argv[1])))))
"""


LEFT_ALONE = """
import asyncio, json, logging, sys, types
sys.path.insert(0, {folder!r})
from kiln_hub import image_hook

log, options = logging.getLogger("hub"), {{"repository": "https://git.example/a"}}
spawner = types.SimpleNamespace(user_options=options, image="own:1", log=log)
try:
    asyncio.run(image_hook({url!r}, None, **json.loads(sys.argv[1]))(spawner))
except Exception as error:
    print(error.status_code, error.jupyterhub_message)
"""


@pytest.fixture(scope="module")
def kiln(
    tmp_path_factory: pytest.TempPathFactory, docker: None, packages: Path, registry: Registry, host: GitHost
) -> Iterator[System]:
    """Kiln with triggers that build the repository of a course when a server of that name starts."""
    trigger = {
        "name": "courses",
        "filters": [
            {"exact": {"type": "org.jupyterhub.server.start"}},
            {"any": [{"suffix": {"subject": "/stats"}}, {"prefix": {"subject": "user/grace/"}}]},
        ],
        "build": {"repository": f"{host.base}/courses/{{data.servername}}", "ref": "main", "tags": ["current"]},
    }
    settings = {"KILN_AUTH": "token", "KILN_BASE_PATH": BASE}
    folder = tmp_path_factory.mktemp("kiln")
    config = {"triggers": [trigger]}
    with System(folder, registry=registry, host=host, sinks=(), config=config, **settings) as running:
        running.token = "a canary of the Hub's"
        (running.secrets / "api-tokens").mkdir()
        (running.secrets / "api-tokens/hub").write_text(running.token)
        running.start("web")
        running.start("controller")
        yield running


@pytest.fixture(scope="module")
def between(kiln: System) -> Iterator[Proxy]:
    """A proxy between the Hub and Kiln."""
    with Proxy(("127.0.0.1", int(kiln.url.split(":")[2].split("/")[0]))) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def sink() -> Iterator[EventSink]:
    with EventSink() as sink:
        yield sink


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, kiln: System, between: Proxy, sink: EventSink) -> Iterator[Hub]:
    address = (f"http://{between.address}{BASE}", kiln.token)
    config = CONFIG.format(kiln=address, sink=sink.url.removesuffix("events"))
    with Hub(tmp_path_factory.mktemp("hub"), config=config, modules={"kiln_hub.py": PLUGIN}) as hub:
        for user in ("ada", "grace", "kim"):
            hub.add_user(user)
        yield hub


def start(hub: Hub, user: str, options: dict[str, str] | None = None, name: str = "") -> requests.Response:
    path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
    return hub.api("POST", path, options or {})


def stop(hub: Hub, user: str, name: str = "") -> None:
    path = f"users/{user}/servers/{name}" if name else f"users/{user}/server"
    assert hub.api("DELETE", path, {"remove": bool(name)}).status_code in (202, 204)
    until(lambda: not (hub.server(user, name) or {}).get("ready"))


def image(hub: Hub, user: str) -> str:
    """The image in the environment of its server."""
    return str(requests.get(f"{hub.url}user/{user}/env", timeout=10).json()["IMAGE"])


def caused(kiln: System, kind: str, path: str) -> list[dict[str, Any]]:
    """Builds of a repository that an event of that kind has asked for."""
    builds = [build for build in kiln.listed() if build["repository"] == kiln.host.url(path).removesuffix(".git")]
    return [build for build in builds if any(cause["type"] == kind for cause in build["causes"])]


@pytest.mark.timeout(240)
def test_a_servers_start_has_its_course_built(kiln: System, hub: Hub, sink: EventSink) -> None:
    commit = kiln.commit("courses/stats", {"Dockerfile": SMALL})
    assert start(hub, "ada", name="stats").status_code in (201, 202)
    hub.until_ready("ada", "stats")
    until(lambda: caused(kiln, "org.jupyterhub.server.start", "courses/stats"))
    (build,) = caused(kiln, "org.jupyterhub.server.start", "courses/stats")
    (cause,) = build["causes"]
    assert (cause["source"], cause["trigger"], cause["by"]) == (hub.url, "courses", "token:hub")
    ended = kiln.ended(build["name"])
    assert (ended["state"], ended["commit"], ended["image"]["tags"]) == ("succeeded", commit, ["current"])
    stop(hub, "ada", "stats")
    sink.wait_for(lambda _: [event for event in sink.events if event.type == "org.jupyterhub.server.stop"])
    started, stopped = sink.events[:2]
    assert (started.source, started.subject) == ("https://hub.example/", "user/ada/stats")
    assert stopped.data == {"action": "stop", "username": "ada", "servername": "stats"}
    assert started.time is not None
    assert stopped.time is not None
    assert started.time < stopped.time


@pytest.mark.timeout(240)
def test_a_server_starts_from_the_image_that_is_built_for_it(kiln: System, hub: Hub) -> None:
    """The Hub serves other users meanwhile."""
    kiln.running("ada/page", 4)
    with ThreadPoolExecutor(2) as people:
        starting = people.submit(start, hub, "ada", {"repository": kiln.host.url("ada/page"), "ref": "main"})
        until(lambda: (hub.server("ada") or {}).get("pending") == "spawn")
        watching = people.submit(hub.progress, "ada")
        start(hub, "kim")
        hub.until_ready("kim")
        assert image(hub, "kim") == "None"
        assert starting.result().status_code in (201, 202)
        told = watching.result()
    hub.until_ready("ada")
    (build,) = [one for one in kiln.listed() if one["repository"].endswith("/ada/page")]
    assert image(hub, "ada") == build["image"]["reference"]
    assert kiln.digest(build["image"]["repository"], build["image"]["tag"]) == build["image"]["digest"]
    assert told[-1]["ready"] is True
    assert any("sleep" in event["message"] for event in told)
    assert [event["progress"] for event in told if "progress" in event] == sorted(event["progress"] for event in told)
    stop(hub, "kim")
    stop(hub, "ada")


@pytest.mark.timeout(240)
def test_a_build_that_fails_fails_the_start_with_its_reason(kiln: System, hub: Hub) -> None:
    """The Hub survives more of these failures than it tolerates of its own."""
    kiln.commit("ada/broken", {"Dockerfile": BROKEN})
    for _ in range(3):
        start(hub, "kim", {"repository": kiln.host.url("ada/broken")})
        until(lambda: not (hub.server("kim") or {}).get("pending"))
        told = hub.progress("kim")
        assert told[-1]["failed"] is True
        assert "nothing-of-that-name" in told[-1]["message"]
    refused = start(hub, "kim", {"repository": kiln.host.url("ada/broken"), "ref": "nowhere"})
    assert refused.status_code == 424
    assert "nowhere" in refused.json()["message"]
    assert hub.api("GET", "users/kim").status_code == 200


@pytest.mark.timeout(240)
def test_without_kiln_servers_start_and_events_wait(kiln: System, hub: Hub, between: Proxy) -> None:
    kiln.commit("courses/waiting", {"Dockerfile": SMALL})
    kiln.commit("kim/page", {"Dockerfile": SMALL})
    page = {"repository": kiln.host.url("kim/page")}
    start(hub, "grace", page)
    hub.until_ready("grace")
    built = image(hub, "grace")
    stop(hub, "grace")
    between.refuse()
    try:
        start(hub, "kim", {"repository": kiln.host.url("ada/nowhere")})
        told = hub.progress("kim")
        assert told[-1]["ready"] is True
        start(hub, "grace", page)
        hub.until_ready("grace")
        assert (image(hub, "kim"), image(hub, "grace")) == ("None", built)
        start(hub, "grace", name="waiting")
        hub.until_ready("grace", "waiting")
    finally:
        between.accept()
    until(lambda: caused(kiln, "org.jupyterhub.server.start", "courses/waiting"), 90)
    for user, name in (("kim", ""), ("grace", ""), ("grace", "waiting")):
        stop(hub, user, name)


@pytest.mark.timeout(240)
def test_kubespawner_offers_what_is_built(kiln: System, packages: Path, tmp_path: Path) -> None:
    """KubeSpawner is the real one, in the Hub's environment."""
    kiln.commit("courses/offered", {"Dockerfile": SMALL})
    kiln.ended(kiln.ask(repository=kiln.host.url("courses/offered")).json()["name"])
    newest = kiln.commit("courses/offered", {"Dockerfile": SMALL})
    build = kiln.ended(kiln.ask(repository=kiln.host.url("courses/offered")).json()["name"])
    shutil.copy(PLUGIN, tmp_path / "kiln_hub.py")
    (tmp_path / "kubeconfig").write_text(parts.NO_CLUSTER)

    def run(url: str, options: dict[str, str]) -> dict[str, Any]:
        program = PROFILES.format(folder=str(tmp_path), kiln=(url, kiln.token), only=("*/courses/offered",))
        command = [str(parts.environment()), "-c", program, json.dumps(options)]
        environment = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig")}
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60, env=environment)
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    found = run(kiln.url, {})
    own, offered = found["profiles"]
    assert found["image"] == run("http://127.0.0.1:1/", {})["image"]
    assert offered["display_name"] in found["form"]
    assert newest[:12] in offered["description"]
    chosen = {"profile": offered["slug"]}
    assert run(kiln.url, chosen)["image"] == build["image"]["reference"]
    away = run("http://127.0.0.1:1/", chosen)
    assert (away["image"], len(away["profiles"])) == (found["image"], 2)
    assert own["default"] is True


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"time_limit": 1}, "424 The image of https://git.example/a is not ready after 1 s. Its build goes on"),
        ({"fallback": "none", "patience": 1}, "424 Kiln, which builds the images here, is away: it does not answer"),
    ],
)
def test_a_start_that_cannot_be_says_why(
    packages: Path, tmp_path: Path, options: dict[str, object], sentence: str
) -> None:
    """One Kiln never answers, and the other does not exist."""
    with EventSink() as silent:
        silent.answer(then=SILENT)
        shutil.copy(PLUGIN, tmp_path / "kiln_hub.py")
        url = "http://127.0.0.1:1/" if "fallback" in options else silent.url.removesuffix("events")
        program = LEFT_ALONE.format(folder=str(tmp_path), url=url)
        command = [str(parts.environment()), "-c", program, json.dumps(options)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=50)
    assert done.stdout.startswith(sentence), done.stderr
