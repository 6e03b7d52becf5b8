"""A client for a container registry: it reads, tags, attaches and deletes manifests (OCI Distribution 1.1).

`docker` has no command that reads a label or sets a tag without pulling the image. Libraries for it are heavier than
the few requests (oras takes 0.5 s to import, and supports one challenge per answer). The module relies only on the
requirements that the specification marks with MUST.

Credentials come from a docker `config.json`. As with docker, they are sent to the registry and to the token service
that it names: a registry that must not have the password could ask for it itself. But they never travel with less
protection than the registry itself has. Plain HTTP is used only for a token service on the registry's own host, and
only if that registry uses plain HTTP as well.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import SplitResult, parse_qsl, urlencode, urljoin, urlsplit, urlunsplit

import msgspec
import requests

from builds.clients import docker_config
from builds.clients.challenges import challenges
from builds.clients.docker_config import DOCKER_HUB, RegistryLogin
from builds.clients.errors import Denied, RegistryError, RegistryRefused, RegistryUnreachable, Unauthorized
from builds.clients.responses import no_netrc, read_body
from builds.repository import is_loopback

__all__ = ["Manifest", "Registry", "RegistryError", "RegistryRefused", "RegistryUnreachable", "Unauthorized", "split"]

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = ", ".join((MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST))
"""All four media types: a registry answers 404 if it stores a type that the header does not name."""

TIMEOUT = (5.0, 20.0)
MAX_BODY = 8 << 20
PAGE = 1000
"""Tags or repositories that are requested at a time; a registry may return fewer."""
MAX_PAGES = 20
"""Pages of a list of referrers."""
MAX_GRANTS = 4
"""Authorizations that are tried for one request."""
MAX_WORDS = 300
"""Characters of a registry's error message that Kiln quotes."""


T = TypeVar("T")


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The manifest of a tag or digest. `body` is `None` if only the head was requested."""

    digest: str
    media_type: str
    body: bytes | None = None


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The description of a blob or manifest in an index or manifest (OCI image-spec 1.1, descriptor.md)."""

    digest: str
    media_type: str = ""
    artifact_type: str = ""
    annotations: dict[str, str] | None = None


class _Contents(msgspec.Struct):
    """The contents of a manifest (`config`) or of a list of manifests."""

    config: Descriptor | None = None
    manifests: list[Descriptor] = []


class _RootFS(msgspec.Struct):
    diff_ids: list[str] = []


class Configuration(msgspec.Struct):
    """The configuration of an image (https://github.com/opencontainers/image-spec/blob/v1.1.0/config.md)."""

    architecture: str = ""
    os: str = ""
    config: dict[str, Any] | None = None
    rootfs: _RootFS = msgspec.field(default_factory=_RootFS)

    @property
    def labels(self) -> Mapping[str, str]:
        return (self.config or {}).get("Labels") or {}

    def describes(self, inspected: Mapping[str, Any], *, but_for: str) -> bool:
        """Whether `docker image inspect` shows the same layers and settings, except for the label `but_for`."""
        here = (inspected["Architecture"], inspected["Os"], inspected["RootFS"].get("Layers") or [])
        there = (self.architecture, self.os, self.rootfs.diff_ids)
        return here == there and _nonempty_settings(inspected["Config"], but_for) == _nonempty_settings(
            self.config or {}, but_for
        )


def _nonempty_settings(config: Mapping[str, Any], but_for: str) -> Mapping[str, Any]:
    """An image's settings without empty values, which Docker shows even if the image does not contain them."""
    labels = {name: text for name, text in (config.get("Labels") or {}).items() if name != but_for}
    return {name: value for name, value in {**config, "Labels": labels}.items() if value}


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class _Catalog(msgspec.Struct):
    repositories: list[str] | None = None


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class _Error(msgspec.Struct):
    message: str = ""


class _Errors(msgspec.Struct):
    """The reasons of a registry's refusal (Distribution 1.1, "Error codes")."""

    errors: list[_Error] = []


class _Grant(msgspec.Struct, frozen=True):
    """One way to get access: a challenge's scheme and, for a token service, the scope to request."""

    scheme: str
    realm: str = ""
    service: str = ""
    scope: str = ""


