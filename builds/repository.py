"""Repositories: their canonical URLs, and the policy for fetching them.

The canonical URL is the identity: all spellings of one repository must give one build and one image. It is computed
here without a URL parser, because parsers disagree with each other and with git, and each disagreement would be a way
around the policy. This module uses no network. After resolving a host name, callers check the address with
`Policy.permits_address`.
"""

from __future__ import annotations

import ipaddress
import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

import msgspec

from builds.errors import Malformed, RepositoryError, RepositoryRefused, RuleError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

MAX_URL = 2048
MAX_HOST = 255
MAX_REF = 1024
"""Bytes of a full ref, which headers contain. File systems allow 250 per part, and GitHub 255 for a name."""
MAX_SUBDIR = 1024

EXAMPLE = "https://github.com/owner/name"
ORG = "https://github.com/our-org/*"


class HostKind(StrEnum):
    """The software of a Git host; the values are those of the webhook routes."""

    GITHUB = "github"
    GITLAB = "gitlab"
    GITEA = "gitea"
    FORGEJO = "forgejo"
    BITBUCKET = "bitbucket"
    BITBUCKET_SERVER = "bitbucket-server"


KNOWN_HOSTS: Mapping[str, HostKind] = {
    "github.com": HostKind.GITHUB,
    "gitlab.com": HostKind.GITLAB,
    "bitbucket.org": HostKind.BITBUCKET,
}
"""Hosts that need no configuration; they also ignore the case of a path."""

OWNER_AND_NAME = frozenset({"github.com", "bitbucket.org"})
"""Hosts where a repository's path has exactly two parts."""

DEFAULT_PORTS = {"https": 443, "http": 80, "ssh": 22, "git": 9418}


class Repository(msgspec.Struct, frozen=True, kw_only=True):
    """The parsed address of a repository.

    `url` is canonical and serves as identity only; git gets `clone_url`. `host` has no brackets and no port, and is
    empty for `file`; `port` is the port to connect to. `path` has no leading `/`. `kind` is `None` for unknown hosts.
    """

    url: str
    clone_url: str
    scheme: str
    host: str
    port: int | None
    path: str
    kind: HostKind | None


def canonical(url: str, hosts: Mapping[str, HostKind] | None = None) -> Repository:
    """The repository at a URL.

    The host becomes lower-case ASCII (IDNA 2008). An IPv4 address in any of `inet_aton`'s spellings becomes the dotted
    one. The default port and a trailing `/` or `.git` are removed, and percent-encoding is normalised. The path becomes
    lower-case on hosts that ignore case. `hosts` are the configured hosts, by `host` or `host:port`.

    Raises RepositoryError for an invalid address. Raises RepositoryRefused for addresses that git accepts and Kiln does
    not: user names and passwords, remote helpers, `git@host:path`.
    """
    return _canonical(url, tuple((hosts or {}).items()))


@lru_cache(maxsize=256)  # each webhook needs it several times for one URL
def _canonical(url: str, hosts: tuple[tuple[str, HostKind], ...]) -> Repository:
    if len(url) > MAX_URL:
        raise RepositoryError(f"The repository's address is too long. Give at most {MAX_URL} characters.")
    if not url.isprintable() or " " in url or "\\" in url:  # no other space is printable
        raise RepositoryError("The repository's address contains a space, a backslash or a control character.")
    whole = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^?#]*)(.*)", url)
    if not whole:
        raise _no_url(url)
    scheme, authority, asked, rest = whole.groups()
    scheme = scheme.lower()
    if "@" in authority:
        raise _userinfo(scheme, authority, asked)
    if rest:
        raise RepositoryError("A repository's address must not have a query ('?') or a fragment ('#').")
    if scheme == "file":
        return _file(authority, asked)
    if scheme not in DEFAULT_PORTS:
        raise RepositoryRefused(f"Kiln does not fetch over {scheme}. Give an https address.")
    host, port = _host_and_port(authority, scheme)
    bracketed = f"[{host}]" if ":" in host else host
    netloc = bracketed if port == DEFAULT_PORTS[scheme] else f"{bracketed}:{port}"
    kinds = {**KNOWN_HOSTS, **{name.lower(): kind for name, kind in hosts}}
    kind = kinds.get(netloc) or kinds.get(bracketed)
    path = _identity(_normalised(asked), host)
    identity = f"{scheme}://{netloc}/{path}"
    # GitLab redirects addresses without `.git`, and Kiln refuses redirects.
    clone_url = f"{identity}.git" if kind else f"{scheme}://{netloc}{quote(asked, safe=string.punctuation)}"
    return Repository(url=identity, clone_url=clone_url, scheme=scheme, host=host, port=port, path=path, kind=kind)


