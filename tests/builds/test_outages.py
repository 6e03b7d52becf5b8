"""Failures of package managers: the final errors of each tool about a service, and faults of the repository."""

# ruff: noqa: RUF001  (the tools print these characters)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builds.build import Reason
from builds.builder.outages import reported_outage
from builds.builder.outcome import Account, AttemptStage, Evidence, FailedCommand, failure

RETRIES = [
    f"WARNING: Retrying (Retry(total={left}, connect=None, read=None, redirect=None, status=None)) after "
    "connection broken by "
    "'ProtocolError('Connection aborted.', ConnectionResetError(104, 'Connection reset by peer'))': /simple/a-b/"
    for left in range(4, -1, -1)
]
NONE = [
    "ERROR: Could not find a version that satisfies the requirement A_b (from versions: none)",
    "ERROR: No matching distribution found for A_b",
]
FILE = "https://files.example/a.whl"
PAGE = "https://i.example/simple/a-b/"
POOL = "HTTPSConnectionPool(host='files.example', port=443)"
NOT_INSTALLED = "ERROR: Could not install packages due to an OSError"
MISMATCH = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If you have updated the package…"
EXPECTED = f"        Expected sha256 {'1' * 64}"
PROGRAM = [
    "  error: subprocess-exited-with-error",
    "  ",
    "  × {program} did not run successfully.",
    "  │ exit code: 1",
    "  ╰─> [1 lines of output]",
]
END = [
    "      [end of output]",
    "  ",
    "  note: This error originates from a subprocess, and is likely not a problem with pip.",
]
METADATA = ["error: metadata-generation-failed", "", "× Encountered error while generating package metadata."]


def run_by_pip(program: str, *output: str) -> list[str]:
    """pip's report of a program that failed with this output."""
    return [*(line.format(program=program) for line in PROGRAM), *(f"      {line}" for line in output), *END]


def got(digit: str) -> str:
    return f"             Got        {digit * 64}"