class Registry:
    """The registries that a docker `config.json` has credentials for. One thread at a time.

    `insecure` lists the `host:port` of registries to reach over plain HTTP; loopback always is. `timeout` is in
    seconds: to connect, and between two bytes of an answer. With `pushes`, the client requests permission to push from
    the start. Some registries reveal that an image is missing only to an account that may create it.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | None = None,
        insecure: Sequence[str] = (),
        timeout: tuple[float, float] = TIMEOUT,
        *,
        pushes: bool = False,
    ) -> None:
        self._config = config
        self._insecure = frozenset(insecure)
        self._timeout = timeout
        self._pushes = pushes
        self._session = requests.Session()
        self._session.auth = no_netrc
        self._authorization: dict[str, str] = {}
        self._services: dict[str, _Grant] = {}

    def manifest(self, image: str, reference: str, *, body: bool = False) -> Manifest | None:
        """The manifest of `reference` (a tag or digest) in the repository `image`; `None` if it does not exist.

        Raises Unauthorized if the registry denies access, RegistryRefused, RegistryUnreachable.
        """
        path, headers = f"manifests/{reference}", {"Accept": ACCEPT}
        answer = self._ask("GET" if body else "HEAD", image, path, headers)
        if not body and answer.status_code != HTTPStatus.NOT_FOUND and not (answer.ok and _told_digest(answer)):
            # A registry may not support HEAD, or omit the digest. Only a body explains a refusal.
            answer = self._ask("GET", image, path, headers)
        if answer.status_code == HTTPStatus.NOT_FOUND:
            return None
        self._expect(answer, image)
        digest = _told_digest(answer) or digest_of(answer.content)
        media_type = answer.headers.get("Content-Type", "")
        return Manifest(digest=digest, media_type=media_type, body=answer.content if body else None)

    def labels(self, image: str, reference: str) -> Mapping[str, str] | None:
        """The labels of an image (of its first platform, if it has several); `None` if it does not exist.

        Raises Unauthorized if the registry denies access, RegistryRefused, RegistryUnreachable.
        """
        found = self.configuration(image, reference)
        return None if found is None else found.labels

    def configuration(self, image: str, reference: str) -> Configuration | None:
        """The configuration of an image, found as by `labels`; empty if the manifest is not an image's."""
        manifest = self.manifest(image, reference, body=True)
        if manifest is None:
            return None
        contents = _decoded(manifest.body or b"", _Contents, image)
        if contents.manifests:
            manifest = self.manifest(image, contents.manifests[0].digest, body=True)
            contents = _decoded(manifest.body or b"", _Contents, image) if manifest else _Contents()
        if contents.config is None:
            return Configuration()
        answer = self._ask("GET", image, f"blobs/{contents.config.digest}", {})
        self._expect(answer, image)
        return _decoded(answer.content, Configuration, image)

    def tag(self, image: str, reference: str, tag: str) -> None:
        """Points `tag` to the same manifest, byte for byte. A refusal is ignored if the tag already points to that
        manifest.

        Raises RegistryRefused (for example for a tag that may not be moved), RegistryUnreachable.
        """
        manifest = self.manifest(image, reference, body=True)
        if manifest is None:
            raise RegistryUnreachable(f"The registry {_host(image)} no longer has the image.")
        try:
            self.put(image, tag, manifest.media_type, manifest.body or b"")
        except RegistryRefused:
            there = self.manifest(image, tag)
            if there is None or there.digest != manifest.digest:
                raise

    def upload(self, image: str, content: bytes) -> None:
        """Uploads a blob in one piece (Distribution 1.1, "Pushing a blob monolithically").

        Raises RegistryError, also for an upload address that would expose the credential or the blob on the network.
        """
        begun = self._ask("POST", image, "blobs/uploads/", {"Content-Type": "application/octet-stream"}, b"")
        self._expect(begun, image)
        host, base = _host(image), urlsplit(begun.url)
        place = urlsplit(urljoin(begun.url, begun.headers.get("Location", "")))
        if place.scheme not in ("http", "https") or (base.scheme == "https" and place.scheme == "http"):
            raise RegistryRefused(f"The registry {host} names no safe place to put a layer.")
        query = urlencode([*parse_qsl(place.query, keep_blank_values=True), ("digest", digest_of(content))])
        headers = {"Content-Type": "application/octet-stream"}
        headers |= self._authorized(image) if place.netloc == base.netloc else {}
        answer = self._send("PUT", urlunsplit(place._replace(query=query)), headers, content, host)
        self._expect(answer, image)

    def put(self, image: str, reference: str, media_type: str, manifest: bytes) -> str | None:
        """Stores a manifest under a tag or digest. Raises RegistryError.

        Returns the digest of its subject if the registry has recorded it and will list it (`referrers`).
        """
        answer = self._ask("PUT", image, f"manifests/{reference}", {"Content-Type": media_type}, manifest)
        self._expect(answer, image)
        subject: str | None = answer.headers.get("OCI-Subject")
        return subject

    def blob(self, image: str, digest: str) -> bytes:
        """The content with that digest, which is verified. Raises RegistryError."""
        answer = self._ask("GET", image, f"blobs/{digest}", {})
        self._expect(answer, image)
        if digest_of(answer.content) != digest:
            raise RegistryRefused(f"The registry {_host(image)} gives other content than {digest}.")
        return answer.content

    def referrers(self, image: str, digest: str) -> list[Descriptor] | None:
        """The manifests whose subject is this manifest; `None` if the registry does not list them.

        Raises RegistryError.
        """
        path, found = f"referrers/{digest}", list[Descriptor]()
        for _ in range(MAX_PAGES):
            answer = self._ask("GET", image, path, {"Accept": INDEX})
            if answer.status_code in _NO_REFERRERS or (answer.ok and not _is_index(answer)):
                return None
            self._expect(answer, image)
            found += _decoded(answer.content, _Contents, image).manifests
            following = answer.links.get("next", {}).get("url")
            if not following:
                return found
            path = f"referrers/{digest}?{urlsplit(following).query}"
        raise RegistryRefused(f"The registry {_host(image)} lists more for {digest} than can be read.")

    def remove(self, image: str, digest: str) -> bool:
        """Deletes a manifest with all its tags; `False` if it does not exist (Distribution 1.1, "Deleting manifests").

        Raises RegistryRefused, also if the registry does not support deletion, RegistryUnreachable.
        """
        answer = self._ask("DELETE", image, f"manifests/{digest}", {})
        if answer.status_code in _UNSUPPORTED and self.manifest(image, digest) is None:
            return False
        if answer.status_code in _UNSUPPORTED:
            raise RegistryRefused(f"The registry {_host(image)} does not let images be deleted{_said(answer)}")
        self._expect(answer, image)
        return True

    def tags(self, image: str) -> list[str]:
        """All tags of a repository, none if it does not exist. Raises RegistryError."""
        return [tag for page in self._pages(image, self._url(image, "tags/list"), _Tags) for tag in page.tags or ()]

    def catalog(self, image: str) -> list[str]:
        """The repositories of an image's registry, with its name before them, as far as the registry lists them.

        `GET /v2/_catalog` belongs to the CNCF's registry and not to OCI's specification. Raises RegistryError.
        """
        host = _host(image)
        pages = self._pages(image, f"{origin(image, self._insecure)}/v2/_catalog", _Catalog)
        return [f"{host}/{name}" for page in pages for name in page.repositories or ()]

    def answers(self, image: str) -> bool:
        """Whether the registry of an image is up, even if it denies access. Raises RegistryUnreachable."""
        host = split(image)[0]
        answer = self._send("GET", f"{origin(image, self._insecure)}/v2/", {}, None, host)
        return answer.status_code < HTTPStatus.INTERNAL_SERVER_ERROR

    def _url(self, image: str, path: str) -> str:
        return f"{origin(image, self._insecure)}/v2/{split(image)[1]}/{path}"

    def _pages(self, image: str, url: str, kind: type[T]) -> Iterator[T]:
        """Follows `Link: <…>; rel="next"` (RFC 8288), of which only the query is used. Yields nothing for a missing
        resource."""
        query, seen = f"n={PAGE}", set[str]()
        while query and query not in seen:
            seen.add(query)
            answer = self._request("GET", image, f"{url}?{query}", {})
            if answer.status_code == HTTPStatus.NOT_FOUND:
                return
            self._expect(answer, image)
            yield _decoded(answer.content, kind, image)
            query = urlsplit(answer.links.get("next", {}).get("url", "")).query

    def _ask(
        self, method: str, image: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> requests.Response:
        return self._request(method, image, self._url(image, path), headers, body)

    def _request(
        self, method: str, image: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> requests.Response:
        """Sends a request, and repeats it with each authorization that the registry asks for until one succeeds."""
        host, name = split(image)
        answer = self._send(method, url, {**headers, **self._authorized(image)}, body, host)
        tried: set[_Grant] = set()
        refusal: RegistryError | None = None
        while (grant := self._next(answer, host, name, tried)) is not None:
            tried.add(grant)
            try:
                self._authorization[image] = self._authorize(host, grant)
            except RegistryRefused as error:
                refusal = refusal or error
                continue
            answer = self._send(method, url, {**headers, **self._authorized(image)}, body, host)
            refusal = None
        if refusal is not None:
            raise refusal
        return answer

    def _authorized(self, image: str) -> Mapping[str, str]:
        value = self._authorization.get(image)
        return {"Authorization": value} if value else {}

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, host: str
    ) -> requests.Response:
        none = dict.fromkeys(("http", "https", "all")) if _is_loopback(host) else None  # loopback needs no proxy
        try:
            answer = self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                timeout=self._timeout,
                stream=True,
                allow_redirects=method != "POST",  # whose body is a secret
                proxies=none,  # type: ignore[arg-type]
            )
            answer._content = read_body(answer, MAX_BODY)
        except (requests.RequestException, OSError, ValueError) as error:
            raise RegistryUnreachable(f"The registry {host} could not be reached: {_cause(error)}.") from None
        return answer

    def _next(self, answer: requests.Response, host: str, name: str, tried: set[_Grant]) -> _Grant | None:
        """The next authorization that the registry names and that has not been tried. Raises Unauthorized for unknown
        schemes.

        A registry rejects a token with too few permissions with 401, or with 403 and `insufficient_scope` (RFC 6750,
        §3.1).
        """
        if len(tried) == MAX_GRANTS or answer.status_code not in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            return None
        asked = challenges(answer.headers.get("WWW-Authenticate", ""))
        if answer.status_code == HTTPStatus.FORBIDDEN:
            asked = [one for one in asked if one.parameters.get("error", "").lower() == "insufficient_scope"]
        bearers = [one.parameters for one in asked if one.scheme == "bearer"]
        grants = [grant for parameters in bearers for grant in self._grants(host, name, parameters)]
        grants += [_Grant("basic") for one in asked if one.scheme == "basic"]
        if asked and not grants:
            raise Unauthorized(f"The registry {host} asks for a kind of authorization that is not known here.")
        return next((grant for grant in grants if grant not in tried), None)

    def _grants(self, host: str, name: str, asked: Mapping[str, str]) -> Iterator[_Grant]:
        before = self._services.get(host, _Grant("bearer"))
        realm, service = asked.get("realm", before.realm), asked.get("service", before.service)
        if not realm:
            return
        named = asked.get("scope", "")
        self._services[host] = _Grant("bearer", realm, service)
        if self._pushes:
            yield _Grant("bearer", realm, service, _widened(named, name))
        yield _Grant("bearer", realm, service, named or f"repository:{name}:pull")

    def _authorize(self, host: str, grant: _Grant) -> str:
        """The value of the header (RFC 9110 §11; Distribution's token authentication).

        Raises Unauthorized, RegistryUnreachable.
        """
        login = docker_config.read(self._config).login(host)
        if login and login.registry_token:
            return f"Bearer {login.registry_token}"
        if grant.scheme == "bearer":
            return f"Bearer {self._token(host, grant, login)}"
        if login is None:
            raise Unauthorized(f"The registry {host} asks for a password, and {self.login_file} has none for it.")
        return _basic(login)

    def _token(self, host: str, grant: _Grant, login: RegistryLogin | None) -> str:
        realm = self._service(host, grant.realm, login)
        query = {"service": grant.service} if grant.service else {}
        scopes = [("scope", scope) for scope in grant.scope.split()]
        if login and login.identity_token:
            form = {"grant_type": "refresh_token", "client_id": "kiln", "refresh_token": login.identity_token}
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            encoded = urlencode({**query, "scope": grant.scope, **form}).encode()
            answer = self._send("POST", grant.realm, headers, encoded, host)
        else:
            headers = {"Authorization": _basic(login)} if login else {}
            asked = urlencode([*parse_qsl(realm.query, keep_blank_values=True), *query.items(), *scopes])
            answer = self._send("GET", urlunsplit(realm._replace(query=asked)), headers, None, host)
        self._expect(answer, host)
        given = _decoded(answer.content, _Token, host)
        return given.token or given.access_token

    def _service(self, host: str, realm: str, login: RegistryLogin | None) -> SplitResult:
        """The address of the token service, if it may receive the password. Raises Unauthorized."""
        try:
            parts = urlsplit(realm)
            name = (parts.hostname or "").lower()
        except ValueError:
            raise Unauthorized(f"The registry {host} names a token service that is no URL.") from None
        own = name == (urlsplit(f"//{host}").hostname or "").lower()
        if name and parts.scheme in ("http", "https") and login is None:
            return parts
        if name and (parts.scheme == "https" or (parts.scheme == "http" and own and is_plain(host, self._insecure))):
            return parts
        raise Unauthorized(
            f"The registry {host} names a token service that the password would not be safe with: {realm[:200]}"
        )

    @property
    def login_file(self) -> str:
        """The path of the `config.json` that holds the credentials."""
        return str(self._config or docker_config.folder() / "config.json")

    def _expect(self, answer: requests.Response, image: str) -> None:
        """Raises Unauthorized, RegistryRefused or RegistryUnreachable for an unsuccessful answer."""
        status = answer.status_code
        if answer.ok and status < HTTPStatus.MULTIPLE_CHOICES:
            return
        host, said = _host(image), _said(answer)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            where = self.login_file
            let_in = "/" in image and (status == HTTPStatus.FORBIDDEN or _with_token(answer))
            raise (Denied if let_in else Unauthorized)(
                f"The registry {host} does not accept the credential for it in {where}, or not for {image}{said}"
            )
        final = status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in _PASSES
        raise (RegistryRefused if final else RegistryUnreachable)(
            f"The registry {host} answers with status {status}{said}"
        )


