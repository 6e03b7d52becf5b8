"""A container registry, as far as an image is looked for there and tagged (OCI Distribution 1.1).

`docker` has no command that reads a label or sets a tag without the image itself, and libraries for it are heavier than
the few requests. Credentials come from a docker `config.json`, as the daemon's client has them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlencode

import msgspec
import requests

from builds.clients.answers import content_of
from builds.repository import is_loopback

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
ACCEPT = ", ".join((MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST))
"""All four: a registry that keeps one of a kind that is not named says 404."""

DOCKER_HUB = "docker.io"
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
TOKEN_USER = "<token>"  # noqa: S105 (what credential helpers say in place of a name)
TIMEOUT = (5.0, 20.0)
MAX_BODY = 8 << 20


T = TypeVar("T")


NO_LOGIN = "/nonexistent/docker/config.json"
"""A docker configuration without credentials. (None at all is the one of whoever runs this.)"""


class RegistryError(Exception):
    """Root of what is raised here. The sentence names the registry, never a credential.

    RegistryError
     ├── Unauthorized   it knows no such user, or does not let this one do that
     └── Unreachable    no answer, or none that makes sense: try again
    """


class Unauthorized(RegistryError):
    pass


class Unreachable(RegistryError):
    pass


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a tag or digest stands for. `body` is `None` where only the head was asked for."""

    digest: str
    media_type: str
    body: bytes | None = None


class _Descriptor(msgspec.Struct):
    digest: str


class _Contents(msgspec.Struct):
    """Of a manifest (`config`) or of a list of manifests."""

    config: _Descriptor | None = None
    manifests: list[_Descriptor] = []


class _Labelled(msgspec.Struct):
    labels: dict[str, str] | None = msgspec.field(default=None, name="Labels")


class _Config(msgspec.Struct):
    """An image's configuration."""

    config: _Labelled | None = None


class _Token(msgspec.Struct):
    token: str = ""
    access_token: str = ""


class _Login(msgspec.Struct):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""


class _Helped(msgspec.Struct):
    """A credential helper's answer."""

    username: str = msgspec.field(name="Username")
    secret: str = msgspec.field(name="Secret")


class DockerConfig(msgspec.Struct):
    """What of a docker `config.json` is about credentials."""

    auths: dict[str, _Login] = {}
    cred_helpers: dict[str, str] = msgspec.field(default_factory=dict, name="credHelpers")
    creds_store: str = msgspec.field(default="", name="credsStore")


