"""The guard between a build's tools and the network, with real Git and listeners that count their connections."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import requests

from builds.build import Reason, Request, Result
from builds.builder.source import Source
from builds.builder.spec import Spec, Surroundings
from builds.clients import guard as guarding
from builds.clients.git import Git, RefResolver, credentials
from builds.clients.guard import ANYTHING, MAX_HEAD, UNKNOWN, Guard
from builds.errors import CannotBuild, RepositoryError, RepositoryRefused, RequestError, UnknownRef, Unreachable
from builds.repository import Policy, canonical
from tests.parts.githost import GitHost, commit, git
from tests.parts.kiln import until

METADATA = "169.254.169.254"


class Listener:
    """Count the connections to an address of this machine, and answer none."""

    def __init__(self, address: str = "127.0.0.2") -> None:
        self.count = 0
        self._socket = socket.create_server((address, 0))
        self.place = f"{address}:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.count += 1
            connection.close()

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[GitHost]:
    with GitHost(tmp_path / "host") as host:
        yield host


@pytest.fixture
def internal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    """An internal service that Kiln's own environment exempts from the proxy."""
    listener = Listener()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.0/8,127.0.0.1,127.0.0.2,localhost,*")
    yield listener
    listener.close()


@pytest.fixture
def own(host: GitHost) -> Iterator[Git]:
    with Git(Policy([f"{host.base}/**", "https://**"])) as git:
        yield git