def of_host(repository: Repository, named: Mapping[str, str]) -> str | None:
    """The entry for the repository's host, by `host:port` or else by `host`; `None` without an entry."""
    netloc = urlsplit(repository.url).netloc
    return named.get(netloc) or named.get(re.sub(r":[0-9]*\Z", "", netloc))


def of_kind(repository: Repository, word: str) -> bool:
    """Whether its host has this kind (a webhook route's word): the secret of one kind is not valid for another."""
    return repository.kind is not None and repository.kind == word


def _no_url(text: str) -> RepositoryError:
    """An error that guesses what the text was meant to be."""
    if text.startswith("-"):
        return RepositoryError(f"A repository's address must not begin with '-'. Give one such as {EXAMPLE}.")
    if re.match(r"[A-Za-z0-9+.-]+::", text):
        return RepositoryRefused(f"Kiln does not use git's remote helpers ('…::'). Give an address such as {EXAMPLE}.")
    if scp := re.fullmatch(r"[^@/:]+@([A-Za-z0-9.-]+):([^:].*)", text):
        return _ssh(scp[1], scp[2])
    return RepositoryError(f"The repository's address is incomplete. Give one such as {EXAMPLE}.")


def _userinfo(scheme: str, authority: str, path: str) -> RepositoryError:
    if scheme == "ssh":
        return _ssh(authority.rpartition("@")[2].partition(":")[0], path)
    return RepositoryRefused(
        "A repository's address must not contain a user name or password. The server has the Git credentials."
    )


def _ssh(host: str, path: str) -> RepositoryError:
    """Suggests the https form only if the address contains nothing but a plain path."""
    path = path.strip("/").removesuffix(".git")
    plain = re.fullmatch(r"[A-Za-z0-9.-]+/[A-Za-z0-9._~/-]+", f"{host}/{path}")
    return RepositoryRefused(
        f"Kiln does not fetch over SSH. Give {f'https://{host}/{path}' if plain else 'the https one'}."
    )


def _file(authority: str, asked: str) -> Repository:
    if authority.lower() not in ("", "localhost"):
        raise RepositoryError("A file address must not have a host. Give one such as file:///path.")
    path = _identity(_normalised(asked), "")
    clone_url = f"file://{quote(asked, safe=string.punctuation)}"
    return Repository(
        url=f"file:///{path}", clone_url=clone_url, scheme="file", host="", port=None, path=path, kind=None
    )


def _host_and_port(authority: str, scheme: str) -> tuple[str, int]:
    parts = re.fullmatch(r"(\[[0-9A-Fa-f:.]*\]|[^:\[\]%]*)(?::([0-9]{0,5}))?", authority, re.ASCII)
    if not parts:
        raise RepositoryError("The host in the repository's address is malformed.")
    port = int(parts[2] or DEFAULT_PORTS[scheme])
    if not 0 < port < 1 << 16:
        raise RepositoryError("The port in the repository's address is not between 1 and 65535.")
    return _host(parts[1]), port


def _host(text: str) -> str:
    """A canonical IP address, or a name in lower-case ASCII without its trailing dot."""
    try:
        if text.startswith("["):
            return str(ipaddress.IPv6Address(text[1:-1]))
        name = text if text.isascii() else _idna(text)
        name = name.lower().removesuffix(".")
        if re.fullmatch(r"[0-9]+|0x[0-9a-f]*", name.rpartition(".")[2]):  # no top-level domain is a number
            return _ipv4(name)
    except ValueError:
        raise RepositoryError("The host in the repository's address is not a valid name or address.") from None
    label = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
    if len(name) > 253 or not re.fullmatch(rf"{label}(?:\.{label})*", name):  # noqa: PLR2004 (RFC 1035, §3.1)
        raise RepositoryError("The host in the repository's address is not a valid name or address.")
    return name


