"""git as a client of hosts that nobody vouches for.

Everything that git reads by itself (system and user configuration, hooks, templates, netrc, prompts) is shut off, and
one private configuration file takes its place. There, by default, every host is behind a proxy that does not exist.
`Git.permit` lets one repository through, after its address was held against the policy: a name is resolved once, every
address is checked, and git is told to use these and no other, so no second look-up, redirect or submodule leads
elsewhere. Credentials are in that file too: not in an environment, not in an argument.
"""

from __future__ import annotations

import base64
import os
import re
import selectors
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

from builds.clients.github import GitHub
from builds.errors import (
    AskError,
    CannotBuild,
    Malformed,
    RepositoryError,
    RepositoryRefused,
    TryAgain,
    UnknownRef,
    Unreachable,
)
from builds.removal import remove
from builds.repository import Policy, Refs, Repository, canonical, checked_ref, is_commit

NOWHERE = "255.255.255.255"
"""An address to which every connection fails at once."""

RESOLVE_TIMEOUT = 8.0
"""Seconds that a look-up and all it asks of a host may take: GitHub gives a webhook 10."""

LIST_TIMEOUT = 30.0
"""Seconds for all refs of a repository: nobody waits for them, and there may be many."""

LOOKUPS_PER_HOST = 4
"""How many `Resolver` look-ups ask one host at the same time."""

MAX_OUTPUT, MAX_REFS, MAX_COMPLAINT = 64 << 20, 1 << 20, 16 << 10
"""Bytes that git may print: at all (the names of half a million files), of refs, and of a complaint. More is a host or
a repository that wants our memory."""

TRUST = "GIT_SSL_CAINFO"
"""The one variable of git's own that is taken over: whose certificates count is for those to say who run us."""

SETTINGS = """\
[core]
	hooksPath = /dev/null
	fsmonitor = false
[credential]
	helper =
[fetch]
	recurseSubmodules = false
[gc]
	auto = 0
[http]
	followRedirects = false
	lowSpeedLimit = 1
	lowSpeedTime = 60
	proxy = http://{nowhere}:9
[init]
	defaultBranch = main
	templateDir =
[maintenance]
	auto = false
[protocol]
	allow = never
[safe]
	bareRepository = explicit
"""
"""The last one because files of a repository can look like a Git directory, with a configuration that runs commands."""


class Credential(NamedTuple):
    """A user name and password for one host, or for what is below one path there (`path` is empty or canonical)."""

    origin: str
    path: str
    user: str
    password: str

    def fits(self, repository: Repository) -> bool:
        below = not self.path or repository.path == self.path or repository.path.startswith(f"{self.path}/")
        return self.origin == _origin(repository) and below


