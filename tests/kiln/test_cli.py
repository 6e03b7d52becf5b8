"""The command line, run as a user runs it."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from builds.repository import canonical
from kiln.gunicorn import GRACE
from tests.eventing.deliveries import PUSHES, REPOSITORIES, Delivery
from tests.parts.kiln import Kiln, Process, get, until
from tests.parts.published_data import published_data

COMMIT = "0123456789abcdef0123456789abcdef01234567"
EVENT = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/test",
    "type": "dev.kiln.build.requested.v1",
    "data": {"repository": "https://github.com/binder-examples/conda", "commit": COMMIT},
}
PUSH = {
    "ref": "refs/heads/main",
    "before": "f" * 40,
    "after": COMMIT,
    "head_commit": {"id": COMMIT},
    "repository": {
        "url": "https://github.com/Our-Org/course",
        "clone_url": "https://github.com/Our-Org/course.git",
        "default_branch": "main",
    },
}


def webhook(push: dict[str, object], line: str = "\r\n") -> bytes:
    head = [
        "POST /webhooks/github HTTP/1.1",
        "Host: kiln.example",
        "Content-Type: application/json",
        "X-GitHub-Event: push",
        "X-GitHub-Delivery: d-1",
    ]
    return (line.join(head) + line * 2).encode() + json.dumps(push).encode()


@pytest.fixture
def kiln(tmp_path: Path) -> Iterator[Kiln]:
    with Kiln(tmp_path) as installation:
        yield installation


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kiln]:
    """One installation for all read-only tests; its web is `web`."""
    with Kiln(tmp_path_factory.mktemp("web")) as installation:
        installation.start("web")
        yield installation


@pytest.fixture
def web(served: Kiln) -> Process:
    return served.processes[0]


def test_help_names_the_commands(kiln: Kiln) -> None:
    done = kiln.run("--help")
    assert done.returncode == 0
    assert all(
        f"  {command} " in done.stdout for command in ("build", "check", "controller", "send", "serve", "sync", "web")
    )


def test_every_setting_is_an_option(kiln: Kiln) -> None:
    done = kiln.run("check", "--image-prefix", "Upper.example/", KILN_IMAGE_PREFIX="registry.example/")
    assert done.returncode == 1
    assert "error: " in done.stdout
    assert kiln.run("web", "--help").stdout.count("[KILN_") > 30


@pytest.mark.parametrize(
    "arguments", [["bake"], ["build"], ["send", "/absent"], ["build", "https://a.example/b", "--x"]]
)
def test_misuse_is_status_2(kiln: Kiln, arguments: list[str]) -> None:
    done = kiln.run(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["web", "controller", "check", "sync"])
def test_a_typo_is_told_before_anything_starts(kiln: Kiln, command: str) -> None:
    done = kiln.run(command, KILN_IMAGE_PREFX="x")
    assert done.returncode == 1
    assert "KILN_IMAGE_PREFX: unknown setting; did you mean KILN_IMAGE_PREFIX?" in done.stdout + done.stderr


def test_rules_for_which_a_builds_pod_has_no_room_are_told_before_anything_starts(kiln: Kiln) -> None:
    rules = ",".join(f"https://git.example.edu/{n}/{'x' * 80}/**" for n in range(900))
    done = kiln.run("check", KILN_ALLOWED_REPOSITORIES=rules)
    assert done.returncode == 1
    assert "longer than 96 KiB together, most of it KILN_ALLOWED_REPOSITORIES" in done.stdout + done.stderr


@pytest.mark.parametrize("command", ["web", "controller", "check", "sync"])
def test_each_process_refuses_what_check_refuses(kiln: Kiln, tmp_path: Path, command: str) -> None:
    (tmp_path / "kiln.yaml").write_text("triggers: [{name: a, build: {image: 'elsewhere.example/{slug}'}}]\n")
    (tmp_path / "secrets" / "webhooks" / "github").mkdir(parents=True)
    (tmp_path / "secrets" / "webhooks" / "github" / "a").write_bytes(b"canary\r\n")
    folder = {"KILN_CONFIG": str(tmp_path / "kiln.yaml"), "KILN_SECRETS_DIR": str(tmp_path / "secrets")}
    done = kiln.run(command, KILN_OPS_PORT="0", PORT="0", **folder)
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert "Trigger 'a', build.image: " in said
    assert "webhooks/github/a: ends with a carriage return" in said
    assert "Traceback" not in said


def test_web_that_can_be_reached_refuses_to_start_unasked(kiln: Kiln) -> None:
    done = kiln.run("web", KILN_HOST="0.0.0.0")
    assert done.returncode == 1
    assert "KILN_AUTH: must be set" in done.stderr


# kiln check --------------------------------------------------------------------------------------------------------


def test_check_says_that_everything_is_in_order(kiln: Kiln) -> None:
    done = kiln.run("check")
    assert done.returncode == 0
    assert done.stdout.endswith("Configuration is valid\n")


def test_check_tells_all_that_is_wrong_in_file_and_folder(kiln: Kiln, tmp_path: Path) -> None:
    (tmp_path / "kiln.yaml").write_text("sink: []\ntriggers: [{name: a, pushh: {}}]\n")
    (tmp_path / "secrets" / "api-tokens").mkdir(parents=True)
    (tmp_path / "secrets" / "api-tokens" / "ci").touch()
    done = kiln.run(
        "check",
        KILN_CONFIG=str(tmp_path / "kiln.yaml"),
        KILN_SECRETS_DIR=str(tmp_path / "secrets"),
        KILN_BANNED_REPOSITORIES="ftp:// x",
        K_CE_OVERRIDES="{",
        K_SINK="http://sink.example/",
        KILN_REGISTRY_CONFIG=str(tmp_path / "absent.json"),
    )
    assert done.returncode == 1
    for told in (
        "KILN_REGISTRY_CONFIG: ",
        "sink: unknown section",
        "triggers[0]: ",
        "api-tokens/ci: is empty",
        "K_CE_OVERRIDES",
    ):
        assert told in done.stdout


def test_check_shows_what_a_saved_webhook_would_build(kiln: Kiln, tmp_path: Path) -> None:
    for number, line in enumerate(("\r\n", "\n")):
        saved = tmp_path / f"push-{number}.http"
        saved.write_bytes(webhook(PUSH, line))
        done = kiln.run("check", "--event", str(saved))
        assert done.returncode == 0
        assert "event d-1: com.github.push" in done.stdout
        assert "    repository: https://github.com/our-org/course\n" in done.stdout
        assert f":{COMMIT}\n" in done.stdout


@pytest.mark.parametrize(("word", "delivery"), [*((word, make()) for word, make in PUSHES.items())])
def test_check_knows_whose_webhook_it_is(kiln: Kiln, tmp_path: Path, word: str, delivery: Delivery) -> None:
    """Hosts also send each other's headers, and GitHub's, so the detection must not rely on one."""
    (tmp_path / "kiln.yaml").write_text(f"hosts: {{git.example.com: {{kind: {word}}}}}\n")
    head = "".join(f"{name}: {value}\r\n" for name, value in delivery.headers.items())
    saved = f"POST /webhooks/{word} HTTP/1.1\r\n{head}\r\n".encode() + delivery.body
    done = kiln.run("check", "--event", "-", stdin=saved, KILN_CONFIG=str(tmp_path / "kiln.yaml"))
    assert done.returncode == 0
    assert f"event d-1: com.{word}.push" in done.stdout
    assert f"    repository: {canonical(REPOSITORIES[word]).url}\n" in done.stdout


def test_check_shows_what_no_trigger_wants_and_what_policy_refuses(kiln: Kiln) -> None:
    other = webhook(PUSH | {"ref": "refs/heads/other"})
    assert "no trigger matches it" in kiln.run("check", "--event", "-", stdin=other).stdout
    banned = kiln.run("check", "--event", "-", stdin=webhook(PUSH), KILN_BANNED_REPOSITORIES="https://github.com/**")
    assert "refused (422): " in banned.stdout
    stranger = PUSH | {"repository": PUSH["repository"] | {"clone_url": "https://gitlab.com/our-org/course.git"}}
    refused = kiln.run("check", "--event", "-", stdin=webhook(stranger))
    assert refused.returncode == 1
    assert "error: The repository is not on a known github host" in refused.stdout


def test_check_shows_a_batch_and_what_would_be_looked_up(kiln: Kiln) -> None:
    by_ref = EVENT | {"id": "e-2", "data": {"repository": "https://github.com/a/b", "ref": "main"}}
    done = kiln.run("check", "--event", "-", stdin=json.dumps([EVENT, by_ref]).encode())
    assert done.returncode == 0
    assert "event e-1" in done.stdout
    assert "event e-2" in done.stdout
    assert "commit: to be looked up" in done.stdout


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"GET / HTTP/1.1\r\nbroken\r\n\r\n", b"\xff", webhook({})])
def test_check_refuses_what_is_no_saved_request(kiln: Kiln, content: bytes) -> None:
    done = kiln.run("check", "--event", "-", stdin=content)
    assert done.returncode == 1
    assert done.stdout.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_check_takes_a_payload_alone_of_a_host(kiln: Kiln) -> None:
    payload = json.dumps(PUSH, indent=2).encode()
    done = kiln.run("check", "--event", "-", stdin=payload)
    assert (done.returncode, "--host" in done.stdout) == (1, True)
    done = kiln.run("check", "--event", "-", "--host", "github", stdin=b"\xef\xbb\xbf" + payload)
    assert done.returncode == 0
    assert f":{COMMIT}\n" in done.stdout


# kiln web ----------------------------------------------------------------------------------------------------------


def test_the_ops_port_answers(web: Process) -> None:
    assert get(f"{web.ops}/livez") == (200, b"alive\n")
    assert get(f"{web.ops}/readyz") == (200, b"ready\n")
    assert b"kiln_http_request_seconds" in get(f"{web.ops}/metrics")[1]
    assert get(f"{web.ops}/other")[0] == 404


def test_send_prints_the_answer(served: Kiln, web: Process, tmp_path: Path) -> None:
    saved = tmp_path / "event.json"
    saved.write_text(json.dumps(EVENT))
    done = served.run("send", str(saved), "--to", f"{web.url}events")
    assert done.returncode == 0
    assert done.stdout.startswith("202 ")
    assert "Location: /api/v1/builds/build-binder-examples-conda-" in done.stdout
    batch = served.run(
        "send", "-", "--to", f"{web.url}events", stdin=json.dumps([EVENT, EVENT | {"id": "e-2"}]).encode()
    )
    assert batch.stdout.startswith("202 ")


def test_send_of_what_is_refused_is_status_1(served: Kiln, web: Process) -> None:
    done = served.run("send", "-", "--to", f"{web.url}events", stdin=b'{"specversion":"1.0"}')
    assert done.returncode == 1
    assert done.stdout.startswith("400 ")


@pytest.fixture
def with_secrets(tmp_path: Path) -> Iterator[tuple[Kiln, Process]]:
    for word in ("github", "gitea"):
        folder = tmp_path / "secrets" / "webhooks" / word
        folder.mkdir(parents=True)
        (folder / "main").write_text(f"a canary of {word}'s\n")
    more = {
        "KILN_SECRETS_DIR": str(tmp_path / "secrets"),
        "KILN_CONFIG": str(tmp_path / "kiln.yaml"),
        "KILN_BASE_PATH": "/a%40b/",
        "KILN_AUTH": "none",
    }
    (tmp_path / "kiln.yaml").write_text("hosts: {git.example.com: {kind: gitea}}\n")
    with Kiln(tmp_path, **more) as installation:
        yield installation, installation.start("web")


def test_what_a_delivery_page_shows_goes_to_its_hosts_route(with_secrets: tuple[Kiln, Process]) -> None:
    kiln, web = with_secrets
    page = "Headers\n\nRequest URL: https://kiln.example/\nX-GitHub-Event: push\nX-GitHub-Delivery: d-2\nPayload\n{}\n"
    page = page.replace("{}", json.dumps(PUSH, indent=2))
    here = {"PORT": str(web.url).split(":")[2].split("/")[0]}
    unsigned = kiln.run("send", "-", stdin=page.encode(), **here)
    assert (unsigned.returncode, unsigned.stdout[:4]) == (1, "401 ")
    assert "--sign signs the webhook again" in unsigned.stderr
    for to in ((), ("--to", str(web.url)), ("--to", f"{web.url}events"), ("--to", f"{web.url}webhooks/github")):
        done = kiln.run("send", "-", "--sign", *to, stdin=page.encode(), **here)
        assert (done.returncode, done.stdout[:4], done.stderr) == (0, "202 ", "")
        assert "/a%40b/api/v1/builds/build-our-org-course-" in done.stdout
        assert "canary" not in done.stdout
    alone = json.dumps(PUSH).encode()
    sent = kiln.run("send", "-", "--host", "github", "--sign", stdin=alone, **here)
    assert (sent.returncode, sent.stdout[:4]) == (0, "202 ")
    push = json.loads(published_data("gitea/push.json").read_bytes())
    sent = kiln.run("send", "-", "--sign", stdin=json.dumps(push).encode(), **here)
    assert (sent.returncode, sent.stdout[:4]) == (0, "202 "), sent.stdout
    event = kiln.run("send", "-", stdin=json.dumps(EVENT).encode(), **here)
    assert (event.returncode, event.stdout[:4]) == (0, "202 ")


def test_send_that_cannot_sign_says_why(kiln: Kiln, tmp_path: Path) -> None:
    (tmp_path / "secrets" / "webhooks" / "github").mkdir(parents=True)
    for more, content, said in (
        ({}, webhook(PUSH), "KILN_SECRETS_DIR has no secret in webhooks/github"),
        ({"KILN_SECRETS_DIR": str(tmp_path / "secrets")}, webhook(PUSH), "no secret in webhooks/github"),
        ({}, json.dumps(EVENT).encode(), "only webhooks of Git hosts are signed"),
    ):
        done = kiln.run("send", "-", "--sign", stdin=content, **more)
        assert (done.returncode, done.stdout) == (1, "")
        assert said in done.stderr


@pytest.mark.parametrize(
    "to", ["http://[", "http://a b/", "ftp://x/", "http://x:99999/", "http://.example/", "http://", "x"]
)
def test_send_to_what_is_no_address_is_a_sentence(kiln: Kiln, to: str) -> None:
    for content in (json.dumps(EVENT).encode(), webhook(PUSH)):
        done = kiln.run("send", "-", "--to", to, stdin=content)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("kiln: ")
        assert len(done.stderr.splitlines()) == 1


def test_requests_are_logged_as_json_with_event_and_build(served: Kiln, web: Process) -> None:
    event = EVENT | {"id": "e-logged"}
    served.run("send", "-", "--to", f"{web.url}events?secret=canary-3f", stdin=json.dumps(event).encode())
    until(lambda: any(line.get("event_id") == "e-logged" for line in web.lines))
    (line,) = [line for line in web.lines if line.get("event_id") == "e-logged"]
    assert line["logger"] == "gunicorn.access"
    assert line["status"] == 202
    assert line["build"].startswith("build-binder-examples-conda-")
    assert line["time"].endswith("Z")
    assert "canary" not in web.log.read_text()


def test_a_chunked_body_beyond_the_limit_is_413_and_not_cut_off(served: Kiln, web: Process) -> None:
    host, port = str(web.url).removeprefix("http://").rstrip("/").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(
            b"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/cloudevents+json\r\n"
            b"Authorization: Bearer " + str(served.own_token).encode() + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"%x\r\n%s\r\n" % (2**16, b" " * 2**16)
        connection.sendall(chunk * 17 + b"0\r\n\r\n")
        assert connection.recv(64).startswith(b"HTTP/1.1 413 ")


def test_sigterm_ends_web(kiln: Kiln) -> None:
    assert kiln.start("web").stop() == 0


def test_sigterm_ends_web_at_once_although_somebody_follows_a_log(kiln: Kiln) -> None:
    web = kiln.start("web")
    body = json.dumps(EVENT["data"]).encode()
    ask = urllib.request.Request(
        f"{web.url}api/v1/builds", body, {"Content-Type": "application/json", **kiln.authorization}
    )
    with urllib.request.urlopen(ask, timeout=10) as answer:
        url = f"{str(web.url).rstrip('/')}{json.load(answer)['log']['url']}"
    follow = urllib.request.Request(url, headers={"Accept": "text/event-stream", **kiln.authorization})
    with urllib.request.urlopen(follow, timeout=20) as stream:
        assert stream.readline() == b"event: state\n"
        began = time.monotonic()
        assert web.stop() == 0
        assert time.monotonic() - began < GRACE / 2, "the grace is for requests, and this one is never over"
        assert b"event: state" not in stream.read(), "a build that has not ended has no last state"


def test_a_state_folder_that_cannot_be_used_is_told_in_a_sentence(kiln: Kiln, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    web = kiln.start("web", ready=False, KILN_STATE_DIR=str(tmp_path / "file" / "state"))
    assert web.popen.wait(timeout=30) != 0
    assert "(KILN_STATE_DIR) is not usable" in web.log.read_text()
    assert "Traceback" not in web.log.read_text()
    done = kiln.run("controller", KILN_STATE_DIR=str(tmp_path / "file" / "state"), KILN_OPS_PORT="0")
    assert done.returncode == 1
    assert "kiln: " in done.stderr


def test_an_ops_port_that_is_taken_is_told(kiln: Kiln) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = kiln.run("controller", KILN_OPS_PORT=str(taken.getsockname()[1]))
    assert done.returncode == 1
    assert "KILN_OPS_PORT: 127.0.0.1 port" in done.stderr


# kiln controller ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_signals_end_the_controller(kiln: Kiln, how: signal.Signals) -> None:
    controller = kiln.start("controller")
    assert controller.stop(how) == 0
    assert controller.lines[-1]["message"].startswith("Stopped")


def test_a_second_controller_waits_for_the_first_to_end(kiln: Kiln) -> None:
    first = kiln.start("controller")
    second = kiln.start("controller")
    until(lambda: any("Another controller" in line["message"] for line in second.lines))
    first.stop(signal.SIGKILL)
    until(lambda: any("is now the controller" in line["message"] for line in second.lines))
    assert second.stop() == 0


# kiln build --------------------------------------------------------------------------------------------------------


def test_build_where_nobody_answers_is_status_1(kiln: Kiln) -> None:
    done = kiln.run("build", "https://github.com/a/b", "--server", "http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("kiln: error: http://127.0.0.1:9/ does not answer (ConnectionError). ")


def test_build_tells_why_it_was_refused(served: Kiln, web: Process) -> None:
    done = served.run("build", "git@github.com:a/b.git", "--server", str(web.url))
    assert (done.returncode, done.stdout) == (1, "")
    assert "https://github.com/a/b" in done.stderr


def test_a_token_is_read_from_a_file(tmp_path: Path) -> None:
    tokens = tmp_path / "secrets" / "api-tokens"
    tokens.mkdir(parents=True)
    (tokens / "ci").write_text("canary-token\n")
    with Kiln(tmp_path, KILN_AUTH="token", KILN_SECRETS_DIR=str(tmp_path / "secrets")) as kiln:
        web = kiln.start("web")
        arguments = ("send", "-", "--to", f"{web.url}events")
        assert kiln.run(*arguments, stdin=json.dumps(EVENT).encode()).stdout.startswith("401 ")
        with_token = kiln.run(*arguments, "--token-file", str(tokens / "ci"), stdin=json.dumps(EVENT).encode())
        assert with_token.stdout.startswith("202 ")
        assert "canary" not in web.log.read_text() + with_token.stdout + with_token.stderr


def test_this_machines_token_is_its_owners_alone_and_told_once(tmp_path: Path) -> None:
    with Kiln(tmp_path) as kiln:
        first, second = kiln.start("web"), kiln.start("web")
        path = tmp_path / "state" / "token"
        assert path.stat().st_mode & 0o777 == 0o600
        token = path.read_text().strip()
        for web in (first, second):
            assert web.log.read_text().count(token) == 1
            assert f"{web.url}?token={token}\n" in web.log.read_text()
            assert get(f"{web.url}api/v1/builds")[0] == 401
            assert get(f"{web.url}api/v1/builds", kiln.authorization)[0] == 200
        done = kiln.run("send", "-", "--to", f"{first.url}events", stdin=json.dumps(EVENT).encode())
        assert done.stdout.startswith("202 ")
        path.chmod(0o644)
        third = kiln.start("web", ready=False)
        assert third.popen.wait(timeout=30) == 1
        assert "only its owner can read" in third.log.read_text()


def test_this_machines_token_does_not_leave_it(tmp_path: Path) -> None:
    heard: list[bytes] = []
    with Kiln(tmp_path) as kiln, socket.create_server(("127.0.0.1", 0)) as proxy:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / "token").write_text("a-canary-of-this-machine\n")

        def hear() -> None:
            connection, _ = proxy.accept()
            with connection:
                heard.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

        proxy.settimeout(20)
        listener = threading.Thread(target=hear, daemon=True)
        listener.start()
        through = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        arguments = ("send", "-", "--to", "http://kiln.example/events")
        assert kiln.run(*arguments, stdin=json.dumps(EVENT).encode(), http_proxy=through).stdout.startswith("202 ")
        listener.join(20)
    assert b"POST http://kiln.example/events" in heard[0]
    assert b"Authorization" not in heard[0]