def _idna(name: str) -> str:
    import idna  # noqa: PLC0415 (20 ms that an ASCII name need not cost)

    return idna.encode(name[:MAX_HOST], uts46=True).decode()


def _ipv4(text: str) -> str:
    """Decimal, octal, hexadecimal and short forms, which `inet_aton`, and so curl, accept."""
    *heads, tail = (int(part, _base(part)) for part in text.split("."))
    room = 4 - len(heads)
    if room < 1 or any(head > 0xFF for head in heads) or tail >= 1 << 8 * room:  # noqa: PLR2004 (a byte)
        raise ValueError(text)
    packed = sum(head << 8 * (3 - place) for place, head in enumerate(heads)) + tail
    return str(ipaddress.IPv4Address(packed))


def _base(part: str) -> int:
    for base, digits in ((16, "0x[0-9a-f]+"), (8, "0[0-7]+"), (10, "0|[1-9][0-9]*")):
        if re.fullmatch(digits, part):
            return base
    raise ValueError(part)


def _normalised(path: str) -> str:
    """Percent-encodes exactly those bytes that need it."""
    return "/".join(_part(part) for part in path.removeprefix("/").rstrip("/").split("/"))


def _part(text: str) -> str:
    if re.search(r"%(?![0-9A-Fa-f]{2})", text):
        raise RepositoryError("The repository's address contains a '%' that begins no percent-encoded byte.")
    raw = unquote_to_bytes(text)
    if raw in (b"", b".", b".."):
        raise RepositoryError("The path in the repository's address is empty, or has an empty, '.' or '..' part.")
    if any(byte < 0x20 or byte in b"\x7f/\\" for byte in raw):  # noqa: PLR2004 (the first printable character)
        raise RepositoryError("The repository's address encodes a slash, a backslash or a control character.")
    return quote(raw, safe="!$&'()*+,;=:@~")


def _lower(path: str) -> str:
    """Lower case, except for percent-encoded bytes."""
    return re.sub(r"(%[0-9A-F]{2})|[A-Z]+", lambda found: found[1] or found[0].lower(), path)


def _identity(path: str, host: str) -> str:
    if host in KNOWN_HOSTS:
        path = _lower(path)
    # A repeated suffix names the same repository, and a canonical URL is a fixed point.
    path = re.sub(r"(?<=[^/])(?:\.git)+$", "", path)
    if host in OWNER_AND_NAME and path.count("/") != 1:
        raise RepositoryError(f"A repository on {host} has the address https://{host}/owner/name, without more parts.")
    return path


# Patterns


def glob_match(pattern: str, text: str) -> bool:
    """Whether the complete text matches: `*` matches within a path part, `**` anything; `**/` also matches no part.

    It advances the set of reachable positions instead of using a regular expression. The text comes from strangers, so
    matching must take linear time.
    """
    pieces = _pieces(pattern)
    if not text.startswith(pieces[0]) or not text.endswith(pieces[-1]):
        return False  # decides most of a million paths in a push
    places = {0}
    for piece in pieces:
        places = _reach(piece, text, places)
    return len(text) in places


@lru_cache(maxsize=1024)
def _pieces(pattern: str) -> Sequence[str]:
    """Alternating literal text and wildcards; the first and the last piece are text, possibly empty."""
    return re.split(r"((?:^|(?<=/))\*\*/|\*+)", pattern)


def _reach(piece: str, text: str, places: set[int]) -> set[int]:
    """The positions at which a piece of a pattern can end if it begins at one of the places."""
    if not places or not piece:
        return places
    if not piece.startswith("*"):
        return {place + len(piece) for place in places if text.startswith(piece, place)}
    first = min(places)
    if piece == "**/":
        return places | {slash + 1 for slash in range(first, len(text)) if text[slash] == "/"}
    if piece != "*":
        return set(range(first, len(text) + 1))
    reached: set[int] = set()
    for place in sorted(places):
        if place not in reached:
            end = text.find("/", place)
            reached.update(range(place, (len(text) if end < 0 else end) + 1))
    return reached