class Registry:
    """The registries that a docker `config.json` has credentials for. One thread at a time.

    `insecure` are `host:port` to be spoken to over plain HTTP; loopback always is. `timeout` is in seconds: to connect,
    and between two bytes of an answer.
    """

    def __init__(
        self,
        config: str | os.PathLike[str] | None = None,
        insecure: Sequence[str] = (),
        timeout: tuple[float, float] = TIMEOUT,
    ) -> None:
        self._config = Path(config) if config else docker_folder() / "config.json"
        self._insecure = frozenset(insecure)
        self._timeout = timeout
        self._session = requests.Session()
        self._session.auth = _no_netrc
        self._authorization: dict[str, str] = {}

    def manifest(self, image: str, reference: str, *, body: bool = False) -> Manifest | None:
        """What `reference` (a tag or digest) is in the repository `image`; `None` if it is not there.

        Raises Unauthorized, Unreachable.
        """
        answer = self._ask("GET" if body else "HEAD", image, f"manifests/{reference}", {"Accept": ACCEPT})
        if answer.status_code == requests.codes.not_found:
            return None
        self._expect(answer, requests.codes.ok, image)
        content = answer.content if body else None
        digest = answer.headers.get("Docker-Content-Digest", "")
        if content is not None and not digest:
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if not re.fullmatch(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}", digest):
            raise Unreachable(f"The registry {_host(image)} does not tell the digest of a manifest.")
        return Manifest(digest=digest, media_type=answer.headers.get("Content-Type", ""), body=content)

    def labels(self, image: str, reference: str) -> Mapping[str, str] | None:
        """The labels of an image (of its first platform, where it has several); `None` if it is not there.

        Raises Unauthorized, Unreachable.
        """
        manifest = self.manifest(image, reference, body=True)
        if manifest is None:
            return None
        contents = _decoded(manifest.body or b"", _Contents, image)
        if contents.manifests:
            manifest = self.manifest(image, contents.manifests[0].digest, body=True)
            contents = _decoded(manifest.body or b"", _Contents, image) if manifest else _Contents()
        if contents.config is None:
            return {}
        answer = self._ask("GET", image, f"blobs/{contents.config.digest}", {})
        self._expect(answer, requests.codes.ok, image)
        config = _decoded(answer.content, _Config, image).config
        return config.labels or {} if config else {}

    def tag(self, image: str, reference: str, tag: str) -> None:
        """Makes `tag` the same manifest, byte for byte. Raises Unauthorized, Unreachable."""
        manifest = self.manifest(image, reference, body=True)
        if manifest is None:
            raise Unreachable(f"The registry {_host(image)} no longer has the image.")
        headers = {"Content-Type": manifest.media_type}
        answer = self._ask("PUT", image, f"manifests/{tag}", headers, manifest.body)
        self._expect(answer, requests.codes.created, image)

    def answers(self, image: str) -> bool:
        """Whether the registry of an image is up, whatever it thinks of us. Raises Unreachable where it is silent."""
        host = split(image)[0]
        answer = self._send("GET", f"{self._base(host)}/v2/", {}, None, host)
        return answer.status_code in (requests.codes.ok, requests.codes.unauthorized)

    def _base(self, host: str) -> str:
        plain = host in self._insecure or _is_loopback(host)
        return f"{'http' if plain else 'https'}://{'registry-1.docker.io' if host == DOCKER_HUB else host}"

    def _ask(
        self, method: str, image: str, path: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> requests.Response:
        """One request, and once more with the authorization that the registry asks for."""
        host, name = split(image)
        url = f"{self._base(host)}/v2/{name}/{path}"
        answer = self._send(method, url, {**headers, **self._authorized(image)}, body, host)
        if answer.status_code == requests.codes.unauthorized:
            self._authorization[image] = self._authorize(host, answer.headers.get("WWW-Authenticate", ""))
            answer = self._send(method, url, {**headers, **self._authorized(image)}, body, host)
        return answer

    def _authorized(self, image: str) -> Mapping[str, str]:
        value = self._authorization.get(image)
        return {"Authorization": value} if value else {}

    def _send(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None, host: str
    ) -> requests.Response:
        none = dict.fromkeys(("http", "https", "all")) if _is_loopback(host) else None  # of the environment's proxies
        try:
            answer = self._session.request(
                method,
                url,
                headers=headers,
                data=body,
                timeout=self._timeout,
                stream=True,
                proxies=none,  # type: ignore[arg-type]
            )
            answer._content = content_of(answer, MAX_BODY)
        except (requests.RequestException, OSError) as error:
            raise Unreachable(f"The registry {host} could not be reached: {_cause(error)}.") from None
        return answer

    def _authorize(self, host: str, challenge: str) -> str:
        """The header's value that answers a challenge (RFC 9110 §11; Distribution's token authentication)."""
        scheme, _, rest = challenge.partition(" ")
        known = self.credential(host)
        if scheme.lower() == "basic":
            if known is None:
                raise Unauthorized(f"The registry {host} asks for a password, and {self._config} has none for it.")
            return _basic(*known)
        asked = dict(re.findall(r'(\w+)="([^"]*)"', rest))
        if scheme.lower() != "bearer" or not asked.get("realm", "").startswith(("https://", "http://")):
            raise Unauthorized(f"The registry {host} asks for a kind of authorization that is not known here.")
        return f"Bearer {self._token(host, asked, known)}"

    def _token(self, host: str, asked: Mapping[str, str], known: tuple[str, str] | None) -> str:
        query = {name: asked[name] for name in ("service", "scope") if name in asked}
        if known and known[0] == TOKEN_USER:  # an identity token, which is exchanged (OAuth 2.0, RFC 6749 §6)
            form = {**query, "grant_type": "refresh_token", "client_id": "kiln", "refresh_token": known[1]}
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            answer = self._send("POST", asked["realm"], headers, urlencode(form).encode(), host)
        else:
            headers = {"Authorization": _basic(*known)} if known else {}
            answer = self._send("GET", f"{asked['realm']}?{urlencode(query)}", headers, None, host)
        self._expect(answer, requests.codes.ok, host)
        content = _decoded(answer.content, _Token, host)
        return content.token or content.access_token

    def credential(self, host: str) -> tuple[str, str] | None:
        """User name and password for a registry; the name `TOKEN_USER` goes with an identity token."""
        config = read_config(self._config)
        key = DOCKER_HUB_KEY if host == DOCKER_HUB else host
        for name in (key, f"https://{key}", f"http://{key}"):
            login = config.auths.get(name, _Login())
            if login.identitytoken:
                return TOKEN_USER, login.identitytoken
            if login.auth:
                return _user_and_password(login.auth)
            if login.username:
                return login.username, login.password
        helper = config.cred_helpers.get(key) or config.creds_store
        return _from_helper(helper, key) if helper else None

    def _expect(self, answer: requests.Response, status: int, image: str) -> None:
        if answer.status_code == status:
            return
        host = _host(image)
        if answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden):
            raise Unauthorized(
                f"The registry {host} does not accept the credential for it in {self._config}, or not for {image}."
            )
        raise Unreachable(f"The registry {host} answers with status {answer.status_code}.")


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


