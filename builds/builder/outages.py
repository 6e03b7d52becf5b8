"""Recognizes a package manager that failed because a service failed, from its final error.

A service may have recovered before `builds.builder.evidence` probes it, and a failed transfer leaves no other
evidence. A step may print anything, so the words only make the builder run the step once more. Only steps that
repo2docker wrote are read, and of these only the package manager's own lines. The programs that pip runs, such as a
`setup.py`, may print anything; pip indents their output.

The words are those of pip 20 to 26, conda, mamba 1 and 2, apt, npm, R, Julia, curl and git.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from eventing.terminal import plain

_STATUS = r"(?:429|5\d\d)\b"
_CURL = r"\((?:5|6|7|16|18|28|35|52|55|56|60|92)\) "
"""Exit codes of curl about the network and TLS (https://curl.se/libcurl/c/libcurl-errors.html)."""
_REASONS = (
    r"(?:Could not|Couldn't|Cannot|Unable to|Failed to) (?:connect|resolve|handshake|initiate the connection)",
    r"Connection (?:failed|timed out|refused|reset)",
    r"Temporary failure resolving",
    r"(?:Operation )?[Tt]imed? ?out",
    r"Error reading from server",
    r"Undetermined Error",
    r"(?:Recv|Send) failure",
    r"SSL|TLS|gnutls|OpenSSL|(?:[Ss]erver )?[Cc]ertificate",
    r"Failure when receiving",
    r"Server returned nothing",
    r"Transferred a partial",
    r"Empty reply|transfer closed",
    r"RPC failed|early EOF|the remote end hung up",
)
"""Reasons for which nothing, or only a part, was transferred."""
_REASON = f"(?:{'|'.join(_REASONS)})"
_UNFETCHED = rf"Failed to fetch \S+\s+(?:{_STATUS}|{_REASON}|Hash Sum mismatch|File has unexpected size)"
_LIBRARY_ERRORS = (
    r"(?:IncompleteRead|ProtocolError|\w*Timeout(?:Error)?|NewConnectionError|NameResolutionError|MaxRetryError|RetryError"
    r"|SSLError|ProxyError|ConnectionError|ChunkedEncodingError)\b"
)
_NPM_CODES = (
    r"(?:TIMEDOUT|CONNRE\w+|AI_AGAIN|NOTFOUND|NETUNREACH|HOSTUNREACH|PROTO|ERR_SOCKET_TIMEOUT|UNABLE_TO_\w+|CERT_\w+"
    r"|SELF_SIGNED_CERT_IN_CHAIN)\b"
)
_OUTAGES = (
    # pip, which ends with the traceback of its libraries if the connection breaks during a download
    r"^ERROR: Could not install packages due to an \w+: (?:HTTPS?ConnectionPool|\(.Connection (?:aborted|broken))",
    rf"^ERROR: Could not install (?:requirement .* because of HTTP error|packages due to an \w+:) {_STATUS}",
    rf"^ {{0,2}}ERROR: (?:HTTP error )?{_STATUS} (?:while getting|(?:Client|Server) Error)",
    r"^(?:error|ERROR): incomplete-download",
    rf"^(?:pip\._vendor\.)?(?:urllib3|requests)\.exceptions\.{_LIBRARY_ERRORS}",
    # conda and mamba, which take the checksums of packages from the channel
    rf"^CondaHTTPError: HTTP (?:000|{_STATUS})|^(?:CondaSSLError|ChecksumMismatchError): ",
    rf"^(?:(?:critical|error) +libmamba .*| {{0,4}})(?:Download error {_CURL}|Transfer finalized, status:? {_STATUS})",
    r"^(?:critical|error) +libmamba (?:File not valid: .* doesn't match|Found incorrect download)",
    rf"^E: {_UNFETCHED}",
    rf"^npm (?:ERR!|error) (?:code )?(?:E?{_STATUS}|E?{_NPM_CODES})",
    rf"^ERROR: (?:\w+: )*RequestError: (?:HTTP/\S+ {_STATUS}|{_REASON})",
    rf"^(?:fatal|error): (?:unable to access '[^']*': )?(?:The requested URL returned error: {_STATUS}|{_REASON})",
    # repo2docker's own downloads, with its own checksums
    rf"^curl: (?:{_CURL}|\(22\) .*error: {_STATUS})",
    r"^(?:bzip2: Compressed file ends unexpectedly|gzip: stdin: unexpected end of file|tar: Unexpected EOF in archive)",
    r"^sha256sum: WARNING: \d+ computed checksum",
)
_OUTAGE = re.compile("|".join(_OUTAGES))
_UNREAD = re.compile(
    rf"^W: {_UNFETCHED}|URL '[^']*': (?:status|HTTP status|HTTP status code) was '(?:{_STATUS}|{_REASON})"
)
"""apt and R only warn of an index that they cannot read, and continue without its packages."""
_UNKNOWN = re.compile(
    r"^E: (?:Unable to locate package|Package '.*' has no installation candidate|Couldn't find any package by)"
    r"|there is no package called|packages? .* (?:is|are) not available"
)
_SKIPPED = re.compile(
    r"^ *WARNING: Retrying \(Retry\(total=0, .*\)\) after connection broken by .*: \S*/([\w.-]+)/$"
    r"|^ *Could not fetch URL \S+/([\w.-]+)/: (?:There was a problem confirming the ssl|connection error|timed out)"
)
"""pip gives up a page of an index, and continues as if the index did not have the package."""
_NO_PACKAGE = re.compile(
    r"^ERROR: (?:No matching distribution found for|Could not find a version that satisfies the requirement)"
    r" ([A-Za-z0-9][\w.-]*)"
)
_OWN_PROGRAM = r"(?:git |pip subprocess|[Ii]nstalling build dependencies)"
_ERROR = re.compile(
    r"^ {0,2}(?:ERROR|error|Error|fatal)\b(?!: (?:Exception:|subprocess-exited))"
    r"|^E: (?!Unable to fetch some|Some index)|^critical libmamba (?!Multiple errors|pip failed)"
    r"|^npm (?:ERR!|error) code |^\w+(?:\.\w+)*(?:Error|NotFound|Exception)\b"
    rf"|^ {{0,2}}\u00d7 (?!{_OWN_PROGRAM}|Download failed)"
)
"""Any other error of the tools. A tool reports the reason of its failure last."""
_PROGRAM = re.compile(r"^ {0,2}\u00d7 ")
"""The line before the output of a program, in pip's reports."""
_INDENT = " " * 6
_HASHED = re.compile(r"^    [\w.-]+(.*?) from https?://[^#\s]*?(?:#sha256=(\w+))?(?:: *$| \(from )")
_GOT = re.compile(r"^ +Got +(\w+)$")


def reported_outage(output: Sequence[str]) -> str:
    """The line in which a package manager reports that a service failed, if that is the reason of its own failure.

    Empty for any other reason, such as a package that the index does not have, a conflict, or a program of a package.
    """
    found, unread, skipped = "", "", dict[str, str]()
    for line in _own(output):
        if _OUTAGE.search(line):
            found = line
        elif match := _SKIPPED.search(line):
            skipped[_normalized(match[1] or match[2])] = line
        elif match := _NO_PACKAGE.search(line):
            found = skipped.get(_normalized(match[1]), "")
        elif _UNREAD.search(line):
            unread = line
        elif _UNKNOWN.search(line):
            found = unread
        elif _ERROR.search(line):
            found = ""
    return (found or _damaged_file(output)).strip()


def _own(output: Sequence[str]) -> Iterator[str]:
    """Yields the lines of the tool itself, and those of git and of another pip if pip runs them."""
    program = ""
    for text in output:
        line = plain(text).rstrip()
        nested = bool(program) and line.startswith(_INDENT)
        own = not nested or re.search(_OWN_PROGRAM, program) is not None
        if own:
            line = line.removeprefix(_INDENT) if nested else line
            program = line if _PROGRAM.match(line) else program
            yield line
        if line.strip() == "[end of output]":
            program = ""


def _damaged_file(output: Sequence[str]) -> str:
    """The line in which pip names a file that was damaged on its way.

    pip reports its index's checksums and the repository's own (`--hash`) with the same words. The index's checksum is
    in the file's URL. If it is not, only a requirement without a fixed version (`==`) can have no checksum of its own.
    """
    named = None
    for line in map(plain, output):
        named = _HASHED.search(line) or named
        if named and (got := _GOT.search(line)):
            damaged = got[1] != named[2] if named[2] else "==" not in named[1]
            return named[0] if damaged and "@" not in named[1] else ""
    return ""


def _normalized(name: str) -> str:
    """The name of a package as in PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
