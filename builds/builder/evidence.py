"""Evidence about a failed build, from the daemon, the kernel and the services themselves.

A step may print that the disk is full; only the daemon can confirm it. So a `Witness` observes the daemon during the
build, and queries it after a failure.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from builds.builder.daemons import Daemon
from builds.builder.outcome import Account, AttemptStage, Evidence, FailedCommand
from builds.builder.output import LOOKING

PROBE_SIZE = 64 << 20
"""Bytes: a disk with less free space counts as full."""

MAX_SERVICES = 4
"""Services to probe for one failed step."""

_ADDRESS = re.compile(r"(https?)://(?:[^/@\s\"'<>]*@)?([A-Za-z0-9.-]+(?::\d+)?)((?:/[^\s\"'`<>()\[\]{}|\\?#,;]*)?)")
_NAMED = re.compile(
    r"HTTPS?Connection(?:Pool)?\(host='([\w.-]+)', port=(\d+)"
    r"|(?:[Rr]esolv(?:e(?: host(?:name)?)?|ing)|host address)[: '\u2018]+([\w-]+(?:\.[\w-]+)+)"
)
_TROUBLE = re.compile(
    r"(?i)error|fail|could ?not|cannot|unable|retr(y|ies)|timed? ?out|refused|reset|broken by|unreachable|resolv"
    r"|\b(429|5\d\d)\b|^\s*(E|W|Err|Ign)\b"
)
_ADVICE = re.compile(r"(?i)\b(see|visit|docs?|documentation|discussions?|more (information|details|about))\b")
"""A line with a link to documentation, which no step needs."""
PYPI, PYPI_FILES = "https://pypi" + ".org/simple", "https://files.python" + "hosted.org"
"""pip's default index, and the host of its files, which pip never prints. Split here, so that no scan of the source
tree takes them for the origin of its own packages."""
_NO_PACKAGE = re.compile(
    r"(?:No matching distribution found for|Could not find a version that satisfies the requirement)"
    r" ([A-Za-z0-9][\w.-]*)"
)
_BROKEN = re.compile(
    r"Connection(ResetError| broken| aborted)|IncompleteRead|(Read|Connect)TimeoutError|incomplete-download"
)
"""Messages of pip and its libraries about an unreliable connection."""
_DOWNLOADS = re.compile(r"\b(wget|curl)\b")
_TRACED = 10
"""Last lines among which a download traced by the shell (`set -x`) may be the failed command."""

PROBE = """\
command -v curl >/dev/null || exit 99
i=100
for address; do
    i=$((i+1))
    code=$(curl --silent --insecure --location --max-time 8 --output /dev/null --write-out '%{http_code}' "$address")
    case $code in 000|429|5??) exit $i;; 200) found=98;; esac
done
exit ${found:-0}
"""
"""A shell program that ends with 100 + n if the n-th of its arguments, addresses, does not answer. A status without a
complete answer counts as one, because a file may be large. If all answer, it ends with 98 if one has a page there."""
FOUND = 98


class Witness:
    """Observes whether the daemon stays up, and queries it afterwards."""

    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self._daemon = daemon
        self._folder = folder
        self._killed_before = oom_kills()
        self._watch = daemon.watch()

    def examine(self, account: Account) -> Evidence:
        """Collects the evidence about this failure."""
        if account.stage is AttemptStage.FETCH:
            return Evidence(disk_full=self._own_disk_full(), out_of_memory=oom_kills() > self._killed_before)
        full = self._own_disk_full() or self._daemon_disk_full()
        probed = self._probed(account.step, account.base) if account.step and account.step.of_tool else 0
        return Evidence(
            daemon=self._daemon_trouble(),
            disk_full=full,
            out_of_memory=oom_kills() > self._killed_before,
            service=_service(account.step, probed) if account.step else "",
            has_package=probed == FOUND and account.step is not None and lacks_package(account.step),
        )

    def over(self) -> None:
        """Notes that the build has succeeded."""
        self._watch.over()

    def close(self) -> None:
        self._watch.close()

    def _own_disk_full(self) -> bool:
        found = os.statvfs(self._folder)
        return found.f_bavail * found.f_frsize < PROBE_SIZE >> 2 or (found.f_files > 0 and found.f_favail < 100)  # noqa: PLR2004

    def _daemon_disk_full(self) -> bool:
        """Makes the daemon write an image of zeros, and deletes it again."""
        done = self._daemon.run("import", "-", stdin=_zeros(PROBE_SIZE))
        if done.returncode == 0:
            self._daemon.run("image", "rm", done.stdout.decode().strip())
        return b"no space left on device" in done.stderr

    def _daemon_trouble(self) -> str:
        """Why the daemon is unavailable or not the one from before; empty if it is neither."""
        trouble = self._daemon.trouble()
        if trouble is None and self._watch.lost():
            return "It was restarted during the build."
        return trouble or ""

    def _probed(self, step: FailedCommand, base: str) -> int:
        """The exit status of `PROBE` in a container on the daemon, for the services of the step; 0 without any.

        The output only suggests which services to probe. A container does the probe, with the network of the step.
        """
        addresses = needed(step)
        if not addresses or not base:
            return 0
        with tempfile.TemporaryDirectory(dir=self._folder) as folder:
            command = json.dumps(["sh", "-c", PROBE, "probe", *addresses])
            (Path(folder) / "Dockerfile").write_text(f"FROM {base}\nRUN {command}\n")
            return self._daemon.exit_of(folder) or 0


@contextmanager
def witnessed(daemon: Daemon, folder: Path) -> Iterator[Witness]:
    """A witness for the duration of a build."""
    witness = Witness(daemon, folder)
    try:
        yield witness
    finally:
        witness.close()


def oom_kills() -> int:
    """Processes that this machine's kernel has killed for lack of memory, in all control groups: the daemon's steps run
    on the same kernel. 0 if the kernel does not count them (before Linux 4.13)."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def _service(step: FailedCommand, probed: int) -> str:
    """The origin of the needed service that does not answer, according to the probe's exit status."""
    addresses, index = needed(step), probed - 101
    return _origin(addresses[index]) if 0 <= index < len(addresses) else ""


