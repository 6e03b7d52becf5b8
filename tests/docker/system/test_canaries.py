"""Every credential is a random value of its own, and is looked for wherever it does not belong.

A credential may be in the files that a person wrote: the secrets folder, `config.yaml` and docker's `config.json`. It
may also be at its destination: a header at its sink, a password at its registry or Git host. The value of a build
argument is no secret to those who run builds. It is part of the request (`kiln.db`, `spec.json`), and on the command
lines of repo2docker and docker, which take it in no other way. No log, event, answer or page holds it.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from builds.clients.referrers import contents
from builds.clients.registry import Registry as Client
from builds.dsse import opened
from builds.provenance import ENVELOPE
from tests.parts import machine
from tests.parts.githost import GitHost
from tests.parts.installation import Webhook, http
from tests.parts.registry import Registry
from tests.parts.system import System, members

NAMES = (
    *("webhook", "token", "wrong-token", "git", "registry", "header", "sink-url"),
    *("argument", "userinfo", "query", "signature", "private-registry", "status"),
)
DOCKERFILE = """\
FROM scratch
COPY busybox /bin/sh
COPY busybox /bin/sleep
ARG TOKEN
RUN sleep {seconds} && echo "the token is ${{TOKEN}}" && {end}
"""


def canary() -> str:
    """Long enough to be nowhere by chance, and spelled otherwise in a URL and in base64."""
    return f"c4n4ry/{secrets.token_hex(12)}+{secrets.token_hex(4)}="


def forms(value: str) -> Iterator[bytes]:
    """How it can be written: plain, in a URL, in JSON and in base64 wherever it begins there."""
    yield value.encode()
    yield quote(value, safe="").encode()
    yield quote(value).encode()
    yield quote_plus(value).encode()
    yield json.dumps(value)[1:-1].replace("/", "\\/").encode()
    yield repr(value)[1:-1].encode()
    for before in range(3):
        encoded = base64.b64encode(b"x" * before + value.encode())
        core = encoded[4 if before else 0 : len(encoded) // 4 * 4 - 4]
        yield core
        yield core.replace(b"+", b"-").replace(b"/", b"_")


@dataclass
class Witness:
    """Sees the environment and the command line of every process of a Kiln, for as long as it watches."""

    system: System
    seen: dict[tuple[str, bytes], set[str]] = field(default_factory=dict)
    _enough: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Witness:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._enough.wait(0.005):
            pids = {process.popen.pid for process in self.system.processes}
            for pid in [*pids]:
                with suppress(OSError):
                    pids |= {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
            for session in self.system.sessions():
                pids |= {*members(session)}
            for pid in pids:
                for what in ("environ", "cmdline"):
                    with suppress(OSError):
                        content = Path(f"/proc/{pid}/{what}").read_bytes()
                        program = Path(f"/proc/{pid}/exe").readlink().name
                        self.seen.setdefault((what, content), set()).add(program)


@dataclass(frozen=True)
class Scene:
    system: System
    canaries: Mapping[str, str]
    private: GitHost


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    values = {name: canary() for name in NAMES}
    key = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "signing.key").write_bytes(key)
    values["signing-key"] = key.decode().splitlines()[1]
    login = base64.b64encode(f"ada:{values['registry']}".encode()).decode()
    with (
        Registry(tmp_path / "registry", {"ada": values["registry"], "eve": values["private-registry"]}) as registry,
        GitHost(tmp_path / "git") as host,
        System(
            tmp_path / "kiln",
            registry=registry,
            host=host,
            config={
                "private_image_prefix": f"{registry.host}/private/",
                "private": [{"match": f"{host.base}/private/course", "use_by": ["webhooks", "token:ci"]}],
                "hosts": {f"{host.address}:{host.port}": {"kind": "github", "statuses": True}},
            },
            KILN_AUTH="token",
            KILN_PUBLIC_URL="http://kiln.example/",
            KILN_PRIVATE_REGISTRY_CONFIG=str(tmp_path / "private.json"),
            KILN_REGISTRY_CONFIG=str(tmp_path / "docker.json"),
            KILN_SIGNING_KEY=str(tmp_path / "signing.key"),
            KILN_LOG_LEVEL="debug",
        ) as system,
    ):
        host.passwords["/private/"] = ("ada", values["git"])
        (tmp_path / "docker.json").write_text(json.dumps({"auths": {registry.host: {"auth": login}}}))
        private = {"username": "eve", "password": values["private-registry"]}
        (tmp_path / "private.json").write_text(json.dumps({"auths": {registry.host: private}}))
        written = {
            "webhooks/github/main": values["webhook"],
            "api-tokens/ci": values["token"],
            f"statuses/{host.address}:{host.port}": values["status"],
            "headers/first": f"Authorization: Bearer {values['header']}\n",
            "git-credentials/all": f"http://ada:{quote(values['git'], safe='')}@127.0.0.1:{host.port}/private\n",
        }
        for name, secret in written.items():
            (system.secrets / name).parent.mkdir(parents=True, exist_ok=True)
            (system.secrets / name).write_text(secret)
        config = tmp_path / "kiln/config.yaml"
        address = system.sinks["second"].url
        config.write_text(config.read_text().replace(address, f"{address}?token={quote(values['sink-url'], safe='')}"))
        system.webhook_secret, system.token = values["webhook"], values["token"]
        system.start("web")
        system.start("controller")
        yield Scene(system, values, host)


def test_no_credential_is_where_it_does_not_belong(scene: Scene) -> None:
    system, canaries = scene.system, {**scene.canaries}
    answers: list[bytes] = []

    def saw(answer: requests.Response) -> None:
        answers.append(whole(answer))

    with Witness(system) as witness:
        good, failing = private_push(scene, answers), failing_build(scene)
        refused(scene, saw)
        canaries |= session(scene, saw)
        builds = [system.ended(good), system.ended(failing)]
    assert [build["state"] for build in builds] == ["succeeded", "failed"], builds
    assert builds[0]["image"]["reference"].startswith(f"{system.registry.host}/private/")
    assert "the token is ***" in system.log(failing)
    assert any("/statuses/" in target for target in scene.private.credentials), "the host received no status"
    look_around(system, (good, failing), saw)

    places = places_of(system, witness, answers)
    places["the statement"] = statement_of(system, builds[0]["image"])
    for name, sink in system.sinks.items():
        sink.wait_for(lambda received: len(received) >= 6)
        for number, one in enumerate(sink.received):
            own = {"authorization"} if name == "first" else set()
            headers = {header: value for header, value in one.headers.items() if header not in own}
            places[f"event {number} at {name}"] = one.body + repr(headers).encode()
        paths = {one.path for one in sink.received}
        assert (name == "second") == any("c4n4ry" in path for path in paths)
    found = search(places, canaries)
    argument = re.compile(r"argument in (state/(kiln\.db(-wal)?|attempts/[^/]+/spec\.json)|cmdline of )")
    assert [one for one in found if not argument.match(one)] == []
    assert [one for one in found if argument.match(one)], "the search finds nothing at all"


def test_the_token_of_this_machine_is_where_its_owner_looks_for_it_and_nowhere_else(
    tmp_path: Path, registry: Registry, host: GitHost
) -> None:
    answers: list[bytes] = []
    with System(tmp_path / "kiln", registry=registry, host=host, KILN_LOG_LEVEL="debug") as system:
        web = system.start("web")
        system.start("controller")
        token = system.own_token
        assert token
        with Witness(system) as witness:
            commit, seconds = private_commit(system, "public/own", "true")
            name = system.build("public/own", commit)
            system.step_runs(name, seconds)
            canaries = {"token": token, "session": by_the_printed_address(system, name, token, answers)}
            asked = ("build", system.host.url("public/own"), "--ref", commit)
            told = system.run(*asked, PORT=system.url.split(":")[2].strip("/"))
            assert told.returncode == 0, told.stderr
        answers.append(f"{told.stdout}{told.stderr}".encode())
        look_around(system, (name,), lambda answer: answers.append(whole(answer)))
        places = places_of(system, witness, answers)
        printed = places[web.log.name].splitlines(keepends=True)
        own = [line for line in printed if line.startswith(b"Kiln's pages: ")]
        assert [token.encode() in line for line in own] == [True]
        places[web.log.name] = b"".join(line for line in printed if line not in own)
        assert search(places, canaries) == ["token in state/token"]


def statement_of(system: System, image: Mapping[str, str]) -> bytes:
    """The signed statement of the private image: the envelope and its content."""
    client = Client(system.settings["KILN_PRIVATE_REGISTRY_CONFIG"])
    [(_, envelope)] = contents(client, image["repository"], image["digest"], (ENVELOPE,))
    return envelope + opened(envelope, None)[0]


def by_the_printed_address(system: System, name: str, token: str, answers: list[bytes]) -> str:
    """The session of a browser that opens a page by the token in its address."""
    with requests.Session() as browser:
        browser.headers["Accept"] = "text/html"
        there = browser.get(f"{system.url}builds/{name}?token={token}", allow_redirects=False, timeout=20)
        value = browser.cookies["kiln-session"]
        assert value in there.headers.pop("Set-Cookie")
        answers.append(whole(there))
        answers.append(whole(browser.get(f"{system.url}builds/{name}", timeout=20)))
    return value


def whole(answer: requests.Response) -> bytes:
    return answer.content + repr(dict(answer.headers)).encode()


def look_around(system: System, names: Sequence[str], saw: Callable[[requests.Response], None]) -> None:
    """Reads everything that people and programs can read."""
    for path in ("", "api/v1/builds", "api/v1/builds?limit=1", *(f"builds/{name}" for name in names)):
        saw(system.get(path, Accept="text/html"))
        saw(http("GET", f"{system.url}{path}", headers={"Accept": "text/html"}))
    for name in names:
        saw(system.get(f"api/v1/builds/{name}"))
        saw(system.get(f"api/v1/builds/{name}/log"))
        saw(system.get(f"api/v1/builds/{name}/log", Accept="text/event-stream"))
    for process in system.processes:
        saw(http("GET", f"{process.ops}/metrics"))


def places_of(system: System, witness: Witness, answers: Sequence[bytes]) -> dict[str, bytes]:
    """All answers, logs and stored files, and the visible parts of processes."""
    places = {f"an answer ({number})": answer for number, answer in enumerate(answers)}
    for process in system.processes:
        places[process.log.name] = process.log.read_bytes()
    state = Path(system.settings["KILN_STATE_DIR"])
    for file in state.rglob("*"):
        if file.is_file():
            places[f"state/{file.relative_to(state)}"] = file.read_bytes()
    for number, ((what, content), programs) in enumerate(witness.seen.items()):
        places[f"{what} of {' '.join(sorted(programs))} ({number})"] = content
    assert any(place.startswith("cmdline of docker") for place in places), "no process of a build was seen"
    for folder in (state / "attempts").iterdir():
        assert not list(folder.glob("kiln-*"))
    return places


def search(places: Mapping[str, bytes], canaries: Mapping[str, str]) -> list[str]:
    return [
        f"{name} in {place}"
        for place, content in places.items()
        for name, value in canaries.items()
        if any(form in content for form in forms(value))
    ]


def private_push(scene: Scene, answers: list[bytes]) -> str:
    """A private repository, fetched with the stored credential, as a webhook requests it."""
    system = scene.system
    commit, seconds = private_commit(system, "private/course", "true")
    answer = system.deliver(system.push("private/course", commit))
    answers.append(answer.content)
    assert answer.status_code == 202, answer.text
    name = str(answer.json()["builds"][0]["name"])
    system.step_runs(name, seconds)
    return name


def failing_build(scene: Scene) -> str:
    """A build whose step prints its build argument and fails, so that the tool prints its whole command as well."""
    system = scene.system
    commit, seconds = private_commit(system, "public/failing", "false")
    argument = {"TOKEN": scene.canaries["argument"]}
    name = system.build("public/failing", commit, build_args=argument)
    system.step_runs(name, seconds)
    return name


def private_commit(system: System, path: str, end: str) -> tuple[str, str]:
    seconds = f"2.{secrets.randbelow(10**9):09}"
    busybox = machine.program("busybox", "busybox-static").read_bytes()
    files: dict[str, str | bytes] = {"Dockerfile": DOCKERFILE.format(seconds=seconds, end=end), "busybox": busybox}
    return system.commit(path, files), seconds


def session(scene: Scene, saw: Callable[[requests.Response], None]) -> dict[str, str]:
    """Signs in, looks around and signs out. Returns the cookie and the tokens that only the session's pages show."""
    url = scene.system.url
    with requests.Session() as browser:
        browser.headers["Accept"] = "text/html"
        page = browser.get(f"{url}login", timeout=20)
        data = {"form": hidden(page.text), "token": scene.canaries["token"]}
        signed_in = browser.post(f"{url}login", data=data, allow_redirects=False, timeout=20)
        cookie = signed_in.cookies["kiln-session"]
        page = browser.get(url, timeout=20)
        assert page.status_code == 200
        assert cookie not in page.text
        shown, form = re.search(r'name="xsrf" content="(\w+)"', page.text), hidden(page.text)
        assert shown
        saw(browser.get(f"{url}api/v1/builds?_xsrf={shown[1]}", headers={"Sec-Fetch-Mode": "cors"}, timeout=20))
        saw(browser.get(f"{url}api/v1/builds?_xsrf={form}", headers={"Sec-Fetch-Mode": "cors"}, timeout=20))
        saw(browser.post(f"{url}logout", data={"form": form}, timeout=20))
        assert browser.get(f"{url}api/v1/builds", timeout=20).status_code == 401
    return {"session": cookie, "the session's token": shown[1], "the form's token": form}