def globs_meet(one: str, other: str) -> bool:
    """Whether some text matches both globs. (`**/` counts as `**`, so the answer may be yes for an impossible path.)"""
    pieces = (re.findall(r"\*+|[^*]", glob.replace("**/", "**")) for glob in (one, other))
    first, second = (["**" if len(piece) > 1 else piece for piece in found] for found in pieces)
    seen, places = set[tuple[int, int]](), [(0, 0)]
    while places:
        place = at, there = places.pop()
        if place == (len(first), len(second)):
            return True
        if place not in seen:
            seen.add(place)
            places += _next_places(first[at : at + 1], second[there : there + 1], at, there)
    return False


def _next_places(one: list[str], other: list[str], at: int, there: int) -> list[tuple[int, int]]:
    """The next positions of two globs, each with one piece left or none."""
    places = []
    if one and one[0].startswith("*"):
        places.append((at + 1, there))
        if other and (one[0] == "**" or other[0] not in ("/", "**")):
            places.append((at, there + 1))
    if other and other[0].startswith("*"):
        places.append((at, there + 1))
        if one and (other[0] == "**" or one[0] not in ("/", "**")):
            places.append((at + 1, there))
    if one and one == other:
        places.append((at + 1, there + 1))
    return places


def forbids(pattern: str, url: str) -> bool:
    """Whether a restricting pattern covers a canonical URL. Case is ignored, as hosts may ignore it.

    A pattern for https also covers other schemes under that name, because they serve the same repository.
    """
    if pattern.startswith("https://") and not url.startswith("file:"):
        url = f"https://{url.partition('://')[2]}"
    return glob_match(_folded(pattern), _folded(url))


def _folded(text: str) -> str:
    plain = unicodedata.normalize("NFC", unquote(text, errors="surrogateescape").casefold())
    return re.sub(r"(?<=[^/])(?:\.git)+$", "", plain)


def repository_pattern(text: str) -> str:
    """A pattern in the form of canonical URLs, so that every spelling matches its repository.

    Raises RuleError for a pattern that can match no canonical URL, and suggests a form that can.
    """
    if wrong := re.search(r"[?#\[\]{}\\\s]|[^\x20-\x7e\xa0-\U0010ffff]", _without_ipv6(text)):
        raise _matches_nothing(text, f"it contains {wrong[0]!r}, and only * and ** are special", "several patterns")
    if text.startswith("**"):
        if re.search(r"(?<!:)//", text):
            raise _matches_nothing(text, "it contains an empty part", re.sub(r"(?<!:)//+", "/", text))
        return _without_end(text)
    whole = re.fullmatch(r"([A-Za-z*][A-Za-z0-9+.*-]*)://([^/]*)(/.*)?", text)
    if not whole:
        raise _no_pattern(text)
    scheme = whole[1].lower()
    if not any(glob_match(scheme, known) for known in (*DEFAULT_PORTS, "file")):
        raise _matches_nothing(text, f"Kiln does not fetch over {scheme}", f"https://{whole[2]}{whole[3] or '/**'}")
    try:
        netloc = _netloc_pattern(whole[2].rpartition("@")[2], scheme)
        path = _path_pattern(_without_end(whole[3] or ""), netloc)
    except RepositoryError as error:
        raise RuleError(f"The pattern '{text}' can match no repository. {error} Write one such as {ORG}.") from None
    form = _form_that_matches(path, netloc)
    if form is not None:
        raise _matches_nothing(text, "no repository has such a path", f"{scheme}://{netloc}/{form}")
    return f"{scheme}://{netloc}{path}"


def _without_end(text: str) -> str:
    return re.sub(r"(?<=[^/])(?:[.]git)+$", "", text.rstrip("/"), flags=re.IGNORECASE)


def _without_ipv6(text: str) -> str:
    return re.sub(r"^([^/]*://[^/]*)\[([0-9A-Fa-f:.]+)\]", r"\1\2", text)