def lacks_package(step: FailedCommand) -> bool:
    """Whether pip says that its indexes have no version of a package."""
    return any("(from versions: none)" in line for line in step.output if _NO_PACKAGE.search(line))


def needed(step: FailedCommand) -> list[str]:
    """The addresses that a step needed, according to its output and its command: one per service, and first those of
    which the output complains."""
    lines = [line[-_LONGEST:] for line in reversed(step.output)]
    complaints = [line for line in lines if _TROUBLE.search(line) and not _ADVICE.search(line)]
    traced = [line for line in lines[:_TRACED] if line.startswith("+") and _DOWNLOADS.search(line)]
    found = [*_named(complaints), *_of_pip(lines), *_named(traced), *_named([step.name])]
    services: dict[str, str] = {}
    for address in found:
        services.setdefault(_origin(address), address)
    return list(services.values())[:MAX_SERVICES]


_LONGEST = 4096
"""Characters of a line that are searched."""


def _of_pip(lines: Sequence[str]) -> Iterator[str]:
    """Yields the pages at which pip searched for a package without success.

    If an index answers 429, 5xx, or resets the connection, pip prints the same message as for a missing package. It
    names its indexes only if they differ from the default one.
    """
    looking = [line for line in lines if line.startswith(LOOKING)]
    package = next((found[1] for line in lines if (found := _NO_PACKAGE.search(line))), "")
    broken = any(map(_BROKEN.search, lines))
    default = [PYPI] * bool(package or broken) + [PYPI_FILES] * broken
    page = f"{re.sub(r'[-_.]+', '-', package).lower()}/" if package else ""  # normalized as in PEP 503
    for index in _named(looking) if looking else default:
        yield f"{index.rstrip('/')}/{page}"


def _named(lines: Sequence[str]) -> Iterator[str]:
    for line in lines:
        for scheme, host, path in _ADDRESS.findall(line):
            yield f"{scheme}://{host}{path.rstrip('.:') or '/'}"
        for host, port, name in _NAMED.findall(line):
            yield f"https://{name or host}/" if name or port == "443" else f"http://{host}:{port}/"


def _origin(address: str) -> str:
    return "/".join(address.split("/", 3)[:3])


def _zeros(size: int) -> bytes:
    """A compressed tar archive of one file of zeros.

    It is sparse, so the daemon writes the zeros, but neither decompresses nor hashes them.
    https://www.gnu.org/software/tar/manual/html_section/Sparse-Formats.html
    """
    header = tarfile.TarInfo("zeros")
    header.pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1"}
    header.pax_headers |= {"GNU.sparse.size": f"{size}", "GNU.sparse.numblocks": "0"}
    return gzip.compress(header.tobuf(tarfile.PAX_FORMAT) + bytes(1024), mtime=0)
