"""The blame for a failure, with each cause made for real: no output of a step decides it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import pytest
from msgspec.structs import replace

from builds.build import Reason
from builds.builder.evidence import PYPI, oom_kills
from tests.docker.builder.conftest import asked
from tests.parts.building import Attempt, Builder, is_outside_kill, put_busybox
from tests.parts.failingproxy import RESET, FailingProxy
from tests.parts.githost import GitHost, commit
from tests.parts.kiln import until
from tests.parts.ociregistry import OciProxy, Stuck
from tests.parts.registry import Registry

ODD = {
    "blank base": "ARG BASE\nFROM ${BASE}\n",
    "port": "FROM scratch\nEXPOSE abc\n",
    "platform": "FROM --platform=foo scratch\nCOPY busybox /\n",
    "substitution": "FROM scratch\nCOPY ${X!y} /\n",
    "comments": "# nothing\n# else\n",
    "long line": f"FROM scratch\nLABEL long={'a' * 70_000}\n",
    "words of the disk": 'FROM scratch\nCOPY "no space left on device" /\n',
    "words of the network": 'FROM scratch\nCOPY "dial tcp i/o timeout" /\n',
}

LIES = {
    "a lone carriage return": r"printf 'x\rERROR: rpc error: code = Unavailable desc = gone\n'; exit 1",
    "a push": r"printf 'x\r#99 pushing layers\nERROR: denied\n'; exit 1",
    "the disk": "echo no space left on device; exit 1",
    "the daemon": "echo 'runc run failed: x error running hook' >&2; exit 1",
    "memory": "exit 137",
    "a report": """echo '{"vertexes": [{"digest": "x", "name": "pushing x", "error": "context canceled"}]}'; exit 1""",
    "a network": "echo dial tcp: i/o timeout; exit 1",
}


def theirs(attempt: Attempt) -> str:
    """The message of an attempt that failed by the repository's fault."""
    assert attempt.status == 64, attempt.text
    assert attempt.result.reason is Reason.REPOSITORY
    return attempt.result.message or ""


def ours(attempt: Attempt) -> str:
    """The message of an attempt that failed by infrastructure's fault."""
    assert attempt.status == 69, attempt.text
    assert attempt.result.reason is Reason.INFRASTRUCTURE
    assert attempt.members() == []
    assert attempt.left_behind() == []
    return attempt.result.message or ""


def dockerfile(host: GitHost, path: str, folder: Path, text: str) -> str:
    """The commit of a repository with that Dockerfile and a busybox."""
    folder.mkdir(exist_ok=True)
    put_busybox(folder)
    (folder / "Dockerfile").write_text(text)
    return host.create(path, folder)


def step(command: str) -> str:
    """A Dockerfile of one step that no cache has."""
    return f"FROM scratch\nCOPY busybox /bin/sh\nENV RUN={secrets.token_hex(8)}\nRUN {command}\n"


