"""git as a client of untrusted hosts.

Everything that git reads by itself (system and user configuration, hooks, templates, netrc, prompts) is disabled, and
one private configuration file takes its place. Its only access to the network is a guard (`builds.clients.guard`),
which permits nothing by default. `Git.permit` opens the guard for one repository at a time, after a check of its URL
against the policy. git follows no redirect itself: `Git.reach` follows them, and checks each new URL against the
policy. Credentials are in the private file too, and never in an environment or an argument. `ssh://` and `git://`,
which a policy permits only if a pattern names them, reach the guard through a program of Kiln's own (`tunnel`).
"""

from __future__ import annotations

import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeVar
from urllib.parse import urljoin

from builds.clients.git import tunnel
from builds.clients.git.credentials import Credential, credential_for
from builds.clients.git.messages import Redirected, diagnosis
from builds.clients.guard import ANYTHING, DIRECT, UNKNOWN, Guard
from builds.errors import CannotBuild, RepositoryRefused, RequestError, TryAgain, Unreachable
from builds.removal import remove
from builds.repository import Policy, Repository, canonical, is_commit

Returned = TypeVar("Returned")

MAX_OUTPUT, MAX_REFS, MAX_COMPLAINT = 64 << 20, 1 << 20, 16 << 10
"""Bytes that git may print: in total (the names of half a million files), of refs, and of an error message. More output
means a host or a repository that tries to exhaust memory."""

MAX_REDIRECTS = 5
"""Redirects per repository."""

TRUST = "GIT_SSL_CAINFO"
"""The only variable of git's own that is kept: the operator decides which certificates to trust."""


def trusted_certificates() -> str | None:
    """The certificates (PEM) in the file that `TRUST` names, for clients of Git hosts that do not use git."""
    path = os.environ.get(TRUST)
    return Path(path).read_bytes().decode("ascii", "ignore") if path else None


PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
"""Environment variables by which tools choose a proxy, in lower and upper case."""

SETTINGS = """\
[core]
	hooksPath = /dev/null
	fsmonitor = false
	gitProxy = "{tunnel}"
	sshCommand = "{ssh}"
[credential]
	helper =
[fetch]
	recurseSubmodules = false
[filter "lfs"]
	clean = cat
	required = true
	smudge = sh {smudge} %f
[gc]
	auto = 0
[http]
	followRedirects = false
	lowSpeedLimit = 1
	lowSpeedTime = 60
	proxy = {proxy}
	proxyAuthMethod = basic
[init]
	defaultBranch = main
	templateDir =
[maintenance]
	auto = false
[protocol]
	allow = never
[submodule]
	active = .
[safe]
	bareRepository = explicit
"""
"""`active` is as `git clone --recursive` sets it, so that links without an entry in .gitmodules are skipped.
`bareRepository` protects against files of a repository in the form of a Git directory, whose configuration could run
commands."""