def _no_pattern(text: str) -> RuleError:
    form = ORG
    if scp := re.fullmatch(r"(?:[^@/:]+@)?([A-Za-z0-9.-]+\.[A-Za-z0-9-]+)[:/](.*)", text):
        form = f"https://{scp[1]}/{scp[2].lstrip('/') or '**'}"
    elif text.startswith("*"):
        form = f"https://*/{text.lstrip('*/') or '**'}"
    return RuleError(f"The pattern '{text}' has no scheme, so it can match no repository. Write {form}.")


def _matches_nothing(text: str, why: str, form: str) -> RuleError:
    return RuleError(f"The pattern '{text}' can match no repository: {why}. Write {form}.")


def _netloc_pattern(text: str, scheme: str) -> str:
    """Host and port, canonical in their literal parts. Raises RepositoryError."""
    if scheme == "file":
        return "" if text.lower() == "localhost" else text
    if "*" not in text:
        host, port = _host_and_port(text, scheme if scheme in DEFAULT_PORTS else "https")
        host = f"[{host}]" if ":" in host else host
        default = port == DEFAULT_PORTS.get(scheme) or not re.search(r":[0-9]+$", text)
        return host if default else f"{host}:{port}"
    parts = re.fullmatch(r"([^:\[\]%]*)(?::([0-9*]*))?", text)
    if not parts:
        raise RepositoryError("The host in the pattern is malformed.")
    host = ".".join(map(_label_pattern, parts[1].split("."))).removesuffix(".")
    port_text = (parts[2] or "").lstrip("0")
    return host if not port_text or port_text == str(DEFAULT_PORTS.get(scheme)) else f"{host}:{port_text}"


def _label_pattern(label: str) -> str:
    if label.isascii():
        return label.lower()
    if "*" in label:
        raise RepositoryError("A non-ASCII part of a host must be complete, without *.")
    try:
        return _idna(label)
    except ValueError:
        raise RepositoryError("The host in the pattern is not a valid name.") from None


def _path_pattern(path: str, netloc: str) -> str:
    """Raises RepositoryError."""
    if not path:
        return path
    path = "/" + "/".join(map(_part, path.removeprefix("/").split("/")))
    path = _lower(path) if netloc in KNOWN_HOSTS else path
    return _without_end(path)


def _form_that_matches(path: str, netloc: str) -> str | None:
    """A similar path that can match something, if this one cannot."""
    if not path:
        return None if "**" in netloc else "**"
    if netloc not in OWNER_AND_NAME:
        return None
    inside = path[1:]
    fewest = inside.replace("**/", "").count("/")
    if fewest > 1:
        return "/".join(inside.split("/")[:2])
    return None if fewest == 1 or "**" in inside else f"{inside}/*"