def docker_folder() -> Path:
    """Where this user's docker client keeps its configuration."""
    return Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker")


def read_config(path: Path) -> DockerConfig:
    """A docker `config.json`; an empty one where there is none. Raises Unreachable for what is no such file."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=DockerConfig)
    except FileNotFoundError:
        return DockerConfig()
    except (OSError, msgspec.MsgspecError):
        raise Unreachable(f"The docker configuration {path} cannot be read, or is not what docker writes.") from None


def secrets(config: str | os.PathLike[str] | None) -> Iterator[str]:
    """All that must not be seen of a docker `config.json` (the user's own, if none is named). Raises Unreachable."""
    for login in read_config(Path(config) if config else docker_folder() / "config.json").auths.values():
        password = _user_and_password(login.auth)[1] if login.auth else ""
        yield from filter(None, (login.auth, password, login.password, login.identitytoken))


def _user_and_password(auth: str) -> tuple[str, str]:
    try:
        user, _, password = base64.b64decode(auth).decode().partition(":")
    except ValueError:
        raise Unreachable("An 'auth' in the docker configuration is not base64 of 'name:password'.") from None
    return user, password.rstrip("\0")


def _from_helper(helper: str, key: str) -> tuple[str, str] | None:
    """Asks a credential helper by docker's protocol (https://github.com/docker/docker-credential-helpers)."""
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"], input=key.encode(), capture_output=True, timeout=20, check=True
        )
        found = msgspec.json.decode(done.stdout, type=_Helped)
    except (OSError, subprocess.SubprocessError, msgspec.MsgspecError):
        return None
    return found.username, found.secret


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _no_netrc(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Without an `auth` of its own, a session looks into ~/.netrc."""
    return request


def _decoded(body: bytes, kind: type[T], image: str) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError:
        raise Unreachable(f"The registry {_host(image)} answers with something that it should not.") from None


def _host(image: str) -> str:
    return split(image)[0] if "/" in image else image


def _is_loopback(host: str) -> bool:
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return is_loopback(name.strip("[]"))


def _cause(error: BaseException) -> str:
    """The innermost reason, which is the one that says something."""
    inner = getattr(error, "reason", None) or (error.args[0] if error.args else None)
    if isinstance(inner, BaseException) and inner is not error:
        return _cause(inner)
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).rpartition(": ")[2][:200] or type(error).__name__