def hidden(page: str) -> str:
    """The token in a page's form, without which another page cannot send the form."""
    found = re.search(r'name="form" value="([^"]+)"', page)
    assert found, page
    return found[1]


def refused(scene: Scene, saw: Callable[[requests.Response], None]) -> None:
    """Requests with every kind of wrong credential, and secrets that people paste into the wrong place."""
    system, canaries = scene.system, scene.canaries
    wrong = {"Authorization": f"Bearer {canaries['wrong-token']}"}
    address = f"https://ada:{quote(canaries['userinfo'], safe='')}@github.com/a/b"
    push = system.push("public/failing", system.commit("public/failing", {"Dockerfile": "FROM scratch\n"}))
    signed = dict(push.headers) | {"X-Hub-Signature-256": f"sha256={canaries['signature']}"}
    answers = [
        (401, http("GET", f"{system.url}api/v1/builds", headers=wrong)),
        (401, http("POST", f"{system.url}events", data=b"{}", headers=wrong)),
        (401, http("GET", f"{system.url}?token={quote(canaries['query'], safe='')}", headers={"Accept": "text/html"})),
        (400, system.get(f"api/v1/builds?continue={quote(canaries['query'], safe='')}")),
        (422, system.get(f"api/v1/builds?repository={quote(address, safe='')}")),
        (422, system.ask(repository=address, commit="1" * 40)),
        (400, system.ask(repository="https://github.com/a/b", commit=canaries["argument"])),
        (400, system.ask(repository="https://github.com/a/b", build_args={canaries["argument"]: "x"})),
        (422, system.ask(repository=system.host.url("private/other"), ref="main")),
        (401, system.deliver(Webhook(signed, push.body))),
        (403, http("POST", f"{system.url}login", data={"token": canaries["wrong-token"]})),
    ]
    for status, answer in answers:
        assert answer.status_code == status, (status, answer.status_code, answer.text)
        saw(answer)