class Policy:
    """Which repositories may be fetched, and from which addresses.

    Patterns are globs (`glob_match`) over canonical URLs; bans ignore case. Without `allowed`, all of `https` is
    allowed. Private addresses, and schemes other than https, need a pattern that names this host (without `*`), or this
    scheme.
    """

    def __init__(self, allowed: Sequence[str] = (), banned: Sequence[str] = ()) -> None:
        """Raises RuleError."""
        self.allowed = tuple(map(repository_pattern, allowed)) or ("https://**",)
        self.banned = tuple(map(repository_pattern, banned))
        self._why_not = lru_cache(maxsize=1024)(self._judged)

    def check(self, repository: Repository) -> None:
        """Raises RepositoryRefused."""
        if why_not := self._why_not(repository):
            raise RepositoryRefused(why_not)

    def _judged(self, repository: Repository) -> str | None:
        """Why it is refused. The result is cached, because each webhook needs it."""
        url = repository.url
        if self._bans(url):
            return f"{url} is banned here."
        if _is_private(repository.host) and not self._allows(repository, by_name=True):
            return (
                f"{repository.host} is in a private network. To fetch from it, name this host in "
                "KILN_ALLOWED_REPOSITORIES."
            )
        if self._allows(repository):
            return None
        if repository.scheme != "https":
            return f"{url} is not fetched over {repository.scheme}. Use https, or allow the scheme by a pattern."
        return f"{url} is not allowed here. KILN_ALLOWED_REPOSITORIES lists the allowed repositories."

    def _bans(self, url: str) -> bool:
        return any(forbids(pattern, url) for pattern in self.banned)

    def permits_address(self, repository: Repository, address: str | Address) -> bool:
        """Whether this repository may be fetched from that address, to which its host name has just resolved."""
        return is_public(ipaddress.ip_address(address)) or self._allows(repository, by_name=True)

    def check_host(self, place: Repository) -> None:
        """Checks a fetch of something other than a repository from this scheme, host and port (`place.path` is unused).

        Git LFS objects and lists of language versions come from hosts that no pattern of a site names. So public hosts
        are allowed, unless a pattern bans the complete host. Raises RepositoryRefused.
        """
        origin = _origin(place)
        if self._bans(f"{origin}{NO_PATH}"):
            raise RepositoryRefused(f"{origin} is banned here.")
        if _is_private(place.host) and not self._names(place):
            raise RepositoryRefused(
                f"{origin} is in a private network. To fetch from it, name this host in KILN_ALLOWED_REPOSITORIES."
            )

    def check_endpoint(self, place: Repository) -> None:
        """Checks an LFS server that a repository names: it must not be a banned repository's, and an allowed URL must
        be possible at this scheme, host and port. Raises RepositoryRefused."""
        self.check_host(place)
        if self._bans(place.url):
            raise RepositoryRefused(f"{place.url} is banned here.")
        if not any(_could_begin(pattern, _origin(place)) for pattern in self.allowed):
            raise RepositoryRefused(
                f"{_origin(place)} is not allowed here. KILN_ALLOWED_REPOSITORIES allows no repository on this host."
            )

    def permits_host_address(self, place: Repository, address: str | Address) -> bool:
        """As `permits_address`, for the connections of `check_host`."""
        return is_public(ipaddress.ip_address(address)) or self._names(place)

    def _names(self, place: Repository) -> bool:
        """Whether a pattern names the host, with this scheme and port."""
        return any(
            _names_host(pattern, place.host) and _could_begin(pattern, _origin(place)) for pattern in self.allowed
        )

    def _allows(self, repository: Repository, *, by_name: bool = False) -> bool:
        return any(
            glob_match(pattern, repository.url)
            and (repository.scheme == "https" or pattern.startswith(f"{repository.scheme}://"))
            and (not by_name or _names_host(pattern, repository.host))
            for pattern in self.allowed
        )


NO_PATH = "?/?/?/?"
"""A path that no URL has, so that only a pattern for all paths of a host matches it."""


def _origin(place: Repository) -> str:
    """`scheme://host[:port]/`, the beginning of canonical URLs."""
    return place.url.removesuffix(place.path)


def _could_begin(pattern: str, beginning: str) -> bool:
    """Whether some text with this beginning matches the pattern."""
    places = {0}
    for piece in re.split(r"((?:^|(?<=/))\*\*/|\*+)", pattern):
        if not piece.startswith("*") and any(piece.startswith(beginning[place:]) for place in places):
            return True
        places = _reach(piece, beginning, places)
    return len(beginning) in places


def _names_host(pattern: str, host: str) -> bool:
    named = re.match(r"[a-z]+://(?:\[([^\]]+)\]|([^/:]+))(?::[^/]*)?/", pattern)
    return named is not None and host in named.groups()


def _is_private(host: str) -> bool:
    """Whether the host is private by its own spelling; names are checked after resolution."""
    try:
        return not is_public(ipaddress.ip_address(host))
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_loopback(host: str) -> bool:
    """Whether a host (name or address, without port and brackets) is this machine, by its own spelling."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


NOT_PUBLIC_4 = tuple(
    map(
        ipaddress.IPv4Network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "168.63.129.16/32",  # Azure's metadata and DNS service, at an address that is public elsewhere
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
        ),
    )
)
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
NOT_PUBLIC_6 = tuple(
    map(
        ipaddress.IPv6Network,
        (
            "2001::/23",  # IETF protocol assignments, Teredo among them
            "2001:db8::/32",
            "2002::/16",  # 6to4
            "3fff::/20",
        ),
    )
)
"""IANA's special-purpose registries (RFC 6890). They are listed here because `ipaddress.is_global` has changed between
Python releases. NAT64, Teredo and 6to4 carry IPv4 addresses past filters. They are outside of `GLOBAL_UNICAST` or in
this list."""


def is_public(address: Address) -> bool:
    """Whether an address is on the internet. An IPv4-mapped address counts as its IPv4 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in NOT_PUBLIC_4)
    if address.ipv4_mapped:
        return is_public(address.ipv4_mapped)
    return address in GLOBAL_UNICAST and not any(address in network for network in NOT_PUBLIC_6)