def make(host: GitHost, path: str, files: dict[str, str | bytes], links: dict[str, str] | None = None) -> str:
    """Create a repository with these files; return its commit."""
    content = host.root.parent / f"content-{path.replace('/', '-')}"
    for name, data in files.items():
        (content / name).parent.mkdir(parents=True, exist_ok=True)
        (content / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    host.create(path)
    return commit(host.bare(path), content, links=links)


def submodule(name: str, url: str, *more: str, path: str = "") -> str:
    return "\n\t".join([f'[submodule "{name}"]', f"path = {path or name}", f"url = {url}", *more]) + "\n"


def looked_through(own: Git, url: str, head: str) -> str:
    """Check the repository before its build; return the log."""
    lines: list[str] = []
    Source(own, lines.append).look_through(url, head)
    return "\n".join(lines)


def cloned(own: Git, url: str, head: str) -> Path:
    """Clone as repo2docker's provider does. Raises the builder's diagnosis of a failure."""
    target = own.home / "clone"
    commands = [["clone", "--no-checkout", url, str(target)], ["-C", str(target), "reset", "--hard", head]]
    commands += [["-C", str(target), "submodule", "update", "--init", "--recursive"]]
    for command in commands:
        own.run(*command)
    return target


# Forbidden targets


@pytest.mark.parametrize(
    "hidden",
    [
        pytest.param('[submodule "\uff50art"]\n\turl = {url}\n', id="name"),
        pytest.param('\tbranch = "\u201c ; \\\n\turl = {url} ; "\n', id="quotation mark"),
    ],
)
def test_a_gitmodules_that_reads_otherwise_when_it_is_checked_out(
    hidden: str, host: GitHost, own: Git, internal: Listener
) -> None:
    """Git checks `.gitmodules` out in another encoding, in which it names another URL."""
    part = make(host, "ada/part", {"file": "part"})
    modules = submodule("part", host.url("ada/part")) + hidden.format(url=f"http://{internal.place}/a/b")
    files: dict[str, str | bytes] = {
        ".gitattributes": ".gitmodules working-tree-encoding=ASCII//TRANSLIT\n",
        ".gitmodules": modules,
    }
    host.create("ada/page")
    attributes = host.bare("ada/page") / "info/attributes"
    attributes.write_text(".gitmodules !working-tree-encoding\n")  # commit the bytes unchanged
    head = make(host, "ada/page", files, {"part": part})
    looked_through(own, host.url("ada/page"), head)
    with pytest.raises(RepositoryRefused, match=f"connection to http://{internal.place} was refused"):
        cloned(own, host.url("ada/page"), head)
    assert internal.count == 0


@pytest.mark.parametrize("kind", ["repository", "submodule"])
@pytest.mark.parametrize(
    "target", ["http://{internal}/a/b.git", f"http://{METADATA}/a/b.git", "http://[::1]:9/a/b.git"]
)
def test_a_redirect_inside_is_refused(kind: str, target: str, host: GitHost, own: Git, internal: Listener) -> None:
    where = target.format(internal=internal.place)
    host.redirects["/ada/moved.git"] = where
    head = make(host, "ada/page", {".gitmodules": submodule("part", host.url("ada/moved"))}, {"part": "1" * 40})
    url = host.url("ada/page" if kind == "submodule" else "ada/moved")
    address = canonical(where).host.replace("[", "").replace(".", r"\.")
    words = f"(?s)Submodule 'part': .*{address}" if kind == "submodule" else address
    with pytest.raises(RepositoryRefused, match=words):
        looked_through(own, url, head)
    assert internal.count == 0


def test_a_redirect_of_a_look_up_inside_is_refused(host: GitHost, internal: Listener) -> None:
    host.redirects["/ada/moved.git"] = f"http://{internal.place}/a/b.git"
    with pytest.raises(RepositoryRefused, match=r"127\.0\.0\.2"):
        RefResolver(Policy([f"{host.base}/**"])).resolve(canonical(host.url("ada/moved")), "main")
    assert internal.count == 0


def test_a_redirect_is_held_against_the_paths_of_the_policy_too(host: GitHost) -> None:
    """The redirect stays on the host but leads to another owner's repository."""
    make(host, "eve/page", {"file": "text"})
    host.redirects["/ada/moved.git"] = host.url("eve/page")
    with pytest.raises(RepositoryRefused, match=r"127\.0\.0\.1"):
        RefResolver(Policy([f"{host.base}/ada/*"])).resolve(canonical(host.url("ada/moved")), "main")
    assert not any(target.startswith("/eve") for target in host.requests)


def test_redirects_in_a_circle_end(host: GitHost) -> None:
    host.redirects["/ada/moved.git"] = host.url("ada/moved")
    with pytest.raises(RepositoryRefused, match="redirects too often"):
        RefResolver(Policy([f"{host.base}/**"])).resolve(canonical(host.url("ada/moved")), "main")


def test_a_redirect_to_a_page(host: GitHost) -> None:
    host.api = lambda *_: (302, {"Location": f"{host.base}/users/sign_in"}, b"")
    with pytest.raises(CannotBuild, match="redirects to a page without a repository"):
        RefResolver(Policy([f"{host.base}/**"])).resolve(canonical(f"{host.base}/api/private"), "main")


@pytest.mark.parametrize("setting", ["lfs.url", "remote.origin.lfsurl"])
@pytest.mark.parametrize(
    "where", ["http://{internal}/lfs", f"http://{METADATA}/lfs", "http://localhost:9/", "file:///x"]
)
def test_an_lfs_server_inside(setting: str, where: str, host: GitHost, own: Git, internal: Listener) -> None:
    url = where.format(internal=internal.place)
    section, _, variable = setting.rpartition(".")
    section = section.replace("remote.origin", 'remote "origin"')
    files = {**lfs_file(b"content"), ".lfsconfig": f"[{section}]\n\t{variable} = {url}\n"}
    head = make(host, "ada/page", files)
    with pytest.raises(RepositoryRefused, match=url.partition("/lfs")[0].rstrip("/").replace(".", r"\.")):
        looked_through(own, host.url("ada/page"), head)
    assert internal.count == 0


def test_an_lfs_server_that_sends_inside(host: GitHost, own: Git, internal: Listener) -> None:
    """The LFS server names an internal download URL, or redirects to one."""
    files = lfs_file(b"content", host)
    head = make(host, "ada/page", files)
    host.download = f"http://{internal.place}/objects"
    with pytest.raises(RepositoryRefused, match=internal.place):
        looked_through(own, host.url("ada/page"), head)
    host.redirects["/moved"] = f"http://{internal.place}/objects"
    host.download = f"{host.base}/moved"
    with Git(Policy([f"{host.base}/**"])) as other, pytest.raises(RepositoryRefused, match=r"127\.0\.0\.2"):
        looked_through(other, host.url("ada/page"), head)
    assert internal.count == 0


def test_a_name_that_is_public_first_and_then_not(monkeypatch: pytest.MonkeyPatch, internal: Listener) -> None:
    """DNS rebinding: each connection uses an address that was checked for it, without a second lookup."""
    answers, connected = [["1.1.1.1"], ["127.0.0.2"], ["1.1.1.1", "127.0.0.2"]], []
    port = int(internal.place.rpartition(":")[2])

    def getaddrinfo(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert name == "rebinding.example"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answers.pop(0)]

    def create_connection(place: tuple[str, int], timeout: float) -> socket.socket:
        connected.append(place)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(guarding.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(guarding.socket, "create_connection", create_connection)
    with Git(Policy()) as own:
        url = f"https://rebinding.example:{port}/a/b"
        own.permit(url)
        with pytest.raises(Unreachable, match=r"rebinding\.example"):
            own.run("ls-remote", "--", url)
        for _ in range(2):
            with pytest.raises(RepositoryRefused, match=r"rebinding\.example leads to 127\.0\.0\.2"):
                own.run("ls-remote", "--", url)
    assert connected == [("1.1.1.1", port)]
    assert internal.count == 0


# Authorization


def proxied(proxy: str, url: str) -> requests.Response:
    with requests.Session() as session:
        session.trust_env = False
        return session.get(url, proxies={"http": proxy, "https": proxy}, timeout=10)


def test_only_who_knows_the_password_is_served(host: GitHost) -> None:
    with Guard(Policy([f"{host.base}/**"])) as guard:
        known = guard.proxy(ANYTHING)
        bare = "http://" + known.rpartition("@")[2]
        assert proxied(bare, f"{host.base}/x").status_code == 407
        assert proxied(bare.replace("//", "//anything:wrong@"), f"{host.base}/x").status_code == 407
        assert not host.requests
        assert proxied(guard.proxy(UNKNOWN), f"{host.base}/x").status_code == 403
        assert not host.requests
        assert proxied(known, f"{host.base}/x").status_code == 404
        assert host.requests == ["/x"]


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.2:{port}/",
        "http://127.2:{port}/",
        "http://0x7f000002:{port}/",
        "http://localhost:{port}/",
        "http://[::ffff:127.0.0.2]:{port}/",
        f"http://{METADATA}/latest",
        "https://banned.example/anything/at/all",
        "https://banned.example./anything",
        "http://git.evil.example/anything",
        "https://127.0.0.2:{port}/",
    ],
)
def test_what_is_inside_or_banned_is_refused_to_anything(url: str, host: GitHost, internal: Listener) -> None:
    policy = Policy([f"{host.base}/**", "https://**"], ["https://Banned.example/**", "**.Evil.example/**"])
    with Guard(policy) as guard:
        try:
            status = proxied(guard.proxy(ANYTHING), url.format(port=internal.place.rpartition(":")[2])).status_code
        except requests.exceptions.ProxyError as error:
            status = 403 if "403" in str(error) else 0
        assert status == 403
        assert isinstance(guard.error, RepositoryRefused)
    assert internal.count == 0