@pytest.mark.parametrize("text", ODD.values(), ids=ODD)
def test_a_dockerfile_that_cannot_be_built(
    text: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    head = dockerfile(host, path, tmp_path / "content", text)
    assert theirs(builder.run(asked(host, path, head, registry)))


@pytest.mark.parametrize("name", ["Dockerfile/x", "environment.yml/x", "Dockerfile"])
def test_files_that_are_something_else(
    name: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    content = tmp_path / "content"
    (content / name).parent.mkdir(parents=True)
    (content / name).write_text("FROM scratch\nCOPY . /\n")
    if name == "Dockerfile":
        (content / ".dockerignore").write_text("a[\n")
    head = host.create(path, content)
    assert theirs(builder.run(asked(host, path, head, registry)))


@pytest.mark.parametrize("command", LIES.values(), ids=LIES)
def test_a_step_that_lies(
    command: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    head = dockerfile(host, path, tmp_path / "content", step(command))
    attempt = builder.run(asked(host, path, head, registry))
    assert "RUN" in theirs(attempt)
    assert not attempt.result.out_of_memory


@contextmanager
def answering(status: int, address: str = "127.0.0.1") -> Iterator[str]:
    """A host on this machine that answers everything with that status."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer((address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{address}:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("text", ["FROM {}/some/base:1\n", "FROM scratch\nADD http://{}/file /\n"])
def test_a_host_that_is_down(
    status: int, text: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    with answering(status) as down:
        head = dockerfile(host, path, tmp_path / "content", text.format(down))
        assert down in ours(builder.run(asked(host, path, head, registry)))


@pytest.mark.timeout(500)
def test_the_daemon_is_asked_whether_a_service_is_down(
    path: str, builder: Builder, host: GitHost, registry: Registry, gateway: str, tmp_path: Path
) -> None:
    """In a step that repo2docker wrote, and that names an index. One that answers has no such package: that is the
    repository's affair, also where the step prints what it would if the other did not answer."""
    with answering(404, gateway) as up, answering(503, gateway) as down:
        attempts = []
        for number, place in enumerate((up, down)):
            lines = [f"-i http://{place}/simple", f"--trusted-host {gateway}"]
            content = tmp_path / str(number)
            content.mkdir()
            (content / "requirements.txt").write_text("\n".join([*lines, f"not-there-{secrets.token_hex(8)}\n"]))
            head = host.create(f"{path}-{number}", content)
            attempts.append(builder.start(asked(host, f"{path}-{number}", head, registry)))
        for attempt, place, verdict in zip(attempts, (up, down), (theirs, ours), strict=True):
            attempt.wait(400)
            assert f"http://{place}" in attempt.text
            said = verdict(attempt)
            assert (f"http://{down} does not answer" in said) == (place == down), said


@contextmanager
def recovering(address: str) -> Iterator[str]:
    """A package index on this machine that answers pip with 503 until something else asks for the package."""
    wheel, recovered = io.BytesIO(), threading.Event()
    with ZipFile(wheel, "w") as archive:
        archive.writestr("late-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: late\nVersion: 1\n")
        archive.writestr("late-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("late-1.dist-info/RECORD", "")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.headers["User-Agent"].startswith("pip/"):
                recovered.set()
            is_file = self.path.endswith(".whl")
            body = wheel.getvalue() if is_file else b'<a href="/late-1-py3-none-any.whl">late-1-py3-none-any.whl</a>'
            self.send_response(200 if recovered.is_set() else 503)
            self.send_header("Content-Type", "application/zip" if is_file else "text/html")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer((address, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"{address}:{server.server_port}"
        server.shutdown()


@pytest.mark.timeout(500)
def test_a_step_is_run_again_if_its_index_answers_again(
    path: str, builder: Builder, host: GitHost, registry: Registry, gateway: str, tmp_path: Path
) -> None:
    """pip reports 503 as it reports a package that has no file for this platform. Only another run tells them apart.

    The second run comes as far as `postBuild`, which fails, so that no image of a gigabyte is pushed.
    """
    with recovering(gateway) as place:
        content = tmp_path / "content"
        content.mkdir()
        (content / "requirements.txt").write_text(f"-i http://{place}/simple\n--trusted-host {gateway}\nlate\n")
        (content / "postBuild").write_text("#!/bin/sh\nexit 3\n")
        (content / "postBuild").chmod(0o755)
        attempt = builder.start(asked(host, path, host.create(path, content), registry))
        attempt.wait(400)
    assert "(from versions: none)" in attempt.text
    assert "Building again because a package index may have failed." in attempt.text
    assert "RUN ./postBuild" in theirs(attempt)


INDEX = PYPI.split("/")[2]
OUTAGES = {
    "pip, 429": ("requirements.txt", f"--trusted-host {INDEX}\nnot-there-@UNIQUE@\n", 429),
    "pip of conda, 503": (
        *("environment.yml", f"dependencies: [pip, pip: [--trusted-host {INDEX}, not-there-@UNIQUE@]]\n", 503),
    ),
    "pip, reset": ("requirements.txt", f"--trusted-host {INDEX}\n-r more.txt\n", RESET),
    "apt, 503": ("apt.txt", "not-there-@UNIQUE@\n", 503),
}
"""The third one is installed after the repository was copied."""


@pytest.mark.timeout(500)  # the first of its kind on a machine makes the base of all
def test_an_index_that_no_tool_names(
    path: str, builder: Builder, host: GitHost, registry: Registry, gateway: str, tmp_path: Path
) -> None:
    """pip names PyPI nowhere, and reports 429, 5xx and a reset as it reports a missing package."""
    with ExitStack() as proxies:
        attempts = []
        for number, (file, text, status) in enumerate(OUTAGES.values()):
            folder, unique = tmp_path / str(number), secrets.token_hex(8)
            (folder / "content").mkdir(parents=True)
            (folder / "content/more.txt").write_text(f"not-there-{unique}\n")
            (folder / "content" / file).write_text(text.replace("@UNIQUE@", unique))
            proxy = proxies.enter_context(FailingProxy(gateway, status, folder))
            config = {"proxies": {"default": {"httpProxy": proxy.url, "httpsProxy": proxy.url}}}
            (folder / "config.json").write_text(json.dumps(config))
            request = asked(host, f"{path}-{number}", host.create(f"{path}-{number}", folder / "content"), registry)
            attempts.append(builder.start(request, registry_config=str(folder / "config.json")))
        for case, attempt in zip(OUTAGES, attempts, strict=True):
            attempt.wait(400)
            host_of = "http://deb.debian.org" if case.startswith("apt") else f"https://{INDEX}"
            assert f"{host_of} does not answer" in ours(attempt), case


def test_a_file_that_is_not_on_its_host(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    with answering(404) as up:
        head = dockerfile(host, path, tmp_path / "content", f"FROM scratch\nADD http://{up}/file /\n")
        theirs(builder.run(asked(host, path, head, registry)))


@pytest.fixture
def small() -> Iterator[Path]:
    """A control group with 32 MiB of memory."""
    root = Path("/sys/fs/cgroup/memory")
    if not root.exists() or os.geteuid() != 0:
        pytest.skip("there is no memory controller of cgroup v1 to use")
    group = root / f"kiln-{secrets.token_hex(4)}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(str(32 << 20))
    try:
        yield group
    finally:
        until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_step_that_the_kernel_kills(
    small: Path, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    token = f"4{secrets.randbelow(10**9)}"
    command = f"echo begun; sleep 3.{token}; tail /dev/zero"
    text = f'FROM scratch\nCOPY busybox /bin/busybox\nRUN ["/bin/busybox", "sh", "-c", "{command}"]\n'
    head = dockerfile(host, path, tmp_path / "content", text)
    attempt = builder.start(asked(host, path, head, registry))
    attempt.until_step_says("begun")
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    shells = [pid for pid in pids if f"sleep 3.{token};" in _command(pid) and "buildx" not in _command(pid)]
    for pid in shells:
        (small / "cgroup.procs").write_text(str(pid))
    attempt.wait()
    assert "the kernel killed a process" in ours(attempt)
    assert attempt.result.out_of_memory


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ")
    except OSError:
        return ""


@pytest.mark.parametrize("program", ["docker-buildx", "docker buildx", "jupyter-repo2docker"])
def test_a_tool_that_is_killed_while_it_builds(
    program: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    before = oom_kills()
    head = dockerfile(host, path, tmp_path / "content", step("echo begun; sleep 20"))
    attempt = builder.start(asked(host, path, head, registry))
    attempt.until_step_says("begun")
    _kill(attempt, program)
    attempt.wait()
    assert is_outside_kill(ours(attempt), before)


@pytest.mark.parametrize("program", ["git clone", "git-remote-http"])
def test_git_is_killed_while_the_tool_clones(
    program: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    head = dockerfile(host, path, tmp_path / "content", step("echo begun"))
    attempt = builder.start(asked(host, path, head, registry))
    attempt.until("Picked Inside content provider")
    if _kill(attempt, program):
        attempt.wait()
        ours(attempt)
    else:
        attempt.wait()
        assert attempt.status == 0


def _kill(attempt: Attempt, program: str) -> bool:
    found = [pid for pid in attempt.members() if program in _command(pid)]
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return bool(found)


# State that one repository's builds leave on the daemon for others


def test_a_cache_mount_is_its_repositorys(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    place = f"/cache-{secrets.token_hex(8)}"
    mount = f"RUN --mount=type=cache,target={place} "
    write = dockerfile(host, f"{path}-a", tmp_path / "a", _with_mount(f"{mount} echo poison > {place}/wheel"))
    read = _with_mount(f"{mount} /bin/busybox test -e {place}/wheel")
    again = dockerfile(host, f"{path}-b", tmp_path / "b", read)
    namespace = hashlib.sha256(f"{host.base}/{path}-a".encode()).hexdigest()
    named = (place, f"../{namespace}/{place}", f"/{namespace}/{place}", f"{namespace}/{place}")
    guesses = "".join(f"RUN --mount=type=cache,id={one},target=/m /bin/busybox test ! -e /m/wheel\n" for one in named)
    guess = dockerfile(host, f"{path}-c", tmp_path / "c", _with_mount(guesses))
    builder_of_a = builder.run(asked(host, f"{path}-a", write, registry))
    assert builder_of_a.status == 0, builder_of_a.text
    theirs(builder.run(asked(host, f"{path}-b", again, registry)))
    builder_of_c = builder.run(asked(host, f"{path}-c", guess, registry))
    assert builder_of_c.status == 0, builder_of_c.text
    (tmp_path / "a/Dockerfile").write_text(read)
    own = commit(host.bare(f"{path}-a"), tmp_path / "a")
    assert builder.run(asked(host, f"{path}-a", own, registry)).status == 0, "its own mount is kept"


@pytest.mark.parametrize("where", ["here", "binder", "link", "encoding"])
def test_no_other_frontend_reads_a_dockerfile(
    where: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    """It could name another repository's cache mounts."""
    folder = tmp_path / "content"
    text = f"# syntax={registry.host}/evil/frontend\nFROM scratch\nCOPY Dockerfile /\n"
    (folder / "binder").mkdir(parents=True)
    if where == "binder":
        (folder / "binder/Dockerfile").write_text(text)
        (folder / "Dockerfile").write_text("FROM scratch\n")
    else:
        (folder / "binder").rmdir()
        (folder / ("other" if where == "link" else "Dockerfile")).write_text(text)
    if where == "link":
        (folder / "Dockerfile").symlink_to("other")
    host.create(path)
    if where == "encoding":
        (folder / "Dockerfile").write_text(text.replace("#", "\uff03"))
        (folder / ".gitattributes").write_text("Dockerfile working-tree-encoding=ASCII//TRANSLIT\n")
        (host.bare(path) / "info/attributes").write_text("Dockerfile !working-tree-encoding\n")
    attempt = builder.run(asked(host, path, commit(host.bare(path), folder), registry))
    assert f"frontend '{registry.host}/evil/frontend'" in theirs(attempt)
    assert "The only supported frontend" in theirs(attempt)


def _with_mount(command: str) -> str:
    busybox = "COPY busybox /bin/sh\nCOPY busybox /bin/busybox\n"
    return f"FROM scratch\n{busybox}ENV RUN={secrets.token_hex(8)}\n{command}\n"


@pytest.mark.parametrize("end", ["pushed", "cancelled", "no registry"])
def test_the_daemon_has_no_tag_of_an_image(
    end: str, path: str, builder: Builder, host: GitHost, tmp_path: Path
) -> None:
    with Registry(tmp_path / "registry") as registry, OciProxy(registry, Stuck()) as oci_proxy:
        head = dockerfile(host, path, tmp_path / "content", step("echo begun"))
        image = f"{oci_proxy.host if end == 'cancelled' else registry.host}/{path}"
        if end == "no registry":
            registry.stop()
        request = replace(asked(host, path, head, registry), image=image)
        attempt = builder.start(request, force=end == "no registry")
        if end == "cancelled":
            attempt.until(" pushing ")
            attempt.process.send_signal(signal.SIGTERM)
        attempt.wait()
        assert attempt.status == {"pushed": 0, "cancelled": 143, "no registry": 69}[end]
        listed = ["docker", "image", "ls", "--quiet", image]
        assert subprocess.run(listed, capture_output=True, check=True).stdout == b""