# The contents of a repository


class Refs(msgspec.Struct, frozen=True, kw_only=True):
    """Branches and tags by full name, with their commits, tags peeled; `default` is the branch of HEAD."""

    commits: Mapping[str, str]
    default: str | None


def checked_ref(text: str) -> str:
    """Returns the ref unchanged: a full ref (`refs/…`), or the name of a branch or tag. Raises Malformed.

    The rules are those of git-check-ref-format(1), in UTF-8, without a leading `-`. git accepts all other Unicode
    (other spaces, joiners, bidirectional marks). Two names of equal appearance may be two refs.
    """
    if len(text.encode(errors="replace")) > MAX_REF:
        raise Malformed(f"The ref is too long. Give at most {MAX_REF} bytes.")
    malformed = (
        text.startswith("-")
        or text == "@"
        or re.search(r"[\x00- ~^:?*\[\\\x7f\ud800-\udfff]|\.\.|@\{|\.\Z", text)
        or any(not part or part.startswith(".") or part.endswith(".lock") for part in text.split("/"))
    )
    if malformed:
        raise Malformed("Invalid ref. Give the name of a branch or tag, or a full ref such as refs/heads/main.")
    return text


def short_name(ref: str) -> str:
    """The short name of a full ref: `refs/heads/main` is `main`."""
    return re.sub(r"^refs/(?:heads/|tags/)?", "", ref)


def full_names(ref: str) -> list[str]:
    """The possible full names of a ref, in order of precedence: branch, tag, proposed change.

    Hosts and BinderHub's clients write a change as `pull/1/head`, on GitLab as `merge-requests/1/head`, on Bitbucket
    Data Center as `pull-requests/1/from`.
    """
    if ref.startswith("refs/"):
        return [ref]
    change = re.fullmatch(r"(?:pull|merge-requests|pull-requests)/[0-9]+/(?:head|merge|from)", ref)
    return [f"refs/heads/{ref}", f"refs/tags/{ref}", *([f"refs/{ref}"] if change else [])]


def is_cloned(ref: str) -> bool:
    """Whether a clone contains a full ref: branches and tags."""
    return ref.startswith(("refs/heads/", "refs/tags/"))


COMMITS = (
    "Give the complete commit, with its 40 or 64 hexadecimal digits. On GitHub, GitLab, Gitea, Forgejo and Bitbucket "
    "Cloud the first 7 or more are enough if the host's API answers."
)
"""The rule for abbreviated commits."""


def is_abbreviated(text: str) -> bool:
    """Whether the text may be an abbreviated commit."""
    return re.fullmatch(r"[0-9a-fA-F]{7,63}", text) is not None and not is_commit(text)


def is_commit(text: str) -> bool:
    """Whether it is a complete object name: 40 (SHA-1) or 64 (SHA-256) hexadecimal digits."""
    return re.fullmatch(r"(?:[0-9a-fA-F]{40}|[0-9a-fA-F]{64})", text) is not None


def commit_id(text: str) -> str:
    """The commit in lower case. Raises Malformed."""
    if not is_commit(text) or set(text) == {"0"}:
        raise Malformed("The commit must be complete: 40 or 64 hexadecimal digits.")
    return text.lower()


def subdirectory(text: str) -> str:
    """A normalised folder of the repository; `""` is its root. Raises Malformed for a path that leaves it."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if text.startswith("/") or ".." in parts:
        raise Malformed("The subdir must be a folder inside the repository: no leading '/' and no '..'.")
    if len(text) > MAX_SUBDIR or not text.isprintable() or "\\" in text or "".join(parts).startswith("-"):
        raise Malformed(
            f"The subdir must be a plain path of at most {MAX_SUBDIR} characters: no control characters, no backslash, "
            "no leading '-'."
        )
    return "/".join(parts)