def test_the_tools_are_given_no_other_way_out(own: Git, internal: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("All_Proxy", "http://proxy.example:3128")
    proxies = {name: value for name, value in own.environment.items() if name.lower().endswith("_proxy")}
    assert set(proxies.values()) == {own.guard.proxy(ANYTHING)}
    assert {"http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"} <= set(proxies)


def test_the_sites_proxy_is_chained_to(host: GitHost, own: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard forwards plain HTTP to the proxy, too, and with its password."""
    seen: list[str] = []

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            seen.append(connection.recv(1 << 16).decode())
            connection.sendall(b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        monkeypatch.setenv("http_proxy", f"http://ada:s%20x@127.0.0.1:{listener.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.setenv(name, "")
        assert proxied(own.guard.proxy(ANYTHING), "http://public.example/path?query").status_code == 418
    assert seen[0].startswith("GET http://public.example/path?query HTTP/1.1\r\n")
    assert "Proxy-Authorization: Basic YWRhOnMgeA==" in seen[0]
    assert seen[0].count("Proxy-Authorization") == 1


def test_a_fault_in_one_connection_ends_no_thread(
    host: GitHost, own: Git, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception that ends a thread ends web. Here the proxy settings in the environment are invalid."""
    for name, value in (("http_proxy", "http://127.0.0.1:port"), ("no_proxy", ""), ("NO_PROXY", "")):
        monkeypatch.setenv(name, value)
    with pytest.raises(requests.ConnectionError):
        proxied(own.guard.proxy(ANYTHING), "http://public.example/")
    until(lambda: "A connection through the guard failed" in caplog.messages)


# Redirects


def test_a_repository_that_has_moved(host: GitHost, own: Git) -> None:
    head = make(host, "ada/page", {"file": "text"})
    host.redirects |= {"/ada/old.git": host.url("ada/older"), "/ada/older.git": host.url("ada/page")}
    said = looked_through(own, host.url("ada/old"), head)
    assert f"{host.url('ada/old')} redirects to {host.url('ada/older')}." in said
    assert f"{host.url('ada/older')} redirects to {host.url('ada/page')}." in said
    assert (cloned(own, host.url("ada/old"), head) / "file").read_text() == "text"


def test_submodules_that_have_moved_and_are_relative(host: GitHost, own: Git) -> None:
    """One URL lacks `.git`; the other is relative to the old URL of the repository, as Git resolves it."""
    part = make(host, "ada/part", {"file": "part"})
    modules = submodule("one", f"{host.base}/ada/short") + submodule("two", "../beside.git")
    host.redirects |= {"/ada/short/": host.url("ada/part") + "/", "/ada/beside.git": host.url("ada/part")}
    host.redirects |= {"/ada/old.git": host.url("bob/page")}
    head = make(host, "bob/page", {".gitmodules": modules}, {"one": part, "two": part})
    said = looked_through(own, host.url("ada/old"), head)
    assert said.count("redirects to") == 3
    target = cloned(own, host.url("ada/old"), head)
    assert (target / "one/file").read_text() == (target / "two/file").read_text() == "part"


def test_a_look_up_follows_too(host: GitHost) -> None:
    head = make(host, "ada/page", {"file": "text"})
    host.redirects["/ada/short/"] = host.url("ada/page") + "/"
    policy = Policy([f"{host.base}/**"])
    assert RefResolver(policy).resolve(canonical(f"{host.base}/ada/short"), "main").commit == head
    assert RefResolver(policy).refs(canonical(f"{host.base}/ada/short")).default == "refs/heads/main"


def test_a_credential_does_not_follow_a_redirect(host: GitHost, tmp_path: Path) -> None:
    with GitHost(tmp_path / "other") as other:
        head = make(other, "ada/page", {"file": "text"})
        host.redirects["/ada/private.git"] = other.url("ada/page")
        (tmp_path / "stored").write_text(f"http://ada:secret@127.0.0.1:{host.port}/ada\n")
        with Git(Policy([f"{host.base}/**", f"{other.base}/**"]), credentials(tmp_path / "stored")) as own:
            looked_through(own, host.url("ada/private"), head)
            cloned(own, host.url("ada/private"), head)
        assert host.credentials
        assert not other.credentials


# Submodules as Git reads them


@pytest.mark.parametrize(
    ("modules", "links"),
    [
        pytest.param('{part}[submodule "gone"]\n\tpath = gone\n\turl = https://10.0.0.1/a/b\n', ["part"], id="stale"),
        pytest.param(
            '[submodule "part"]\n\tpath = part\n\turl = https://10.0.0.1/a/b\n\tupdate = none\n', ["part"], id="none"
        ),
        pytest.param("{user}", ["part"], id="user"),
        pytest.param("{part}{part}", ["part"], id="twice"),
        pytest.param('[submodule "part"]\n\turl = https://10.0.0.1/a/b\n{part}', ["part"], id="last counts"),
        pytest.param("{slash}", ["part"], id="slash"),
        pytest.param("", [], id="no submodule"),
        pytest.param('[submodule "gone"]\n\tpath = gone\n\turl = nonsense\n', [], id="only stale"),
        pytest.param("", ["part"], id="no entry"),
        pytest.param('[submodule "part"]\n\tpath = part\n', ["part"], id="no url"),
        pytest.param("{part}", ["part", "other"], id="one without entry"),
    ],
)
def test_a_commit_is_fetched_where_git_clones_it(
    modules: str, links: list[str], host: GitHost, own: Git, tmp_path: Path
) -> None:
    part = make(host, "ada/part", {"file": "part"})
    known = {
        "part": submodule("part", host.url("ada/part")),
        "user": submodule("part", host.url("ada/part").replace("//", "//somebody@")),
        "slash": submodule("part", host.url("ada/part"), path="part/"),
    }
    text = modules.format(**known) if "{" in modules else modules
    files: dict[str, str | bytes] = {".gitmodules": text, "file": "text"}
    head = make(host, "ada/page", files, dict.fromkeys(links, part))
    command = ["git", "clone", "--quiet", "--recursive", host.url("ada/page"), str(tmp_path / "plain")]
    plain = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    try:
        looked_through(own, host.url("ada/page"), head)
        target = cloned(own, host.url("ada/page"), head)
    except RequestError:
        target = None
    assert (target is None) == (plain.returncode != 0), plain.stderr
    assert target is None or names(target) == names(tmp_path / "plain")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if ".git" not in path.parts}


def test_a_message_names_its_submodule(host: GitHost, own: Git) -> None:
    inner = make(host, "ada/inner", {".gitmodules": submodule("deep", host.url("ada/lost"))}, {"deep": "1" * 40})
    head = make(host, "ada/page", {".gitmodules": submodule("part", host.url("ada/inner"))}, {"part": inner})
    with pytest.raises(CannotBuild, match="Submodule 'part': Submodule 'deep': The Git host has no such repository"):
        looked_through(own, host.url("ada/page"), head)
    make(host, "ada/lost", {"file": "text"})
    with (
        Git(Policy([f"{host.base}/**"])) as other,
        pytest.raises(UnknownRef, match="Submodule 'part': Submodule 'deep': The repository has no such commit"),
    ):
        looked_through(other, host.url("ada/page"), head)


# LFS


def lfs_file(content: bytes, host: GitHost | None = None, name: str = "data.bin") -> dict[str, str | bytes]:
    """Return a pointer file and the attributes that declare it; the host, if given, gets the object."""
    oid = hashlib.sha256(content).hexdigest()
    if host:
        host.objects[oid] = content
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"
    return {".gitattributes": "*.bin filter=lfs diff=lfs merge=lfs -text\n", name: pointer}


@pytest.mark.parametrize("old", [False, True], ids=["partial clone", "protocol 0"])
def test_lfs_objects_are_there_after_the_checkout(host: GitHost, own: Git, old: bool) -> None:
    content = bytes(range(256)) * 4000
    inner = make(host, "ada/part", {**lfs_file(b"inner\0", host), "whole.bin": b"\0committed whole\n"})
    modules = submodule("part", host.url("ada/part"))
    files = {**lfs_file(content, host, "deep/er/a b'c.bin"), ".gitmodules": modules}
    head = make(host, "ada/page", files, {"part": inner})
    git("config", "uploadpack.allowFilter", "true", cwd=host.bare("ada/page"))
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=host.bare("ada/page"))
    if old:
        host.old.add("/ada/page.git")
    said = looked_through(own, host.url("ada/page"), head)
    target = cloned(own, host.url("ada/page"), head)
    assert (target / "deep/er/a b'c.bin").read_bytes() == content
    assert (target / "part/data.bin").read_bytes() == b"inner\0"
    assert (target / "part/whole.bin").read_bytes() == b"\0committed whole\n"
    assert "not fetched" not in said