OUTAGES = {
    "pip, pages reset": [*RETRIES, *NONE],
    "pip, certificate of a page": [
        f"Could not fetch URL {PAGE}: There was a problem confirming the ssl certificate: {POOL} - skipping",
        *NONE,
    ],
    "pip, file 503": [
        f"{NOT_INSTALLED}: {POOL}: Max retries exceeded with url: /a.whl (Caused by ResponseError('too many 503 …'))",
        "",
    ],
    "pip, file timeout": [f"{NOT_INSTALLED}: {POOL}: Read timed out. (read timeout=15)"],
    "pip, file 429": [
        f"  ERROR: HTTP error 429 while getting {FILE}",
        f"ERROR: Could not install requirement a from {FILE} because of HTTP error 429 Client Error: Too Many Requests",
    ],
    "pip, connection broken": [
        "ERROR: Exception:",
        "Traceback (most recent call last):",
        "ConnectionResetError: [Errno 104] Connection reset by peer",
        "",
        "During handling of the above exception, another exception occurred:",
        "pip._vendor.urllib3.exceptions.ProtocolError: (\"Connection broken: ConnectionResetError(104, '…')\", …)",
    ],
    "pip, IncompleteRead": [
        "ERROR: Exception:",
        "pip._vendor.urllib3.exceptions.IncompleteRead: IncompleteRead(10 bytes read, 96857 more expected)",
    ],
    "pip, truncated": [
        "error: incomplete-download",
        "",
        "× Download failed after 6 attempts because not enough bytes were received (50 kB/200 kB)",
        f"╰─> URL: {FILE}",
        "",
        "note: This is an issue with network connectivity, not pip.",
    ],
    "pip, damaged, index of HTML": [MISMATCH, f"    a from {FILE}#sha256={'1' * 64}:", EXPECTED, got("2")],
    "pip, damaged, index of JSON": [MISMATCH, f"    a>=1 from {FILE} (from -r r.txt (line 1)):", EXPECTED, got("2")],
    "pip, damaged, with right pins": [MISMATCH, f"    a==1 from {FILE}#sha256={'1' * 64}:", EXPECTED, got("2")],
    "pip, git": run_by_pip(
        "git clone --filter=blob:none --quiet https://g.example/a /tmp/a",
        "fatal: unable to access 'https://g.example/a/': The requested URL returned error: 503",
    ),
    "pip, build dependencies": run_by_pip("pip subprocess to install build dependencies", *RETRIES, *NONE),
    "pip of mamba": [*RETRIES, *NONE, "critical libmamba pip failed to install packages"],
    "conda, 503": ["", "CondaHTTPError: HTTP 503 SERVICE UNAVAILABLE for url <https://c.example/noarch/repodata.json>"],
    "conda, no connection": [
        "CondaHTTPError: HTTP 000 CONNECTION FAILED for url <https://c.example/noarch/repodata.json>"
    ],
    "mamba, timeout": [
        "critical libmamba Multiple errors occurred:",
        "    Download error (28) Timeout was reached [https://c.example/noarch/repodata.json.zst]",
        "    Operation too slow. Less than 30 bytes/sec transferred the last 60 seconds",
        "    Subdir c/noarch not loaded!",
    ],
    "mamba, 503": [
        "critical libmamba Multiple errors occurred:",
        "    Transfer finalized, status: 503 [https://c.example/noarch/repodata.json] 0 bytes",
        "    Subdir c/noarch not loaded!",
    ],
    "mamba, damaged": [
        'error    libmamba File not valid: SHA256 sum doesn\'t match expectation "/srv/conda/pkgs/a.conda"',
        "    Expected: 1",
        "    Actual: 2",
        "critical libmamba Found incorrect downloads. Aborting",
    ],
    "apt, package 503": [
        "E: Failed to fetch http://d.example/a.deb  503  Service Unavailable [IP: 192.0.2.1 80]",
        "E: Unable to fetch some archives, maybe run apt-get update or try with --fix-missing?",
    ],
    "apt, damaged": ["E: Failed to fetch http://d.example/a.deb  Hash Sum mismatch", "   Hashes of expected file:"],
    "apt, index": [
        "W: Failed to fetch http://d.example/dists/x/InRelease  Temporary failure resolving 'd.example'",
        "W: Some index files failed to download. They have been ignored, or old ones used instead.",
        "E: Unable to locate package a",
    ],
    "npm": [
        "npm error code E503",
        "npm error 503 Service Unavailable - GET https://n.example/a",
        "npm error A complete log",
    ],
    "npm 6": ["npm ERR! code ECONNRESET", "npm ERR! network aborted"],
    "R": [
        "Warning: unable to access index for repository https://r.example/src/contrib:",
        "  cannot open URL 'https://r.example/src/contrib/PACKAGES'",
        "Warning in download.file(url, destfile = f, quiet = TRUE) :",
        "  URL 'https://r.example/src/contrib/PACKAGES': status was 'Could not resolve hostname'",
        "Error in library(a) : there is no package called ‘a’",
    ],
    "R, 503": [
        "  cannot open URL 'https://r.example/src/contrib/PACKAGES.rds': HTTP status was '503 Service Unavailable'",
        "Warning message:",
        "package ‘a’ is not available for this version of R",
    ],
    "Julia": ["ERROR: RequestError: HTTP/1.1 503 Service Unavailable while requesting https://j.example/registries"],
    "curl": ["curl: (56) Recv failure: Connection reset by peer"],
    "wget": [
        "+ wget -qO- https://m.example/a.tar.bz2",
        "+ tar -xvj bin/a",
        "bzip2: Compressed file ends unexpectedly;",
    ],
}