class Git:
    """Runs git with a private configuration, in which only permitted repositories can be reached.

    A context manager: its folder (`home`) and all that was put there is gone afterwards.
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
        """`lent` says for which repositories a credential may be used. `home` is made in `folder`; `stdin` is git's
        standard input, as `subprocess` takes it."""
        self._policy = policy
        self._credentials = credentials
        self._lent = lent
        self._stdin = stdin
        self.home = Path(tempfile.mkdtemp(prefix="kiln-git-", dir=folder))
        self._permitted: dict[str, Repository] = {}
        self._resolved: dict[str, Sequence[str]] = {}
        self._write()

    def __enter__(self) -> Git:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            remove(self.home)

    @property
    def environment(self) -> dict[str, str]:
        """For git, and for every program that runs git."""
        barred = ("GIT_", "XDG_CONFIG")
        kept = {name: value for name, value in os.environ.items() if name == TRUST or not name.startswith(barred)}
        return {
            **kept,
            "HOME": str(self.home),  # curl reads ~/.netrc
            "LC_ALL": "C.UTF-8",
            "GIT_ALLOW_PROTOCOL": ":".join(sorted({"https"} | {known.scheme for known in self._permitted.values()})),
            "GIT_ASKPASS": "",
            "SSH_ASKPASS": "",
            "GIT_CONFIG_GLOBAL": str(self._config),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_LFS_SKIP_SMUDGE": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "BUILDX_GIT_INFO": "false",  # or buildx runs git in the folder that it builds
        }

    def permit(self, url: str, deadline: float | None = None) -> Repository:
        """Lets git fetch from there from now on. `deadline` is of `time.monotonic`.

        Raises RepositoryError (RepositoryRefused for what the policy does not permit), Unreachable.
        """
        repository = canonical(url)
        if url in self._permitted:
            return repository
        self._policy.check(repository)
        if repository.host and not _proxy(repository):
            self._check_addresses(repository, deadline)
        self._permitted[url] = repository
        self._write()
        return repository

    def run(
        self, *arguments: str, at: Path | None = None, deadline: float | None = None, most: int = MAX_OUTPUT
    ) -> bytes:
        """What git printed, at most so many bytes; `at` is the bare repository that it works on.

        Raises what `diagnosis` makes of its complaint; CannotBuild for more output, Unreachable at the deadline.
        """
        child = subprocess.Popen(
            ["git", *([f"--git-dir={at}"] if at else []), *arguments],  # noqa: S607 (the one on PATH)
            cwd=self.home,
            env=self.environment,
            stdin=self._stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        with child:
            try:
                output, complaint = _heard(child, deadline, most)
                child.wait()
            finally:
                if child.returncode is None:  # its transport helpers have to end as well
                    os.killpg(child.pid, signal.SIGKILL)
        if child.returncode:
            raise diagnosis(complaint.decode(errors="replace"))
        return output

    def refs(self, url: str, *wanted: str, deadline: float | None = None) -> dict[str, str]:
        """Of the full ref names asked for, those the repository has, with what they point at; `^{}` peels tags.

        `HEAD` may be asked for; where it is a branch, that is added under the name `HEAD:`. git-ls-remote(1) matches by
        suffix, so its answer is filtered here.
        """
        told = self._ls_remote(url, wanted, deadline)
        return {name: value for name, value in told.items() if name in wanted or name == "HEAD:"}

    def all_refs(self, url: str, deadline: float | None = None) -> dict[str, str]:
        """All branches and tags, with what they point at, and `HEAD` and `HEAD:`, as `refs` has them."""
        told = self._ls_remote(url, ("HEAD", "refs/heads/*", "refs/tags/*"), deadline)
        return {name: value for name, value in told.items() if name.startswith(("HEAD", "refs/heads/", "refs/tags/"))}

    def _ls_remote(self, url: str, patterns: Sequence[str], deadline: float | None) -> dict[str, str]:
        output = self.run("ls-remote", "--symref", "--", url, *patterns, deadline=deadline, most=MAX_REFS)
        told = {}
        for line in output.decode(errors="replace").splitlines():
            value, _, name = line.partition("\t")
            if value.startswith("ref: ") and name == "HEAD":
                told["HEAD:"] = value.removeprefix("ref: ")
            elif is_commit(value):
                told[name] = value
        return told

    def _check_addresses(self, repository: Repository, deadline: float | None) -> None:
        if repository.host not in self._resolved:
            self._resolved[repository.host] = _addresses(repository.host, deadline)
        for address in self._resolved[repository.host]:
            if not self._policy.permits_address(repository, address):
                raise RepositoryRefused(
                    f"{repository.host} leads to {address}, which is in a private network; only where "
                    "KILN_ALLOWED_REPOSITORIES names this host are its repositories fetched."
                )

    @property
    def _config(self) -> Path:
        return self.home / "gitconfig"

    def _write(self) -> None:
        sections = [SETTINGS.format(nowhere=NOWHERE)]
        for url, repository in self._permitted.items():
            if repository.scheme not in ("http", "https"):
                continue
            if not _is_address(repository.host):
                pinned = self._resolved.get(repository.host, [NOWHERE])  # behind a proxy, names are the proxy's affair
                addresses = ",".join(f"[{one}]" if ":" in one else one for one in pinned)
                sections.append(f"[http]\n\tcurloptResolve = {_name_and_port(repository)}:{addresses}\n")
            sections.append(f'[http "{_quoted(url)}"]\n\tproxy = "{_quoted(_proxy(repository))}"\n')
            credential = credential_for(repository, self._credentials)
            if credential and self._lent(repository):
                token = base64.b64encode(f"{credential.user}:{credential.password}".encode()).decode()
                sections.append(f"\textraHeader = Authorization: Basic {token}\n")
        with open(self._config, "w", opener=_private, encoding="utf-8") as file:
            file.write("".join(sections))


def _heard(child: subprocess.Popen[bytes], deadline: float | None, most: int) -> tuple[bytes, bytes]:
    """Output and complaint to their end; of the complaint the last part, where git says what is wrong.

    `communicate` takes whatever a host sends. Raises CannotBuild, Unreachable.
    """
    assert child.stdout is not None  # noqa: S101 (it is a pipe)
    assert child.stderr is not None  # noqa: S101
    output, complaint = bytearray(), b""
    with selectors.DefaultSelector() as selector:
        for pipe in (child.stdout, child.stderr):
            selector.register(pipe, selectors.EVENT_READ)
        while selector.get_map():
            left = _remaining(deadline)
            ready = selector.select(left)
            if left == 0.0 or not ready:
                raise Unreachable("The Git host did not answer in time.")
            for key, _ in ready:
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


class Resolved(NamedTuple):
    """A commit, and the full name of the ref that led to it; `None` where it was asked for by itself."""

    ref: str | None
    commit: str


class Resolver:
    """Finds the commit that a ref stands for. Safe to use from many threads; asks a host a few things at once.

    Where there is a credential for a repository on GitHub, its API is asked first.
    """

    def __init__(self, policy: Policy, credentials: Callable[[], Sequence[Credential]] = tuple) -> None:
        self._policy = policy
        self._credentials = credentials
        self._github = GitHub()
        # Hosts that share one wait for each other now and then; one for each would grow with what strangers name.
        self._turns = [threading.BoundedSemaphore(LOOKUPS_PER_HOST) for _ in range(64)]

    def resolve(self, repository: Repository, ref: str | None) -> Resolved:
        """`ref` is a full ref, the name of a branch or tag (a branch wins), a whole commit id, or `None` for HEAD.

        Raises UnknownRef, CannotBuild, RepositoryRefused, Unreachable: after at most `RESOLVE_TIMEOUT` seconds.
        """
        if ref and is_commit(ref):
            return Resolved(None, ref.lower())
        with self._asking(repository, RESOLVE_TIMEOUT) as (git, deadline):
            return self._told(repository, ref, deadline) or look_up(git, repository.clone_url, ref, deadline)

    def _told(self, repository: Repository, ref: str | None, deadline: float) -> Resolved | None:
        """What GitHub's API says, if it does."""
        credential = credential_for(repository, self._credentials())
        if credential is None:
            return None
        if ref is None or ref == "HEAD":
            ref = self._github.default_branch(repository, credential.password, deadline)
        found = ref and self._github.commit(repository, _names(ref), credential.password, deadline)
        return Resolved(_branch(found[0]), found[1]) if found else None

    def refs(self, repository: Repository) -> Refs:
        """All branches and tags. Raises CannotBuild, RepositoryRefused, Unreachable: after at most `LIST_TIMEOUT`
        seconds."""
        with self._asking(repository, LIST_TIMEOUT) as (git, deadline):
            told = git.all_refs(repository.clone_url, deadline)
        names = [name for name in told if name.startswith("refs/") and not name.endswith("^{}")]
        commits = {name: told.get(f"{name}^{{}}", told[name]) for name in names}
        default = told.get("HEAD:")
        return Refs(commits=commits, default=default if default in commits else None)

    @contextmanager
    def _asking(self, repository: Repository, seconds: float) -> Iterator[tuple[Git, float]]:
        """A git that may ask this repository, when it is its turn, and until when."""
        deadline = time.monotonic() + seconds
        turn = self._turns[hash(repository.host) % len(self._turns)]
        if not turn.acquire(timeout=seconds):
            raise Unreachable(f"Too much is being asked of {repository.host} at the moment.")
        try:
            with Git(self._policy, self._credentials()) as git:
                git.permit(repository.clone_url, deadline)
                yield git, deadline
        finally:
            turn.release()