def test_an_lfs_server_that_a_repository_names(host: GitHost, own: Git) -> None:
    files = {**lfs_file(b"content", host), ".lfsconfig": f"[lfs]\n\turl = {host.base}/else/info/lfs\n"}
    head = make(host, "ada/page", files)
    looked_through(own, host.url("ada/page"), head)
    assert (cloned(own, host.url("ada/page"), head) / "data.bin").read_bytes() == b"content"
    assert "/else/info/lfs/objects/batch" in host.requests


def test_the_credential_goes_to_the_lfs_server_of_its_repository(host: GitHost, tmp_path: Path) -> None:
    head = make(host, "ada/page", lfs_file(b"content", host))
    host.passwords["/ada/"] = ("ada", "secret")
    (tmp_path / "stored").write_text(f"http://ada:secret@127.0.0.1:{host.port}/ada\n")
    with Git(Policy([f"{host.base}/**"]), credentials(tmp_path / "stored")) as own:
        looked_through(own, host.url("ada/page"), head)
        assert (cloned(own, host.url("ada/page"), head) / "data.bin").read_bytes() == b"content"
    assert not any(target.startswith("/lfs-objects") for target in host.credentials)


@pytest.mark.parametrize("why", ["unknown", "too large", "other content", "longer"])
def test_an_lfs_object_that_is_not_fetched_is_told(
    why: str, host: GitHost, own: Git, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = lfs_file(b"content", host)
    (oid,) = host.objects
    if why == "unknown":
        del host.objects[oid]
    elif why == "too large":
        monkeypatch.setattr("builds.builder.lfs.MAX_BYTES", 6)
    else:
        host.objects[oid] = b"con" if why == "other content" else b"content" * 100_000
    head = make(host, "ada/page", files)
    said = looked_through(own, host.url("ada/page"), head)
    assert "LFS object of data.bin not fetched" in said
    target = cloned(own, host.url("ada/page"), head)
    assert (target / "data.bin").read_text() == files["data.bin"]
    (target / "data.bin").unlink()
    command = ["git", "checkout", "--", "data.bin"]
    done = subprocess.run(command, cwd=target, env=own.environment, capture_output=True, text=True, check=True)
    assert "LFS object not fetched, so the file holds only its pointer: data.bin" in done.stderr


# Load


def test_silent_connections_take_no_place(host: GitHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEAD_TIMEOUT", "CONNECT_TIMEOUT"):
        monkeypatch.setattr(guarding, name, 60.0, raising=False)
    with Guard(Policy([f"{host.base}/**"])) as guard, ExitStack() as held:
        for _ in range(guarding.MAX_CONNECTIONS):
            held.enter_context(socket.create_connection(place_of(guard)))
        assert proxied(guard.proxy(ANYTHING), f"{host.base}/x").status_code == 404


def test_more_silent_connections_than_are_read_at_once(host: GitHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "MAX_READERS", 2)
    monkeypatch.setattr(guarding, "HEAD_TIMEOUT", 0.5)
    with Guard(Policy([f"{host.base}/**"])) as guard, ExitStack() as held:
        for _ in range(7):
            held.enter_context(socket.create_connection(place_of(guard)))
        assert proxied(guard.proxy(ANYTHING), f"{host.base}/x").status_code == 404


def test_a_head_has_one_deadline_however_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarding, "HEAD_TIMEOUT", 0.5)
    with Guard(Policy()) as guard, socket.create_connection(place_of(guard)) as client:
        client.settimeout(0.1)
        assert any(ended(client, b"x") for _ in range(100))


def ended(client: socket.socket, data: bytes) -> bool:
    """Send `data`; return whether the other side has closed the connection."""
    try:
        client.sendall(data)
        return not client.recv(1)
    except TimeoutError:
        return False
    except OSError:
        return True


def place_of(guard: Guard) -> tuple[str, int]:
    parts = urlsplit(guard.proxy(UNKNOWN))
    return str(parts.hostname), int(parts.port or 0)


# Size


def test_a_tree_of_half_a_million_paths_takes_little_more_than_its_listing(host: GitHost, own: Git) -> None:
    """Three objects suffice for so many paths: a file, a tree of links to it, and a tree of links to that tree."""
    make(host, "ada/page", {"file": "text"})
    bare = host.bare("ada/page")
    tree = git("rev-parse", "main:file", cwd=bare)
    for kind in ("100644 blob", "040000 tree"):
        lines = (f"{kind} {tree}\t{'link' if kind.startswith('0') else 'name'}-{number:06}" for number in range(700))
        tree = git("mktree", cwd=bare, stdin="\n".join(lines))
    head = git("commit-tree", tree, "-m", "Many", cwd=bare)
    git("update-ref", "refs/heads/main", head, cwd=bare)
    size = len(git("ls-tree", "-r", "-z", "--full-tree", head, cwd=bare))
    assert size > 30 << 20
    tracemalloc.start()
    try:
        looked_through(own, host.url("ada/page"), head)
        assert tracemalloc.get_traced_memory()[1] < 3 * size
    finally:
        tracemalloc.stop()


def test_of_very_many_lfs_files_some_are_fetched(host: GitHost, own: Git, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builds.builder.lfs.MAX_FILES", 2)
    files = {name: data for one in "abc" for name, data in lfs_file(one.encode(), host, f"{one}.bin").items()}
    said = looked_through(own, host.url("ada/page"), make(host, "ada/page", files))
    assert "Only the first 2 LFS files are fetched" in said
    assert "Fetching 2 LFS objects" in said


# Other schemes


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("ssh://inside.example/a/b", ("inside.example", 22)),
        ("ssh://inside.example:2222/a/b", ("inside.example", 2222)),
        ("git://inside.example/a/b", ("inside.example", 9418)),
        ("git://inside.example:7/a/b", ("inside.example", 7)),
    ],
)
def test_other_schemes_go_through_it(url: str, place: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard checks every address each time and connects to the address that it checked.

    Only a pattern that names the host allows a private address.
    """
    answers = [["1.1.1.1"], ["1.1.1.1", "127.0.0.2"], ["127.0.0.2"]]
    connected: list[tuple[str, int]] = []

    def getaddrinfo(name: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        assert name == place[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in answers.pop(0)]

    def create_connection(where: tuple[str, int], timeout: float) -> socket.socket:
        connected.append(where)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(guarding.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(guarding.socket, "create_connection", create_connection)
    for name in ("HTTPS_PROXY", "https_proxy", "all_proxy"):  # proxies usually refuse to connect to these ports
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    scheme = url.partition(":")[0]
    with Git(Policy([f"{scheme}://**", f"{scheme}://*:*/**"])) as own:
        own.permit(url)
        with pytest.raises(Unreachable, match=r"inside\.example"):
            own.run("ls-remote", "--", url)
        with pytest.raises(RepositoryRefused, match=r"inside\.example leads to 127\.0\.0\.2"):
            own.run("ls-remote", "--", url)
    with Git(Policy([url])) as own:
        own.permit(url)
        with pytest.raises(Unreachable, match=r"inside\.example"):
            own.run("ls-remote", "--", url)
    assert connected == [("1.1.1.1", place[1]), ("127.0.0.2", place[1])]


def test_a_repository_is_fetched_by_git_s_own_protocol(host: GitHost) -> None:
    head = make(host, "ada/page", {"file": "text" * 100_000})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    daemon = ["git", "daemon", "--export-all", "--listen=127.0.0.1", f"--port={port}", f"--base-path={host.root}"]
    with subprocess.Popen([*daemon, "--reuseaddr", str(host.root)], start_new_session=True) as server:
        try:
            until(lambda: listens(port))
            url = f"git://127.0.0.1:{port}/ada/page.git"
            with Git(Policy([f"git://127.0.0.1:{port}/**"])) as own:
                looked_through(own, url, head)
                assert (cloned(own, url, head) / "file").read_text() == "text" * 100_000
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    "url", ["git://{place}/a/b", "ssh://{place}/a/b", "ssh://ada@{place}/a/b", "git+ssh://{place}/a/b"]
)
def test_no_gitmodules_leads_other_schemes_elsewhere(url: str, host: GitHost, internal: Listener) -> None:
    """The guard refuses the submodule even if its scheme is permitted and `.gitmodules` changes on checkout."""
    url = url.format(place=internal.place)
    head = hidden(host, url)
    with Git(Policy([f"{host.base}/**", "git://**", "ssh://**"])) as own:
        for permitted in ("git://permitted.example/a/b", "ssh://permitted.example/a/b"):
            own.permit(permitted)
        looked_through(own, host.url("ada/page"), head)
        with pytest.raises(RepositoryRefused, match=f"connection to {internal.place} was refused"):
            cloned(own, host.url("ada/page"), head)
    assert internal.count == 0


def test_no_gitmodules_leads_to_an_ssh_address_in_short_form(host: GitHost) -> None:
    head = hidden(host, "ada@127.0.0.2:a/b")
    with Git(Policy([f"{host.base}/**", "ssh://**"])) as own:
        own.permit("ssh://permitted.example/a/b")
        looked_through(own, host.url("ada/page"), head)
        with pytest.raises(RepositoryRefused, match=r"connection to 127\.0\.0\.2:22 was refused"):
            cloned(own, host.url("ada/page"), head)


def hidden(host: GitHost, url: str) -> str:
    """Create a repository whose submodule has this URL only after checkout; return its commit."""
    part = make(host, "ada/part", {"file": "part"})
    modules = submodule("part", host.url("ada/part")) + f'[submodule "\uff50art"]\n\turl = {url}\n'
    host.create("ada/page")
    (host.bare("ada/page") / "info/attributes").write_text(".gitmodules !working-tree-encoding\n")
    files: dict[str, str | bytes] = {
        ".gitattributes": ".gitmodules working-tree-encoding=ASCII//TRANSLIT\n",
        ".gitmodules": modules,
    }
    return make(host, "ada/page", files, {"part": part})


@pytest.mark.parametrize("patterns", [[], ["ssh://**", "git://**", "http://**"]], ids=["https only", "every scheme"])
@pytest.mark.parametrize(
    "address",
    [
        "ssh://{place}/a/b",
        "ssh://ada@{place}/a/b",
        "git+ssh://{place}/a/b",
        "git://{place}/a/b",
        "http://{place}/a/b",
        "https://{place}/a/b",
        "HTTP://ada:secret@{place}/a/b",
        "ftp://{place}/a/b",
        "ada@127.0.0.2:a/b",
        "127.0.0.2:a/b",
        "../../../{place}/a/b",
        "./../../../{place}/a/b",
        "../../../../git://{place}/a/b",
        "../../ada/../../{place}/a/b",
    ],
)
def test_a_submodule_s_address_inside(address: str, patterns: list[str], host: GitHost, internal: Listener) -> None:
    """Git would reach the address by any of its schemes, or by a relative URL."""
    modules = submodule("part", address.format(place=internal.place))
    head = make(host, "ada/page", {".gitmodules": modules}, {"part": "1" * 40})
    with (
        Git(Policy([f"{host.base}/**", "https://**", *patterns])) as own,
        pytest.raises(RepositoryError, match="Submodule 'part'"),
    ):
        looked_through(own, host.url("ada/page"), head)
    assert internal.count == 0


# Requests and answers


def test_a_request_names_the_host_that_was_checked(own: Git) -> None:
    """RFC 9112 §3.2.2: a proxy derives `Host` from the target."""
    with recorder() as (port, seen):
        target = f"http://127.0.0.1:{port}/path?query"
        with Guard(Policy([f"http://127.0.0.1:{port}/**"])) as guard, requests.Session() as session:
            session.trust_env = False
            session.proxies = {"http": guard.proxy(ANYTHING)}
            answer = session.get(target, headers={"Host": "banned.example", "X-Kept": "kept"}, timeout=10)
        assert answer.status_code == 418
    assert seen[0].startswith("GET /path?query HTTP/1.1\r\n")
    assert seen[0].lower().count("host:") == 1
    assert f"\r\nHost: 127.0.0.1:{port}\r\n" in seen[0]
    assert "X-Kept: kept" in seen[0]


@pytest.mark.parametrize("field", ["X: a\nHost: banned.example", "X: a\rHost: b", " Host: b", "Host : b", "X: \0", "X"])
def test_a_field_that_some_read_otherwise_is_refused(field: str) -> None:
    with recorder() as (port, seen), Guard(Policy([f"http://127.0.0.1:{port}/**"])) as guard:
        login = base64.b64encode(guard.proxy(ANYTHING)[7:].partition("@")[0].encode()).decode()
        with socket.create_connection(place_of(guard), 10) as client:
            head = f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nProxy-Authorization: Basic {login}\r\n{field}\r\n\r\n"
            client.sendall(head.encode())
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
    assert not seen


@contextmanager
def recorder() -> Iterator[tuple[int, list[str]]]:
    """Yield a port that answers one request with 418, and the list of received data."""
    seen: list[str] = []

    def serve(listener: socket.socket) -> None:
        with suppress(OSError), listener.accept()[0] as connection:
            seen.append(connection.recv(1 << 16).decode())
            connection.sendall(b"HTTP/1.1 418 Teapot\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1], seen
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize("before", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\nX: "])
def test_a_head_that_does_not_end_is_not_kept(before: bytes) -> None:
    sent = 0

    def serve(listener: socket.socket) -> None:
        nonlocal sent
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(1 << 16)
            connection.sendall(before)
            while sent < 256 << 20:
                sent += connection.send(b"a" * (1 << 16))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        base = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with Guard(Policy([f"{base}/**"])) as guard, pytest.raises(requests.RequestException):
            proxied(guard.proxy(ANYTHING), base)
        thread.join(30)
    assert sent < MAX_HEAD + (16 << 20), "the rest is in buffers of the kernel"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_name_that_leads_inside_is_not_given_to_the_site_s_proxy(
    scheme: str, internal: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The site's proxy resolves the name again, and might connect."""
    resolve = socket.getaddrinfo

    def getaddrinfo(name: str, *rest: object, **more: object) -> list[tuple[object, ...]]:
        if name == "intranet.example":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]
        return resolve(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(guarding.socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setenv(f"{scheme}_proxy", f"http://{internal.place}")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    with Guard(Policy(["https://**"])) as guard:
        with suppress(requests.exceptions.ProxyError):
            assert proxied(guard.proxy(ANYTHING), f"{scheme}://intranet.example/").status_code == 403
        assert "intranet.example leads to 10.0.0.1" in str(guard.error)
    assert internal.count == 0


# Files of this machine, and credentials


@pytest.mark.parametrize("file", [".gitmodules", ".lfsconfig"])
def test_no_file_of_this_machine_is_included(file: str, host: GitHost, own: Git, tmp_path: Path) -> None:
    """Git itself ignores includes in `.gitmodules`. An error message would quote the included file."""
    canary = f"https://canary.example/{secrets.token_hex(8)}"
    (tmp_path / "own").write_text(f'[submodule "part"]\n\turl = {canary}\n[lfs]\n\turl = file:///{canary}\n')
    include = f"[include]\n\tpath = {tmp_path / 'own'}\n"
    modules = include + '[submodule "part"]\n\tpath = part\n'
    files = {".gitmodules": modules} if file == ".gitmodules" else {**lfs_file(b"content", host), file: include}
    head = make(host, "ada/page", files, {"part": "1" * 40} if file == ".gitmodules" else None)
    if file == ".gitmodules":
        with pytest.raises(CannotBuild, match="Submodule 'part' has no URL"):
            looked_through(own, host.url("ada/page"), head)
    else:
        looked_through(own, host.url("ada/page"), head)
        assert (cloned(own, host.url("ada/page"), head) / "data.bin").read_bytes() == b"content"


@pytest.mark.parametrize("first", ["ada", "ada/part"])
def test_a_credential_is_for_no_repository_below_the_one_it_is_lent_for(
    first: str, host: GitHost, tmp_path: Path
) -> None:
    """Git applies a configuration section to all URLs below its own."""
    git("init", "--quiet", "--bare", str(host.root / "ada"))
    git("init", "--quiet", "--bare", str(host.root / "ada/part"))
    (tmp_path / "stored").write_text(f"http://ada:secret@127.0.0.1:{host.port}/ada\n")
    with Git(Policy([f"{host.base}/**"]), credentials(tmp_path / "stored"), lent=lambda one: one.path == "ada") as own:
        for path in (first, "ada", "ada/part"):
            own.permit(f"{host.base}/{path}")
        for path in ("ada", "ada/part"):
            own.run("ls-remote", "--", f"{host.base}/{path}")
    assert any(target.startswith("/ada/info") for target in host.credentials)
    assert not any(target.startswith("/ada/part") for target in host.credentials)


def test_a_credential_follows_no_redirect_of_an_lfs_server(host: GitHost, tmp_path: Path) -> None:
    head = make(host, "ada/page", lfs_file(b"content", host))
    host.redirects["/ada/page.git/info/lfs"] = f"{host.base}/eve/page.git/info/lfs"
    (tmp_path / "stored").write_text(f"http://ada:secret@127.0.0.1:{host.port}/ada\n")
    with Git(Policy([f"{host.base}/**"]), credentials(tmp_path / "stored")) as own, pytest.raises(RequestError):
        looked_through(own, host.url("ada/page"), head)
    assert any(target.startswith("/ada/page.git/info/lfs") for target in host.credentials)
    assert any(target.startswith("/eve/") for target in host.requests)
    assert not any(target.startswith("/eve/") for target in host.credentials)


@pytest.mark.parametrize("path", ["evil/page.git/info/lfs", "EVIL/page", "%65vil/page.git/info/lfs", "a/../evil/page"])
def test_an_lfs_server_of_a_banned_repository(path: str, host: GitHost) -> None:
    files = {**lfs_file(b"content", host), ".lfsconfig": f"[lfs]\n\turl = {host.base}/{path}\n"}
    head = make(host, "ada/page", files)
    policy = Policy([f"{host.base}/**"], [f"{host.base}/Evil/**"])
    with Git(policy) as own, pytest.raises(RepositoryRefused, match=r"(?s)LFS server.*is refused"):
        looked_through(own, host.url("ada/page"), head)
    assert not any("objects/batch" in target for target in host.requests)


# Reports


@pytest.mark.parametrize("there", [False, True], ids=["no repository", "no commit"])
def test_a_failed_attempt_tells_where_the_repository_moved(there: bool, host: GitHost, tmp_path: Path) -> None:
    if there:
        make(host, "ada/page", {"file": "text"})
    host.redirects["/ada/old.git"] = host.url("ada/page")
    result = attempted(host, "ada/old", "1" * 40, tmp_path)
    sentence = f"{host.url('ada/old')} redirects to {host.url('ada/page')}."
    assert result.reason is Reason.REPOSITORY
    assert (result.message or "").startswith("The repository has no" if there else "The Git host has no")
    assert (result.message or "").endswith(sentence)
    assert sentence in (tmp_path / "log").read_text()


@pytest.mark.parametrize("name", ["p\udcfeart", "p\nart", "p\u2028art", "p\x1b[2Jart", "p" * 200])
def test_whatever_a_submodule_is_called_it_is_told(name: str, host: GitHost, tmp_path: Path) -> None:
    quoted = name.encode("unicode_escape" if "\n" in name else "utf-8", "surrogateescape").decode("latin-1")
    modules = f'[submodule "part"]\n\tpath = "{quoted}"\n'
    head = make(host, "ada/page", {".gitmodules": modules.encode("latin-1")}, {name: "1" * 40})
    result = attempted(host, "ada/page", head, tmp_path)
    assert result.reason is Reason.REPOSITORY
    assert "has no URL in .gitmodules" in (result.message or "")


def attempted(host: GitHost, path: str, head: str, tmp_path: Path) -> Result:
    """Return the result of a builder's attempt; its log is the file `log`."""
    request = Request(repository=f"{host.base}/{path}", clone_url=host.url(path), commit=head, image="127.0.0.1:1/a/b")
    around = Surroundings(allowed_repositories=(f"{host.base}/**",))
    spec = Spec(name="a", attempt=1, attempt_label="u.1", request=request, force=True, surroundings=around)
    (tmp_path / "spec").write_bytes(msgspec.json.encode(spec))
    script = (
        "import sys; from pathlib import Path; from builds.builder.attempt import attempted; "
        "from builds.builder.log import Log; from builds.builder.result import fitted; "
        "result = attempted(Path(sys.argv[1]), Log(open(sys.argv[2], 'wb')), sys.argv[3]); "
        "sys.stdout.buffer.write(fitted(result))"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "spec"), str(tmp_path / "log"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, timeout=60, check=True, start_new_session=True)
    return msgspec.json.decode(done.stdout, type=Result)
