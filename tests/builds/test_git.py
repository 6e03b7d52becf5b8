"""The Git client against a Git host: refs, credentials, and forbidden operations."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from builds.clients.git import Git, RefResolver, ResolvedRef, credential_for, credentials, process, refs
from builds.errors import CannotBuild, RepositoryRefused, RequestError, TryAgain, UnknownRef, Unreachable
from builds.repository import Policy, Refs, canonical
from tests.parts.authority import make_authority
from tests.parts.githost import GitHost, git


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GitHost]:
    folder = tmp_path_factory.mktemp("git")
    (folder / "content").mkdir()
    (folder / "content/README").write_text("Something")
    with GitHost(folder / "host") as host:
        head = host.create("ada/page", folder / "content")
        bare = host.bare("ada/page")
        git("tag", "-m", "Annotated", "v1", head, cwd=bare)
        git("update-ref", "refs/heads/feat/v1", head, cwd=bare)
        git("update-ref", "refs/heads/both", head, cwd=bare)
        git("tag", "both", git("commit-tree", f"{head}^{{tree}}", "-m", "Other", cwd=bare), cwd=bare)
        git("update-ref", "refs/heads/refs/heads/deep", head, cwd=bare)
        host.redirects["/ada/moved.git"] = host.url("ada/page")
        host.hanging.add("/ada/hanging.git")
        host.create("ada/empty")
        yield host


@pytest.fixture(scope="module")
def head(host: GitHost) -> str:
    return git("rev-parse", "main", cwd=host.bare("ada/page"))


@pytest.fixture
def policy(host: GitHost) -> Policy:
    return Policy([f"{host.base}/**", "http://localhost:*/**"])


@pytest.mark.parametrize(
    ("ref", "full"),
    [
        (None, "refs/heads/main"),
        ("HEAD", "refs/heads/main"),
        ("main", "refs/heads/main"),
        ("feat/v1", "refs/heads/feat/v1"),
        ("v1", "refs/tags/v1"),
        ("refs/tags/v1", "refs/tags/v1"),
        ("both", "refs/heads/both"),
        ("refs/heads/refs/heads/deep", "refs/heads/refs/heads/deep"),
    ],
)
def test_refs_are_exact_and_tags_are_peeled(
    ref: str | None, full: str, host: GitHost, head: str, policy: Policy
) -> None:
    assert RefResolver(policy).resolve(canonical(host.url("ada/page")), ref) == ResolvedRef(full, head)


@pytest.mark.parametrize(
    ("ref", "full"),
    [
        ("pull/1/head", "refs/pull/1/head"),
        ("refs/pull/1/head", "refs/pull/1/head"),
        ("pull/1/merge", "refs/pull/1/merge"),
        ("merge-requests/7/head", "refs/merge-requests/7/head"),
        ("pull-requests/3/from", "refs/pull-requests/3/from"),
        ("pull/2/head", "refs/heads/pull/2/head"),
        ("pull/3/head", "refs/tags/pull/3/head"),
    ],
)
def test_proposed_changes(ref: str, full: str, host: GitHost, policy: Policy, tmp_path: Path) -> None:
    """Short names work, too, unless a branch or a tag has the same name."""
    (tmp_path / "page").touch()
    path = f"ada/changes-{ref.replace('/', '-')}"
    head, bare = host.create(path, tmp_path), host.bare(path)
    proposed = git("commit-tree", f"{head}^{{tree}}", "-m", "Proposed", cwd=bare)
    for number in (1, 2, 3):
        git("update-ref", f"refs/pull/{number}/head", head, cwd=bare)
    git("update-ref", full, proposed, cwd=bare)
    assert RefResolver(policy).resolve(canonical(host.url(path)), ref) == ResolvedRef(full, proposed)


@pytest.mark.parametrize("ref", ["pull/9/head", "refs/pull/9/head", "pull/x/head", "pull/1/head/x", "stash", "notes/x"])
def test_no_other_short_names(ref: str, host: GitHost, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "page").touch()
    path = f"ada/none-{ref.replace('/', '-')}"
    head, bare = host.create(path, tmp_path), host.bare(path)
    for name in ("refs/stash", "refs/notes/x", "refs/pull/1/head"):
        git("update-ref", name, head, cwd=bare)
    with pytest.raises(UnknownRef):
        RefResolver(policy).resolve(canonical(host.url(path)), ref)


def test_a_default_branch_that_no_text_can_name(host: GitHost, policy: Policy, tmp_path: Path) -> None:
    (tmp_path / "page").touch()
    head, bare = host.create("ada/latin", tmp_path), host.bare("ada/latin")
    git("branch", "-m", "main", "ma\udceen", cwd=bare)
    assert RefResolver(policy).resolve(canonical(host.url("ada/latin")), None) == ResolvedRef(None, head)


def test_all_branches_and_tags(host: GitHost, policy: Policy, tmp_path: Path) -> None:
    """Tags are peeled. No other ref counts, even if its name ends like a branch's."""
    (tmp_path / "page").touch()
    head, bare = host.create("ada/refs", tmp_path), host.bare("ada/refs")
    git("tag", "-m", "Annotated", "v1", head, cwd=bare)
    for ref in ("refs/heads/release/1", "refs/tags/light", "refs/pull/1/head", "refs/pull/refs/heads/2"):
        git("update-ref", ref, head, cwd=bare)
    names = ("refs/heads/main", "refs/heads/release/1", "refs/tags/light", "refs/tags/v1")
    repository = canonical(host.url("ada/refs"))
    assert RefResolver(policy).refs(repository) == Refs(commits=dict.fromkeys(names, head), default="refs/heads/main")
    git("update-ref", "--no-deref", "HEAD", head, cwd=bare)
    assert RefResolver(policy).refs(repository).default is None
    git("symbolic-ref", "HEAD", "refs/heads/gone", cwd=bare)
    assert RefResolver(policy).refs(repository) == Refs(commits=dict.fromkeys(names, head), default=None)
    assert RefResolver(policy).refs(canonical(host.url("ada/empty"))) == Refs(commits={}, default=None)