LIES = {
    f"a program, {name}": [*run_by_pip("python setup.py egg_info", *lines), *METADATA]
    for name, lines in OUTAGES.items()
}
FAULTS = {
    **LIES,
    "no package": NONE,
    "no package, after retries that succeeded": [*RETRIES[:-1], *NONE],
    "no package, after retries for another": [*RETRIES, *(line.replace("A_b", "c") for line in NONE)],
    "no version": ["ERROR: Could not find a version that satisfies the requirement a==9 (from versions: 1.0, 2.0)"],
    "conflict": [
        *RETRIES,
        "ERROR: Cannot install a and b because these package versions have conflicting dependencies.",
        "ERROR: ResolutionImpossible: for help visit https://pip.example/",
    ],
    "wrong pins": [MISMATCH, f"    a==1 from {FILE}#sha256={'2' * 64} (from -r r.txt (line 1)):", EXPECTED, got("2")],
    "wrong pins, index of JSON": [MISMATCH, f"    a==1 from {FILE} (from -r r.txt (line 1)):", EXPECTED, got("2")],
    "wrong checksum in a direct URL": [
        MISMATCH,
        f"    a@ {FILE}#sha256={'1' * 64} from {FILE}#sha256={'1' * 64}:",
        EXPECTED,
        got("2"),
    ],
    "file not found": [
        f"  ERROR: HTTP error 404 while getting {FILE}",
        f"ERROR: 404 Client Error: Not Found for url: {FILE}",
    ],
    "no such file": [f"{NOT_INSTALLED}: [Errno 2] No such file: '/x/Max retries exceeded'"],
    "invalid requirement": ["ERROR: Invalid requirement: '503 Server Error': Expected end"],
    "git, no repository": run_by_pip(
        "git clone https://g.example/a",
        "fatal: unable to access 'https://g.example/a/': The requested URL returned error: 404",
    ),
    "build failed": [
        *RETRIES,
        *run_by_pip("Building wheel for a (pyproject.toml)", "x"),
        "ERROR: Failed building wheel for a",
    ],
    "mamba, does not exist": [
        "warning  libmamba Download error (28) Timeout was reached [https://c.example/noarch/repodata.json]",
        "error    libmamba Could not solve for environment specs",
        "    └─ x does not exist (perhaps a typo or a missing channel).",
        "critical libmamba Could not solve for environment specs",
    ],
    "conda, no channel": ["CondaHTTPError: HTTP 404 NOT FOUND for url <https://c.example/noarch/repodata.json>"],
    "conda, no package": ["ResolvePackageNotFound: ", "  - a=9"],
    "apt, no package": ["E: Unable to locate package a"],
    "apt, no file": ["E: Failed to fetch http://d.example/a.deb  404  Not Found [IP: 192.0.2.1 80]"],
    "npm, no package": ["npm error code E404", "npm error 404 Not Found - GET https://n.example/a"],
    "npm, wrong pins": ["npm error code EINTEGRITY", "npm error sha512-1 integrity checksum failed"],
    "R, no package": ["package ‘a’ is not available for this version of R"],
    "R, compiler": [
        "  cannot open URL 'https://r.example/PACKAGES.rds': HTTP status was '503 Service Unavailable'",
        "ERROR: compilation failed for package ‘a’",
    ],
    "curl, not found": ["curl: (22) The requested URL returned error: 404"],
    "nothing": [],
}


def doubted(output: list[str], *, of_tool: bool = True) -> tuple[bool, str]:
    """Return whether the builder builds once more after a step with this output, and the failure's message."""
    step = FailedCommand("[9/9] RUN pip install -r requirements.txt", "exit code: 1", output, of_tool=of_tool)
    found = failure(Account(stage=AttemptStage.BUILD, step=step), Evidence())
    assert found.reason is Reason.REPOSITORY, "what a step prints decides nothing"
    return found.doubtful, found.message


@pytest.mark.parametrize("output", OUTAGES.values(), ids=OUTAGES)
def test_a_failed_transfer_makes_the_failure_doubtful(output: list[str]) -> None:
    doubtful, message = doubted(["Looking in indexes: https://i.example/simple", "Collecting a", *output])
    assert doubtful
    assert reported_outage(output) in message
    coloured = [f"\x1b[31m{line}\x1b[0m" for line in output]
    assert doubted(coloured)[0]


@pytest.mark.parametrize("output", FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_repository_is_not_doubted(output: list[str]) -> None:
    assert not doubted(output)[0]


@pytest.mark.parametrize("output", OUTAGES.values(), ids=OUTAGES)
def test_a_step_of_the_repository_s_own_may_print_anything(output: list[str]) -> None:
    assert not doubted(output, of_tool=False)[0]


ERRORS = ("conflict", "invalid requirement", "file not found", "no such file", "build failed", "R, compiler", *LIES)
"""Faults that do not depend on the content of an index."""


@given(st.sampled_from([name for name in OUTAGES if "damaged" not in name]), st.sampled_from(ERRORS))
def test_the_last_error_is_the_reason(outage: str, fault: str) -> None:
    assert not doubted([*OUTAGES[outage], *FAULTS[fault]])[0]
    assert doubted([*FAULTS[fault], *OUTAGES[outage]])[0]


@given(st.lists(st.text() | st.sampled_from([line for lines in OUTAGES.values() for line in lines])))
def test_no_output_of_a_program_that_pip_runs_counts(output: list[str]) -> None:
    told = [line for text in output for line in text.splitlines() if line.strip() != "[end of output]"]
    assert not doubted([*run_by_pip("python setup.py egg_info", *told), *METADATA])[0]