def look_up(git: Git, url: str, ref: str | None, deadline: float | None = None) -> Resolved:
    """The commit of a ref of a permitted repository. Raises UnknownRef and what `Git.run` raises."""
    if ref is None or ref == "HEAD":
        found = git.refs(url, "HEAD", deadline=deadline)
        if "HEAD" not in found:
            raise UnknownRef("The repository has no default branch: it may be empty.")
        return Resolved(_branch(found.get("HEAD:")), found["HEAD"])
    names = _names(ref)
    found = git.refs(url, *names, *(f"{name}^{{}}" for name in names), deadline=deadline)
    for name in names:
        if name in found:
            return Resolved(name, found.get(f"{name}^{{}}", found[name]))
    raise UnknownRef(f"The repository has no branch or tag '{ref}'.")


def _names(ref: str) -> list[str]:
    """The full names that a ref may have, the one that wins first."""
    return [ref] if ref.startswith("refs/") else [f"refs/heads/{ref}", f"refs/tags/{ref}"]


def _branch(name: str | None) -> str | None:
    """What a host says that its HEAD is: git believes anything. Raises CannotBuild."""
    try:
        if name is None or checked_ref(name).startswith("refs/"):
            return name
    except Malformed:
        pass
    raise CannotBuild("The repository's default branch has a name that no branch can have.")


# Credentials


def credentials(place: str | os.PathLike[str] | None) -> tuple[Credential, ...]:
    """What is in a file in the format of git-credential-store(1), or a folder of them. Other lines are passed over."""
    if place is None or not Path(place).exists():
        return ()
    inside = sorted(Path(place).iterdir()) if Path(place).is_dir() else [Path(place)]
    files = [file for file in inside if file.is_file() and not file.name.startswith(".")]
    lines = (line.strip() for file in files for line in file.read_text(encoding="utf-8").splitlines())
    return tuple(credential for line in lines if (credential := _credential(line)))