@pytest.mark.parametrize("digits", [40, 64])
def test_a_commit_is_not_looked_up(digits: int, host: GitHost, policy: Policy) -> None:
    before = len(host.requests)
    assert RefResolver(policy).resolve(canonical(host.url("ada/page")), "A" * digits) == ResolvedRef(None, "a" * digits)
    assert len(host.requests) == before


@pytest.mark.parametrize("ref", ["no-such", "1", "deep", "refs/heads/*", "*", "--all", "heads/main"])
def test_an_unknown_ref(ref: str, host: GitHost, policy: Policy) -> None:
    with pytest.raises(UnknownRef):
        RefResolver(policy).resolve(canonical(host.url("ada/page")), ref)


@pytest.mark.parametrize(
    ("path", "error", "sentence"),
    [
        ("ada/nowhere", CannotBuild, "no such repository"),
        ("ada/empty", UnknownRef, "empty"),
    ],
)
def test_what_cannot_be_resolved(
    path: str, error: type[RequestError], sentence: str, host: GitHost, policy: Policy
) -> None:
    with pytest.raises(error, match=sentence):
        RefResolver(policy).resolve(canonical(host.url(path)), None)


def test_a_host_that_never_answers(host: GitHost, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refs, "RESOLVE_TIMEOUT", 0.5)
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="in time"):
        RefResolver(policy).resolve(canonical(host.url("ada/hanging")), None)
    assert time.monotonic() - begun < 5


def test_a_host_that_is_not_there(policy: Policy, host: GitHost) -> None:
    away = Policy(["http://127.0.0.1:1/**"])
    with pytest.raises(Unreachable):
        RefResolver(away).resolve(canonical("http://127.0.0.1:1/a/b"), None)


def test_only_what_was_permitted_can_be_reached(host: GitHost, policy: Policy) -> None:
    """Another name of the same host is refused, and so is another repository on it."""
    with Git(policy) as own:
        own.permit(host.url("ada/page"))
        for url in (host.url("ada/empty"), f"http://localhost:{host.port}/ada/page.git"):
            with pytest.raises(RepositoryRefused, match=url.partition("/ada")[0]):
                own.run("ls-remote", "--", url)
        with pytest.raises(RepositoryRefused):
            own.run("ls-remote", "--", f"file://{host.bare('ada/page')}")
        with pytest.raises(RepositoryRefused):
            own.run("ls-remote", "--", "ext::true")


def test_behind_a_proxy_names_are_not_resolved_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")
    with Git(Policy()) as own:
        own.permit("https://no-such-name.invalid/a/b.git")
        with pytest.raises(Unreachable, match=r"no-such-name.invalid:443 could not be reached: Connection refused"):
            own.run("ls-remote", "--", "https://no-such-name.invalid/a/b.git")