_PASSES = (HTTPStatus.NOT_FOUND, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
"""Client errors that may be temporary."""


_UNSUPPORTED = (HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED)
"""A registry's answers if it lacks a method: some send 404 instead of 405."""
_NO_REFERRERS = (*_UNSUPPORTED, HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_IMPLEMENTED)
"""404 by the specification (Distribution 1.1, "Listing Referrers"); the others if that is the answer to an unknown
path."""


def _is_index(answer: requests.Response) -> bool:
    media_type: str = answer.headers.get("Content-Type", "")
    return media_type.partition(";")[0].strip() == INDEX


def _widened(scope: str, name: str) -> str:
    """A scope that includes permission to pull and push `name`: `repository:<name>:pull,push`, before the other
    scopes."""
    others = [one for one in scope.split() if not one.startswith(f"repository:{name}:")]
    own = [one.rpartition(":")[2].split(",") for one in scope.split() if one.startswith(f"repository:{name}:")]
    actions = dict.fromkeys(("pull", "push", *(action for actions in own for action in actions)))
    return " ".join([f"repository:{name}:{','.join(actions)}", *others])


def digest_of(content: bytes) -> str:
    """The digest by which registries name content (OCI image-spec 1.1, descriptor.md)."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _told_digest(answer: requests.Response) -> str | None:
    digest: str = answer.headers.get("Docker-Content-Digest", "")
    return digest if re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", digest) else None


def _said(answer: requests.Response) -> str:
    """The registry's own message, as the end of a sentence: `: repository not found.`"""
    try:
        found = msgspec.json.decode(answer.content, type=_Errors).errors
    except (msgspec.MsgspecError, UnicodeDecodeError):
        found = []
    words = " ".join("; ".join(error.message for error in found if error.message).split())
    printable = "".join(character for character in words if character.isprintable())[:MAX_WORDS].rstrip(". ")
    return f": {printable}." if printable else "."


def split(image: str) -> tuple[str, str]:
    """Registry (with port) and name of an image repository, by Docker's rules."""
    first, slash, rest = image.partition("/")
    if slash and (first == "localhost" or "." in first or ":" in first):
        host, name = first, rest
    else:
        host, name = DOCKER_HUB, image
    if host == "index.docker.io":
        host = DOCKER_HUB
    return host, name if host != DOCKER_HUB or "/" in name else f"library/{name}"


def origin(image: str, insecure: Collection[str] = ()) -> str:
    """Scheme, host and port of an image's registry; `insecure` as for `Registry`."""
    host = split(image)[0]
    scheme = "http" if is_plain(host, insecure) else "https"
    return f"{scheme}://{'registry-1.docker.io' if host == DOCKER_HUB else host}"


def _with_token(answer: requests.Response) -> bool:
    """Whether the registry refuses a token from its own token service, which has accepted the password."""
    return str(answer.request.headers.get("Authorization", "")).startswith("Bearer ")


def _basic(login: RegistryLogin) -> str:
    return "Basic " + base64.b64encode(f"{login.username}:{login.password}".encode()).decode()


def _decoded(body: bytes, kind: type[T], image: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError:
        raise RegistryUnreachable(f"The registry {_host(image)} answers with something that it should not.") from None


def _host(image: str) -> str:
    return split(image)[0] if "/" in image else image


def is_plain(host: str, insecure: Collection[str]) -> bool:
    """Whether a registry (`host` or `host:port`) uses plain HTTP: on loopback, or because `insecure` names it."""
    return host in insecure or _is_loopback(host)


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return is_loopback(name.strip("[]"))


def _cause(error: BaseException) -> str:
    """The innermost exception's reason, which is the most specific."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if isinstance(inner, BaseException) and inner is not error:
        return _cause(inner)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rpartition(": ")[2][:200] or type(error).__name__