class Git:
    """Runs git with a private configuration, in which only permitted repositories can be reached.

    A context manager: on exit, its folder (`home`) and all contents are removed. All other programs of a build must
    reach the network through `guard`.
    """

    def __init__(
        self,
        policy: Policy,
        credentials: Sequence[Credential] = (),
        *,
        lent: Callable[[Repository], bool] = lambda _: True,
        folder: Path | None = None,
        stdin: int | None = subprocess.DEVNULL,
    ) -> None:
        """`lent` decides for which repositories a credential may be used. `home` is created in `folder`. `stdin` is
        git's standard input, in the form that `subprocess` accepts."""
        self.policy = policy
        self._credentials = credentials
        self._lent = lent
        self._stdin = stdin
        self.home = Path(tempfile.mkdtemp(prefix="kiln-git-", dir=folder))
        self.moved: list[str] = []
        """A sentence for each redirect that was followed."""
        self._permitted: dict[str, Repository] = {}
        self.guard = Guard(policy)
        self._write_tunnel()
        self._write()

    def __enter__(self) -> Git:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.guard.close()
        with suppress(OSError):
            remove(self.home)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of git, and of every program that runs git. Other requests of such a program go through the
        guard."""
        barred = ("GIT_", "XDG_CONFIG")
        kept = {
            name: value
            for name, value in os.environ.items()
            if name == TRUST or not (name.startswith(barred) or name.lower() in PROXIES)
        }
        proxy = self.guard.proxy(ANYTHING)
        schemes = {one.scheme for one in self._permitted.values()}
        return {
            **kept,
            **{name: proxy for lower in PROXIES[:3] for name in (lower, lower.upper())},
            "HOME": str(self.home),  # curl reads ~/.netrc
            "LC_ALL": "C.UTF-8",
            "GIT_ALLOW_PROTOCOL": ":".join(sorted({"http", "https", *schemes})),  # the guard checks plain http
            "GIT_ASKPASS": "",
            "SSH_ASKPASS": "",
            "GIT_CONFIG_GLOBAL": str(self._config),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "BUILDX_GIT_INFO": "false",  # otherwise buildx runs git in the folder that it builds
        }

    @property
    def lfs(self) -> Path:
        """The folder of LFS objects, each named by its SHA-256. Its `smudge` is git's filter for their pointers."""
        return self.home / "lfs"

    def permit(self, url: str, named: str | None = None) -> Repository:
        """Permits git to fetch from this URL from now on. `named` is the URL that git will be given, if it differs.

        Raises RepositoryError (RepositoryRefused if the policy does not permit the URL).
        """
        named = named or url
        if named not in self._permitted:
            repository = canonical(url)
            self.policy.check(repository)
            self._permitted[named] = repository
            self._write()
        return self._permitted[named]

    def reach(self, url: str, action: Callable[[], Returned], deadline: float | None = None) -> Returned:
        """Returns the result of `action`, which sends a request to the host of a permitted URL, and follows redirects.

        Each target is checked against the policy and replaces the URL for everything that git does from then on. Raises
        the exceptions of `action`, RepositoryError, CannotBuild.
        """
        for _ in range(MAX_REDIRECTS):
            try:
                return action()
            except Redirected:
                self._follow(url, deadline)
        return action()

    def run(
        self, *arguments: str, at: Path | None = None, deadline: float | None = None, most: int = MAX_OUTPUT
    ) -> bytes:
        """The output of git, of at most so many bytes; `at` is the bare repository that it works on.

        Raises the guard's refusal, else the `diagnosis` of git's message; CannotBuild for more output, Unreachable at
        the deadline.
        """
        done = self._run([*([f"--git-dir={at}"] if at else []), *arguments], deadline, most)
        if done.status < 0:
            raise TryAgain("git was ended from outside.")
        if done.status:
            raise self.trouble() or diagnosis(done.complaint)
        return done.output

    def trouble(self) -> RequestError | None:
        """Why a connection of git's, or of a tool with `environment`, failed since the last call."""
        error, self.guard.error = self.guard.error, None
        return error

    def authorization(self, repository: Repository) -> str | None:
        """The `Authorization` header for a repository, if a credential may be used for it."""
        credential = credential_for(repository, self._credentials)
        return credential.authorization if credential and self._lent(repository) else None

    def refs(self, url: str, *wanted: str, deadline: float | None = None) -> dict[str, str]:
        """The requested full ref names that the repository has, with their objects; `^{}` peels tags.

        `HEAD` may be requested; if it is a branch, that branch is added under the name `HEAD:`. git-ls-remote(1)
        matches by suffix, so its answer is filtered here.
        """
        refs = self._ls_remote(url, wanted, deadline)
        return {name: value for name, value in refs.items() if name in wanted or name == "HEAD:"}

    def all_refs(self, url: str, deadline: float | None = None) -> dict[str, str]:
        """All branches and tags with their objects, and `HEAD` and `HEAD:`, as in `refs`."""
        refs = self._ls_remote(url, ("HEAD", "refs/heads/*", "refs/tags/*"), deadline)
        return {name: value for name, value in refs.items() if name.startswith(("HEAD", "refs/heads/", "refs/tags/"))}

    def _ls_remote(self, url: str, patterns: Sequence[str], deadline: float | None) -> dict[str, str]:
        command = ("ls-remote", "--symref", "--", url, *patterns)
        output = self.reach(url, lambda: self.run(*command, deadline=deadline, most=MAX_REFS), deadline)
        refs = {}
        for line in output.decode(errors="surrogateescape").split("\n"):  # a name may contain other line ends
            value, _, name = line.partition("\t")
            if value.startswith("ref: ") and name == "HEAD":
                refs["HEAD:"] = value.removeprefix("ref: ")
            elif is_commit(value):
                refs[name] = value
        return refs

    def _follow(self, url: str, deadline: float | None) -> None:
        """Replaces the target of a permitted URL by the target of its host's redirect."""
        now = self._permitted[url]
        where = urljoin(f"{now.clone_url}/info/refs", self._location(url, deadline))
        base, found, _ = where.partition("/info/refs?service=git-upload-pack")
        if not found:  # most likely a sign-in page
            raise CannotBuild(
                f"{now.url} redirects to a page without a repository: it does not exist, or requires a credential."
            )
        target = canonical(base)
        try:
            self.policy.check(target)
        except RepositoryRefused as error:
            raise RepositoryRefused(f"{now.url} redirects to {target.url}, which is refused: {error}") from None
        self._permitted[url] = target
        self.moved.append(f"{now.clone_url} redirects to {target.clone_url}.")
        self._write()

    def _location(self, url: str, deadline: float | None) -> str:
        """The `Location` of the answer, from git's own trace: git itself sends the request, with its certificates and
        headers."""
        trace = {"GIT_TRACE_CURL": "1", "GIT_TRACE_CURL_NO_DATA": "1"}
        done = self._run(["ls-remote", "--", url, "HEAD"], deadline, MAX_REFS, trace)
        locations = re.findall(r"(?im)<= Recv header: location: *(\S+)", done.complaint)
        return locations[-1] if locations else ""

    def _run(self, arguments: Sequence[str], deadline: float | None, most: int, extra: Mapping[str, str] = {}) -> _Done:
        self.guard.error = None
        with self._started(arguments, extra) as child:
            try:
                output, complaint = _heard(child, deadline, most)
                child.wait()
            finally:
                if child.returncode is None:  # its transport helpers must end as well
                    os.killpg(child.pid, signal.SIGKILL)
        return _Done(child.returncode, output, complaint.decode(errors="replace"))

    def _started(self, arguments: Sequence[str], extra: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Raises TryAgain if this machine has no git."""
        try:
            return subprocess.Popen(
                ["git", *arguments],  # noqa: S607 (the one on PATH)
                cwd=self.home,
                env={**self.environment, **extra},
                stdin=self._stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=0,
            )
        except OSError as error:
            raise TryAgain(f"git cannot be started: {error.strerror}. Install git 2.38 or newer.") from None

    @property
    def _config(self) -> Path:
        return self.home / "gitconfig"

    @property
    def _tunnel(self) -> Path:
        return self.home / "tunnel"

    def _write_tunnel(self) -> None:
        file = self.home / "direct"
        with open(file, "w", opener=_private, encoding="ascii") as content:
            content.write(self.guard.proxy(DIRECT))
        command = shlex.join([sys.executable, "-I", tunnel.__file__, str(file)])
        self._tunnel.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        self._tunnel.chmod(0o700)

    def _ssh(self) -> str:
        """The ssh command with options that override the user's ssh_config(5)."""
        through = f"{shlex.quote(str(self._tunnel)).replace('%', '%%')} %n %p"
        options = ("ControlPath=none", "ProxyUseFdpass=no", f"ProxyCommand={through}")
        return shlex.join(["ssh", *(word for option in options for word in ("-o", option))])

    def _write(self) -> None:
        smudge = _quoted(shlex.quote(str(self.lfs / "smudge")))
        proxy, direct = self.guard.proxy(UNKNOWN), _quoted(str(self._tunnel))
        head = SETTINGS.format(proxy=proxy, smudge=smudge, tunnel=direct, ssh=_quoted(self._ssh()))
        sections = [head, *(self._section(*entry) for entry in self._permitted.items())]
        with open(self._config, "w", opener=_private, encoding="utf-8") as file:
            file.write("".join(sections))

    def _section(self, named: str, repository: Repository) -> str:
        """The configuration for one permitted URL. The longest `insteadOf` wins, so each URL has one, even for itself.

        git collects the `extraHeader` of all sections whose URL is a prefix; an empty value removes the earlier ones.
        """
        target, proxy = _quoted(repository.clone_url), self.guard.proxy_for(repository)
        section = f'[url "{target}"]\n\tinsteadOf = "{_quoted(named)}"\n'
        if repository.scheme in ("http", "https"):
            section += f'[http "{target}"]\n\tproxy = "{_quoted(proxy)}"\n\textraHeader =\n'
            if authorization := self.authorization(repository):
                section += f"\textraHeader = Authorization: {authorization}\n"
        return section


class _Done(NamedTuple):
    status: int
    output: bytes
    complaint: str


def _heard(child: subprocess.Popen[bytes], deadline: float | None, most: int) -> tuple[bytes, bytes]:
    """Complete output and error message. Only the end of the message is kept, which contains the reason.

    `communicate` has no limit on the bytes that it reads. When git has ended, its remaining helpers are killed: if git
    was killed, they still hold its pipes and wait for the host. Raises CannotBuild, Unreachable.
    """
    assert child.stdout is not None  # noqa: S101 (it is a pipe)
    assert child.stderr is not None  # noqa: S101
    output, complaint = bytearray(), b""
    with selectors.DefaultSelector() as selector, os.fdopen(os.pidfd_open(child.pid), "rb") as end:
        for pipe in (child.stdout, child.stderr, end):
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left = _remaining(deadline)
            ready = selector.select(left)
            if left == 0.0 or not ready:
                raise Unreachable("The Git host did not answer in time.")
            for key, _ in ready:
                if key.fileobj is end:
                    selector.unregister(end)
                    os.killpg(child.pid, signal.SIGKILL)  # not yet reaped, so its number is not reused
                    continue
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stderr:
                    complaint = (complaint + piece)[-MAX_COMPLAINT:]
                else:
                    output += piece
                if len(output) > most:
                    raise CannotBuild(f"The repository, or its host, has more to tell than {most >> 20} MiB of names.")
    return bytes(output), complaint


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