def test_an_authority_of_ones_own(host: GitHost, head: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Git's environment names the authority. The host has a name that only the proxy resolves."""
    make_authority(tmp_path, "DNS:git.invalid")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(tmp_path / "host.pem", tmp_path / "host.key")
    monkeypatch.setattr(host, "tls", tls)
    for name, value in {"https_proxy": host.base, "no_proxy": "", "NO_PROXY": ""}.items():
        monkeypatch.setenv(name, value)
    page = canonical("https://git.invalid/ada/page")
    with pytest.raises(Unreachable, match="certificate"):
        RefResolver(Policy()).resolve(page, "main")
    monkeypatch.setenv("GIT_SSL_CAINFO", str(tmp_path / "ca.pem"))
    assert RefResolver(Policy()).resolve(page, "main").commit == head


def test_credentials_are_for_their_host_and_path(tmp_path: Path) -> None:
    lines = ["https://ada:one@github.com/Our-Org", "https://ada:tw%2Fo@github.com/our-org/name.git", "not a line"]
    lines += [
        "https://ada:three@gitlab.com",
        "http://ada:four@git.example:8080/x",
        "https://[::1/x",
        "https://ada@h.example",
    ]
    (tmp_path / "main").write_text("\n".join(lines) + "\n")
    (tmp_path / ".hidden").write_text("https://ada:hidden@github.com\n")
    known = credentials(tmp_path)

    def password(url: str) -> str | None:
        found = credential_for(canonical(url), known)
        return found and found.password

    assert password("https://github.com/our-org/other") == "one"
    assert password("https://github.com/our-org/name") == "tw/o"
    assert password("https://github.com/our-organisation/name") is None
    assert password("https://gitlab.com/any/thing") == "three"
    assert password("http://git.example:8080/x/y") == "four"
    assert password("http://git.example/x/y") is None
    assert password("https://git.example:8080/x/y") is None
    assert password("https://h.example/x") is None
    assert credentials(None) == credentials(tmp_path / "nowhere") == ()


def test_a_credential_is_used(host: GitHost, policy: Policy, tmp_path: Path) -> None:
    host.create("ada/private")
    host.passwords["/ada/private.git"] = ("ada", "pässword:/ @")
    with pytest.raises(CannotBuild, match="credential"):
        RefResolver(policy).resolve(canonical(host.url("ada/private")), None)
    (tmp_path / "main").write_text(f"http://ada:p%C3%A4ssword%3A%2F%20%40@127.0.0.1:{host.port}/ada/private\n")
    with pytest.raises(UnknownRef, match="empty"):
        RefResolver(policy, lambda: credentials(tmp_path)).resolve(canonical(host.url("ada/private")), None)


def test_what_only_looks_like_a_git_directory_is_none(host: GitHost, policy: Policy, tmp_path: Path) -> None:
    """A repository's files can look like a Git directory.

    Git run inside them would execute commands from their configuration.
    """
    looks = tmp_path / "looks"
    shutil.copytree(host.bare("ada/page"), looks)
    marker = tmp_path / "ran"
    git("config", "core.bare", "false", cwd=looks)
    git("config", "core.worktree", ".", cwd=looks)
    git("config", "core.fsmonitor", f"touch {marker}; false", cwd=looks)
    git("status", cwd=looks)
    assert marker.exists(), "this is how it works where nothing is done about it"
    marker.unlink()
    with Git(policy) as own:
        done = subprocess.run(["git", "status"], cwd=looks, env=own.environment, capture_output=True, check=False)
    assert b"safe.bareRepository" in done.stderr
    assert not marker.exists()


def test_a_host_that_complains_at_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Git repeats a host's error message; a long one must not make the search for the cause slow."""
    words = b"transport 'repository '" * 200_000

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(500)
            self.send_header("Content-Type", "text/plain")
            self.send_header("Content-Length", str(len(words)))
            self.end_headers()
            self.wfile.write(words)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    begun = time.monotonic()
    with serving(Handler) as base, pytest.raises(Unreachable, match="error: 500") as raised:
        RefResolver(Policy([f"{base}/**"])).resolve(canonical(f"{base}/a/b"), None)
    assert time.monotonic() - begun < 5
    assert len(str(raised.value)) < 1000


def test_a_host_with_more_refs_than_anybody_reads(
    host: GitHost, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "MAX_REFS", 20)
    with pytest.raises(CannotBuild, match="more to tell"):
        RefResolver(policy).resolve(canonical(host.url("ada/page")), "main")


@pytest.mark.parametrize("name", ["refs/heads/\x1b[31m", f"refs/heads/{'a' * 2000}", "--upload-pack=x", "main"])
def test_a_host_that_lies_about_its_head(name: str) -> None:
    """Git does not check the names that it gets by protocol version 2."""
    told = _packet(b"1" * 40 + f" HEAD symref-target:{name}\n".encode()) + b"0000"
    said = [b"# service=git-upload-pack\n", None, b"version 2\n", b"ls-refs=unborn\n", b"object-format=sha1\n", None]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._say("advertisement", b"".join(b"0000" if each is None else _packet(each) for each in said))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._say("result", told)

        def _say(self, kind: str, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"application/x-git-upload-pack-{kind}")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with serving(Handler) as base, pytest.raises(CannotBuild, match="no branch can have"):
        RefResolver(Policy([f"{base}/**"])).resolve(canonical(f"{base}/a/b"), None)


def _packet(line: bytes) -> bytes:
    """Encode a pkt-line, as in gitprotocol-common(5)."""
    return b"%04x" % (len(line) + 4) + line


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a server with the handler; yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def test_a_machine_without_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(TryAgain, match=r"^git cannot be started: No such file or directory. Install git"):
        RefResolver(Policy(["https://git.example/**"])).resolve(canonical("https://git.example/a/b"), "main")