class Stored:
    """What is stored, read again every second: whoever lists builds asks for each of them."""

    def __init__(self, place: str | os.PathLike[str] | None) -> None:
        self._place = place
        self._read: tuple[float, tuple[Credential, ...]] = (-1.0, ())

    def __call__(self) -> tuple[Credential, ...]:
        at, known = self._read
        if not at <= time.monotonic() <= at + 1 or at < 0:
            known = credentials(self._place)
            self._read = (time.monotonic(), known)
        return known

    def fits(self, repository: Repository) -> bool:
        """Whether there is one for this repository."""
        return credential_for(repository, self()) is not None


def credential_for(repository: Repository, known: Sequence[Credential]) -> Credential | None:
    """The one with the longest path among those for this host and path."""
    return max((one for one in known if one.fits(repository)), key=lambda one: len(one.path), default=None)


def _credential(line: str) -> Credential | None:
    try:
        parts = urlsplit(line)
    except ValueError:
        return None
    if parts.scheme not in ("http", "https") or not parts.username or parts.password is None:
        return None
    base, asked = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", parts.path.strip("/")
    for added in range(3):  # what is no repository's address (a host, an owner) may become one with further parts
        try:
            found = canonical("/".join([base, *([asked] if asked else []), *["x"] * added]))
        except RepositoryError:
            continue
        path = "/".join(found.path.split("/")[: -added or None])
        return Credential(_origin(found), path, unquote(parts.username), unquote(parts.password))
    return None


# Addresses


def _addresses(host: str, deadline: float | None) -> list[str]:
    """What a name leads to, asked in a thread: the C library's look-up can be neither interrupted nor limited."""
    found: list[str] = []
    trouble: list[OSError | UnicodeError] = []

    def ask() -> None:
        try:
            found.extend(dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, None)))
        except (OSError, UnicodeError) as error:
            trouble.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_remaining(deadline) if deadline is not None else RESOLVE_TIMEOUT)
    if found:
        return [address.partition("%")[0] for address in found]
    if any(isinstance(error, socket.gaierror) and error.errno in UNKNOWN_NAME for error in trouble):
        raise CannotBuild(f"There is no host called {host}.")
    raise Unreachable(f"The name {host} could not be looked up.")


UNKNOWN_NAME = (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))


def _proxy(repository: Repository) -> str:
    """The proxy that the environment has for this address; empty where it is asked directly."""
    if proxy_bypass(repository.host):
        return ""
    proxies = getproxies()
    return proxies.get(repository.scheme) or proxies.get("all") or ""


def _is_address(host: str) -> bool:
    return ":" in host or host.replace(".", "").isdigit()


def _name_and_port(repository: Repository) -> str:
    return f"{repository.host}:{repository.port}"


def _origin(repository: Repository) -> str:
    return f"{repository.scheme}://{_name_and_port(repository)}"


# What git says


MESSAGES: Sequence[tuple[str, type[AskError], str]] = (
    (r"returned error: 30\d|redirect", RepositoryRefused, "The Git host redirects, and redirects are not followed."),
    (r"transport '.*' not allowed|protocol '.*' is not supported", RepositoryRefused, "The protocol is not allowed."),
    (
        r"not our ref|unadvertised object|not a tree|find remote ref|Needed a single revision",
        UnknownRef,
        "The repository has no such commit.",
    ),
    (
        r"could not read (Username|Password)|Authentication failed|returned error: 40[13]",
        CannotBuild,
        "The Git host does not show this repository: it is not there, or not without a credential.",
    ),
    (r"repository '.*' not found|returned error: 4(04|10)", CannotBuild, "The Git host has no such repository."),
    (r"does not appear to be a git repository|is this a git repository", CannotBuild, "There is no Git repository."),
    (r"bad config", CannotBuild, "The repository's .gitmodules cannot be read."),
    (r"does not support shallow", CannotBuild, "The Git host does not speak the smart HTTP protocol."),
    (r"No space left on device", TryAgain, "There is no space left for the repository."),
)
"""What git complains of, matched in this order. All else is the network's or the host's fault: try again."""


def diagnosis(complaint: str) -> AskError:
    """The error that a complaint of git's stands for, with git's own last words in its message."""
    said = [line.partition(": ")[2] for line in complaint.splitlines() if line.startswith(("fatal: ", "error: "))]
    words = f" git says: {said[0][:300]}" if said else ""
    for pattern, kind, sentence in MESSAGES:
        if re.search(pattern, complaint):
            return kind(sentence + words)
    return Unreachable(f"The Git host could not be reached.{words}")


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _remaining(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
