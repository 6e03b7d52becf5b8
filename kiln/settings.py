"""The environment as one immutable value. One table defines how each setting is read, validated and documented.

A default is text and passes the same reader as a configured value, so the documentation always shows the effective
default. An unknown name with the prefix `KILN_` is an error: a typo in `KILN_ALLOWED_REPOSITORIES` must not silently
allow everything.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import unquote, urlsplit

import msgspec

from builds.build import stays_with_daemon
from builds.repository import is_loopback
from eventing.event import Format
from kiln.errors import SettingsError
from kiln.quantities import duration, size

Process = Literal["web", "controller"]

OF_THE_COMMAND = ("KILN_PROFILE", "KILN_SERVER", "KILN_TOKEN")
"""Variables of `kiln.target`: the server and the credential of the command. They do not configure a server."""


class Hub(msgspec.Struct, frozen=True, kw_only=True):
    """The variables `JUPYTERHUB_*` that a JupyterHub gives its services, whether it starts them or not."""

    api_url: str
    """Without a trailing slash."""
    api_token: str
    client_id: str
    access_scopes: tuple[str, ...]
    """A user with any of these may use this service."""
    authorize_url: str
    """The URL of the sign-in: a path, unless the Hub specifies its host."""
    callback_url: str | None
    """The URL of the redirect back; by default `oauth_callback` under our base path."""
    logout_url: str
    """The URL of the sign-out from the Hub, and from all its services."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The values of the environment. Durations are seconds, sizes bytes, patterns and words tuples."""

    engine: str
    image_prefix: str
    config: Path | None
    secrets_dir: Path | None
    port: int
    host: str
    ops_port: int | None
    base_path: str
    """Starts and ends with `/`."""
    public_url: str | None
    event_source: str
    auth: tuple[str, ...]
    """Words of `KILN_AUTH`; `("local",)` if it is unset and Kiln is reachable from this machine only."""
    loopback_only: bool
    """`KILN_AUTH` is unset: requests from elsewhere get 403, all others need the token."""
    events_auth: tuple[str, ...]
    token_in_url: bool
    hub: Hub | None
    """`None` without a Hub."""
    oidc_issuer: str | None
    oidc_audience: tuple[str, ...]
    oidc_client_id: str | None
    oidc_scopes: tuple[str, ...]
    oidc_groups_claim: str
    oidc_admin_group: str | None
    oidc_subjects: tuple[str, ...]
    oidc_events_issuer: str | None
    """The default is `oidc_issuer`; also the audience."""
    oidc_events_audience: tuple[str, ...]
    allowed_repositories: tuple[str, ...]
    banned_repositories: tuple[str, ...]
    builds_per_node: int
    max_queued: int
    max_queued_per_user: int
    max_attempts: int
    build_timeout: float
    build_cache: str
    supersede: str
    scale_up_after: float
    pending_grace: float
    delivery_period: float
    log_history: float
    history: float
    max_body: int
    max_viewers: int
    log_level: str
    state_dir: Path
    namespace: str | None
    instance: str
    anchor: str | None
    builder_image: str | None
    pod_template: Path | None
    config_sha256: str | None
    pod_template_sha256: str | None
    daemon: Literal["docker", "podman"]
    docker_host: str | None
    registry_config: Path | None
    private_registry_config: Path | None
    provenance: bool
    signing_key: Path | None
    fault: str | None
    k_sink: str | None
    k_ce_overrides: str | None
    k_ca_certs: str | None
    k_sink_format: Format
    traces: str

    max_lookups: ClassVar[int] = 32
    """Concurrent look-ups of refs by web, each on a thread."""
    max_hub_calls: ClassVar[int] = 128
    """Concurrent requests whose senders web looks up at a Hub, each on a thread."""
    max_oidc_calls: ClassVar[int] = 32
    """Concurrent requests that wait for an OIDC issuer's keys, each on a thread."""

    @property
    def threads(self) -> int:
        """The number of web's threads. Viewers of logs, look-ups of refs and requests that wait for a Hub or an issuer
        have their own; 16 are always free for other requests.
        """
        waiting = self.max_hub_calls if "hub" in self.auth + self.events_auth else 0
        waiting += self.max_oidc_calls * len(self.oidc_issuers)
        return 16 + self.max_lookups + self.max_viewers + waiting

    @property
    def oidc_issuers(self) -> frozenset[str]:
        """The issuers whose tokens are accepted."""
        asked = {
            self.oidc_issuer if "oidc" in self.auth else None,
            self.oidc_events_issuer if "oidc" in self.events_auth else None,
        }
        return frozenset(filter(None, asked))

    @property
    def senders_are_people(self) -> bool:
        """Return whether a subject at `/events` that `oidc_subjects` does not name is a person."""
        same = (self.oidc_issuer, self.oidc_audience) == (self.oidc_events_issuer, self.oidc_events_audience)
        return not self.oidc_subjects or (same and "oidc" in self.auth)

    def ops_port_of(self, process: Process) -> int:
        if self.ops_port is not None:
            return self.ops_port
        return 9090 if process == "web" else 9091

    @property
    def sink_binding(self) -> dict[str, str]:
        """The variables that a SinkBinding injected (`eventing.delivery.sinks_from_environment`)."""
        injected = {"K_SINK": self.k_sink, "K_CE_OVERRIDES": self.k_ce_overrides, "K_CA_CERTS": self.k_ca_certs}
        return {name: value for name, value in injected.items() if value is not None}


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table. `default` is text like a configured value; `None`: nothing. `says` is for the docs."""

    name: str
    read: Callable[[str], object]
    """Raises ValueError that names the valid values."""
    default: str | None
    says: str

    @property
    def field(self) -> str:
        return self.name.lower().removeprefix("kiln_")

    @property
    def flag(self) -> str:
        """The command line's name for it: `KILN_IMAGE_PREFIX` is `--image-prefix`."""
        return "--" + self.field.replace("_", "-")


# Readers: text in, value out, otherwise ValueError("must …"). -------------------------------------------------------


def _text(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must not hold control characters")
    return text


def _sha256(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("must be 64 hexadecimal digits in lower case")
    return text


def _path(text: str) -> Path:
    try:
        return Path(_text(text)).expanduser().absolute()  # builders have another working directory
    except RuntimeError:
        raise ValueError("must be a path without ~: this home directory does not exist") from None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word for word in (part.strip() for part in _text(text).split(",")) if word)


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise ValueError(f"must be {_either(words)}")
        return text

    return read


def _each_of(*words: str) -> Callable[[str], tuple[str, ...]]:
    one = _one_of(*words)

    def read(text: str) -> tuple[str, ...]:
        chosen = tuple(dict.fromkeys(one(word) for word in _words(text)))
        if not chosen:
            raise ValueError(f"must be {_either(words)}")
        if "none" in chosen and len(chosen) > 1:
            raise ValueError("must not combine none with others, because none disables authentication")
        return chosen

    return read


def _yes_or_no(text: str) -> bool:
    return _one_of("yes", "no")(text) == "yes"


def _number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(text)

    return read


def _period(*, least: float = 0) -> Callable[[str], float]:
    def read(text: str) -> float:
        seconds = duration(text)
        if seconds < least:
            raise ValueError(f"must be at least {least:g}s")
        return seconds

    return read


def _body_size(text: str) -> int:
    number = size(text)
    if not 2**10 <= number <= 2**30:
        raise ValueError("must be from 1KiB to 1GiB")
    return number


def _host(text: str) -> str:
    if text == "localhost" or re.fullmatch(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?", text):
        return text
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        raise ValueError("must be an address or a host name, without a port") from None


def _base_path(text: str) -> str:
    path = f"/{text.strip('/')}/".replace("//", "/")
    parts = path.split("/")[1:-1]
    if not all(re.fullmatch(r"(?:[A-Za-z0-9._~@+-]|%[0-9A-Fa-f]{2})+", part) and _is_segment(part) for part in parts):
        raise ValueError("must be a path such as /services/binder/, percent-encoded")
    return path


def _is_segment(encoded: str) -> bool:
    """Return whether a proxy and a route agree that it is one segment of a path."""
    try:
        part = unquote(encoded, errors="strict")
    except UnicodeDecodeError:
        return False
    return part not in (".", "..") and part.isprintable() and not set(part) & set("/\\<>")


def _url(text: str) -> str:
    try:
        url = urlsplit(_text(text))
        valid = url.scheme in ("http", "https") and url.hostname and (url.port is None or url.port)
    except ValueError:
        valid = False
    if not valid or not _is_source(text):
        raise ValueError("must be a URL such as https://kiln.example/")
    if url.username is not None or url.query or url.fragment:
        raise ValueError("must be a URL without user, query and fragment")
    return text


def _issuer(text: str) -> str:
    """Require HTTPS except near this machine: a false issuer could create tokens for any identity."""
    _url(text)
    host = urlsplit(text).hostname or ""
    if not text.startswith("https:") and not _is_near(host):
        raise ValueError("must be https, or http on this machine or in its cluster")
    return text


def _is_near(host: str) -> bool:
    """Return whether it is this machine, a Service of the cluster, or an address of a private network."""
    if is_loopback(host) or re.fullmatch(r".+\.svc(?:\.cluster\.local)?", host):
        return True
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return False


def _source(text: str) -> str:
    if not _is_source(text):
        raise ValueError("must be a URI or a path, such as https://kiln.example/ or /kiln")
    return text


def _is_source(text: str) -> bool:
    """Return whether events can have this source: an invalid one would break every event."""
    from eventing.errors import DecodeError  # noqa: PLC0415  # only if it is set
    from eventing.http import event_of  # noqa: PLC0415

    try:
        event_of({"specversion": "1.0", "id": "1", "source": text, "type": "test"})
    except DecodeError:
        return False
    return True


def _image_prefix(text: str) -> str:
    registry, slash, path = text.partition("/")
    if not slash or not re.fullmatch(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?|\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?", registry):
        raise ValueError("must start with a registry and a slash, such as registry.example/org/")
    if not re.fullmatch(r"(?:[a-z0-9]+(?:[._-]+[a-z0-9]+)*/)*(?:[a-z0-9]+(?:[._-]+[a-z0-9]+)*[._-]*)?", path):
        raise ValueError("must be lower case letters, digits and . _ - / after the registry")
    return text


def _traces(text: str) -> str:
    chosen = _one_of("off", "otlp")(text)
    if chosen == "otlp" and not (find_spec("opentelemetry") and find_spec("opentelemetry.exporter.otlp.proto.http")):
        raise ValueError("otlp needs the extra otel: pip install 'kiln-images[otel]'")
    return chosen


AUTH_CHOICES = (
    "hub (users of the JupyterHub), token (secrets in api-tokens/), oidc (people of KILN_OIDC_ISSUER) or none (no "
    "authentication)"
)

SETTINGS: tuple[Setting, ...] = (
    Setting(
        name="KILN_ENGINE",
        read=_one_of("local", "kubernetes"),
        default="local",
        says=(
            "The engine that keeps records and runs attempts: `local` is this machine and its Docker, `kubernetes` "
            "the cluster that Kiln runs in. The chart configures it."
        ),
    ),
    Setting(
        name="KILN_IMAGE_PREFIX",
        read=_image_prefix,
        default=None,
        says="Required. The prefix of every image's name, registry first: `registry.example/org/`. Images under "
        "`localhost/` stay with this machine's daemon and are never pushed (engine `local`).",
    ),
    Setting(name="KILN_CONFIG", read=_path, default=None, says="The YAML file with triggers, sinks and hosts."),
    Setting(
        name="KILN_SECRETS_DIR",
        read=_path,
        default=None,
        says="The folder of secrets. Kiln reads it again when it changes.",
    ),
    Setting(
        name="PORT",
        read=_number(0, 65535),
        default="8000",
        says="Port of web. 0: any free one. Default: the port of `JUPYTERHUB_SERVICE_URL`, if set.",
    ),
    Setting(name="KILN_HOST", read=_host, default="127.0.0.1", says="Address on which web and the ops ports listen."),
    Setting(
        name="KILN_OPS_PORT",
        read=_number(0, 65535),
        default=None,
        says=(
            "Port of `/livez`, `/readyz` and `/metrics`. Default: 9090 for web and 9091 for the controller. With "
            "`kiln serve` the controller uses the next port."
        ),
    ),
    Setting(
        name="KILN_BASE_PATH",
        read=_base_path,
        default="/",
        says=(
            "Path of web behind a proxy, as the proxy passes it on, percent-encoded: `/services/binder/`. Default: "
            "`JUPYTERHUB_SERVICE_PREFIX`, if set."
        ),
    ),
    Setting(
        name="KILN_PUBLIC_URL",
        read=_url,
        default=None,
        says=(
            "The URL at which people and hosts reach web from outside, with the base path. Events name schemas below "
            "it."
        ),
    ),
    Setting(
        name="KILN_EVENT_SOURCE",
        read=_source,
        default=None,
        says="`source` of sent events. Default: the public URL, or `/kiln` without one.",
    ),
    Setting(
        name="KILN_AUTH",
        read=_each_of("hub", "token", "oidc", "none"),
        default=None,
        says=(
            "Authentication for the API and the pages: `hub` (users of the JupyterHub), `token`, `oidc` (people of "
            "`KILN_OIDC_ISSUER`), several of them (`hub,token`), or `none`. May be unset only if Kiln is unreachable "
            "from outside: host loopback, base path `/`, public URL unset or loopback, no `JUPYTERHUB_*`. Then every "
            "client needs the token in the file `token` of `KILN_STATE_DIR`, which web creates at its first start. "
            "Web then refuses requests whose `Host` is not loopback, or with a forwarding header or a foreign "
            "`Origin`."
        ),
    ),
    Setting(
        name="KILN_EVENTS_AUTH",
        read=_each_of("hub", "token", "oidc", "network", "none"),
        default=None,
        says=(
            "Authentication for `/events`: `hub`, `token`, `oidc`, `network` (a network policy restricts the "
            "senders), or `none`. Default: `KILN_AUTH`. The page on [permissions](access.md) compares them."
        ),
    ),
    Setting(
        name="KILN_TOKEN_IN_URL",
        read=_yes_or_no,
        default="no",
        says=(
            "Whether Kiln accepts `?token=` in a URL (`yes` or `no`). Histories and logs record URLs: use `yes` only "
            "for clients without another way."
        ),
    ),
    Setting(
        name="KILN_OIDC_ISSUER",
        read=_issuer,
        default=None,
        says=(
            "For `oidc`: the issuer of accepted tokens, exactly as its discovery document names it. `https`, except "
            "on this machine, in its cluster (`.svc`) and at a private address."
        ),
    ),
    Setting(
        name="KILN_OIDC_AUDIENCE",
        read=_words,
        default="",
        says="For `oidc`: the accepted audiences, comma-separated; a token needs one of them.",
    ),
    Setting(
        name="KILN_OIDC_CLIENT_ID",
        read=_text,
        default=None,
        says=(
            "For `oidc` in `KILN_AUTH`: the client with which browsers sign in at the issuer, with the secret "
            "`oidc/client-secret` and the redirect URI `<public URL>/oidc_callback`. If unset, people of the issuer "
            "have no pages."
        ),
    ),
    Setting(
        name="KILN_OIDC_SCOPES",
        read=_words,
        default="openid",
        says=(
            "For the sign-in: the requested scopes, comma-separated; some issuers need another one for groups, such "
            "as `groups`."
        ),
    ),
    Setting(
        name="KILN_OIDC_GROUPS_CLAIM",
        read=_text,
        default="groups",
        says=(
            "For `oidc`: the claim of a token that lists a person's groups, to which `group:<name>` in `private` "
            "refers."
        ),
    ),
    Setting(
        name="KILN_OIDC_ADMIN_GROUP",
        read=_text,
        default=None,
        says="For `oidc`: the group whose members are admins. If unset, no person is an admin.",
    ),
    Setting(
        name="KILN_OIDC_SUBJECTS",
        read=_words,
        default="",
        says=(
            "For `oidc` in `KILN_EVENTS_AUTH`: subjects that may send every event, comma-separated; `…*` matches a "
            "prefix, such as `system:serviceaccount:<namespace>:*`. Other subjects may send the events of people, if "
            "`KILN_AUTH` has `oidc` with the same issuer and audience, and otherwise none. If unset, every subject "
            "may send the events of people."
        ),
    ),
    Setting(
        name="KILN_OIDC_EVENTS_ISSUER",
        read=_issuer,
        default=None,
        says=(
            "The issuer of the tokens of event senders, if it differs from that of people. Default: "
            "`KILN_OIDC_ISSUER`. For Knative it is the cluster's."
        ),
    ),
    Setting(
        name="KILN_OIDC_EVENTS_AUDIENCE",
        read=_words,
        default="",
        says="The audiences of those tokens. Default: `KILN_OIDC_AUDIENCE`.",
    ),
    Setting(
        name="KILN_ALLOWED_REPOSITORIES",
        read=_words,
        default="",
        says=(
            "Patterns of repositories that Kiln may build, comma-separated. Default: every public `https` one. "
            "Private addresses and other protocols need a pattern."
        ),
    ),
    Setting(
        name="KILN_BANNED_REPOSITORIES",
        read=_words,
        default="",
        says="Patterns of repositories that Kiln never builds. They override all permissions.",
    ),
    Setting(
        name="KILN_BUILDS_PER_NODE",
        read=_number(1, 1000),
        default="2",
        says="How many builds run on a node at the same time.",
    ),
    Setting(
        name="KILN_MAX_QUEUED",
        read=_number(1, 1_000_000),
        default="1000",
        says="How many builds may wait; further requests get a 503.",
    ),
    Setting(
        name="KILN_MAX_QUEUED_PER_USER",
        read=_number(1, 1_000_000),
        default="20",
        says=(
            "How many of them one person may request (`user:…` or `oidc:…` in `causes[].by`; tokens and webhooks have "
            "no limit). Repeated requests for a waiting build count, too; further requests get a 429."
        ),
    ),
    Setting(
        name="KILN_MAX_ATTEMPTS",
        read=_number(1, 100),
        default="3",
        says="How often Kiln tries a build that the infrastructure fails.",
    ),
    Setting(
        name="KILN_BUILD_TIMEOUT",
        read=_period(least=1),
        default="3600s",
        says="Time limit of one attempt.",
    ),
    Setting(
        name="KILN_BUILD_CACHE",
        read=_one_of("registry", "off"),
        default="registry",
        says=(
            "Where a node finds layers that other nodes have built: in the images of the same repository "
            "(`registry`), which then carry BuildKit's cache metadata, or nowhere (`off`). Images of the repositories "
            "in `private` are never a source."
        ),
    ),
    Setting(
        name="KILN_SUPERSEDE",
        read=_one_of("off", "queued", "running"),
        default="queued",
        says="Which builds a newer push to the same ref cancels: `queued` ones, `running` ones too, or none (`off`).",
    ),
    Setting(
        name="KILN_SCALE_UP_AFTER",
        read=_period(),
        default="30s",
        says="Engine `kubernetes`: how long builds wait without a ready node before Kiln requests one.",
    ),
    Setting(
        name="KILN_PENDING_GRACE",
        read=_period(),
        default="60s",
        says=(
            "How long an attempt may take to start. Engine `kubernetes`: how long its pod may stay pending because of "
            "an obstacle. Then the attempt is evicted and retried; such retries do not count towards "
            "`KILN_MAX_ATTEMPTS`."
        ),
    ),
    Setting(
        name="KILN_DELIVERY_PERIOD",
        read=_period(least=1),
        default="24h",
        says="How long Kiln retries an event that a sink does not accept.",
    ),
    Setting(
        name="KILN_LOG_HISTORY",
        read=_period(),
        default="24h",
        says=(
            "How long Jobs and pods, or on one machine the attempts' folders, stay after a build's end. Logs are then "
            "compressed and stay with the record."
        ),
    ),
    Setting(
        name="KILN_HISTORY",
        read=_period(least=1),
        default="7d",
        says="How long Kiln keeps records and their logs after a build's end.",
    ),
    Setting(
        name="KILN_MAX_BODY",
        read=_body_size,
        default="1MiB",
        says=(
            "Largest body that web reads; a larger one gets a 413. The limit of webhooks is always 25 MiB, the "
            "largest delivery of GitHub."
        ),
    ),
    Setting(
        name="KILN_MAX_VIEWERS",
        read=_number(1, 10_000),
        default="112",
        says=(
            "How many viewers may follow logs at the same time; one person may use a quarter of them. Web has 48 "
            "threads in addition, another 128 with users of a Hub, and 32 for each OIDC issuer."
        ),
    ),
    Setting(
        name="KILN_LOG_LEVEL",
        read=_one_of("debug", "info", "warning", "error"),
        default="info",
        says="`debug`, `info`, `warning` or `error`. Logs are JSON lines on standard error.",
    ),
    Setting(
        name="KILN_STATE_DIR",
        read=_path,
        default="~/.local/state/kiln",
        says=(
            "Engine `local`: the folder of records and attempts, shared by web and controller. If `KILN_AUTH` is "
            "unset, it also contains `token`, which `kiln` reads there."
        ),
    ),
    Setting(
        name="KILN_NAMESPACE",
        read=_text,
        default=None,
        says="Engine `kubernetes`: the namespace of records and attempts. Default: the pod's own.",
    ),
    Setting(
        name="KILN_INSTANCE",
        read=_text,
        default="local",
        says="Name of this installation; a part of every build's name. Engine `kubernetes`: `<namespace>/<release>`.",
    ),
    Setting(
        name="KILN_ANCHOR",
        read=_text,
        default=None,
        says=(
            "Engine `kubernetes`: name of the ConfigMap that owns all records, and of the Lease for the election of "
            "the controller."
        ),
    ),
    Setting(name="KILN_BUILDER_IMAGE", read=_text, default=None, says="Engine `kubernetes`: the builder's image."),
    Setting(
        name="KILN_POD_TEMPLATE",
        read=_path,
        default=None,
        says=(
            "Engine `kubernetes`: a YAML file with the template of build pods, a PodTemplateSpec with a container "
            "named `builder`."
        ),
    ),
    *(
        Setting(
            name=f"{file}_SHA256",
            read=_sha256,
            default=None,
            says=f"SHA-256 (hexadecimal) of the file in `{file}`: another content is refused. The chart sets it, "
            "because web may patch ConfigMaps.",
        )
        for file in ("KILN_CONFIG", "KILN_POD_TEMPLATE")
    ),
    Setting(
        name="KILN_DAEMON",
        read=_one_of("docker", "podman"),
        default="docker",
        says="The kind of daemon that builds: `docker`, or `podman` for `podman system service` ([Podman](podman.md)).",
    ),
    Setting(
        name="KILN_DOCKER_HOST",
        read=_text,
        default=None,
        says=(
            "Address of the daemon that builds, such as `unix:///run/docker.sock`. Default: `DOCKER_HOST`, with "
            "`podman` `CONTAINER_HOST`, otherwise this user's own daemon; with engine `kubernetes` the daemon whose "
            "socket is in the pod."
        ),
    ),
    Setting(
        name="KILN_REGISTRY_CONFIG",
        read=_path,
        default=None,
        says="A docker `config.json` with the registry's credentials, for pushing images and reading manifests.",
    ),
    Setting(
        name="KILN_PRIVATE_REGISTRY_CONFIG",
        read=_path,
        default=None,
        says=(
            "The same for images under `private_image_prefix`, which Kiln pushes and reads with it alone; build steps "
            "have no access to it. Default: no credential."
        ),
    ),
    Setting(
        name="KILN_PROVENANCE",
        read=_yes_or_no,
        default="yes",
        says=(
            "`yes` attaches a provenance statement to each pushed image: its contents, its source and its triggering "
            "event. `kiln verify` checks it."
        ),
    ),
    Setting(
        name="KILN_SIGNING_KEY",
        read=_path,
        default=None,
        says=(
            "A private key in PEM form (ECDSA over P-256, without a password) for signing provenance statements. With "
            "engine `kubernetes`, use the chart's `signingKey` instead."
        ),
    ),
    Setting(
        name="KILN_FAULT",
        read=_text,
        default=None,
        says="For tests only: a folder; the process crashes at the points that its files are named after.",
    ),
    Setting(
        name="KILN_TRACES",
        read=_traces,
        default="off",
        says=(
            "`otlp` sends spans of requests, builds and deliveries to an OpenTelemetry collector, as the `OTEL_*` "
            "variables configure. It needs the extra `otel`, which the image contains."
        ),
    ),
    Setting(
        name="K_SINK",
        read=_text,
        default=None,
        says="A sink's URL, injected by a Knative SinkBinding; the sink has the name `k-sink`.",
    ),
    Setting(
        name="K_CE_OVERRIDES", read=_text, default=None, says="Extensions for the events to `K_SINK`, as injected."
    ),
    Setting(
        name="K_CA_CERTS",
        read=str,
        default=None,
        says="PEM certificates of the authorities for `K_SINK`, as injected.",
    ),
    Setting(
        name="KILN_K_SINK_FORMAT",
        read=_one_of("kiln", "cdevents"),
        default="kiln",
        says="The events for `K_SINK`: Kiln's own (`kiln`), or CDEvents (`cdevents`).",
    ),
)

_BY_NAME = {setting.name: setting for setting in SETTINGS}
_OF_A_SERVICE = re.compile(r"KILN_(?:.*_)?(?:SERVICE_HOST|SERVICE_PORT.*|PORT_[0-9]+_.*)")


def read(environ: Mapping[str, str]) -> Settings:
    """Read the settings from an environment. Empty values count as unset. Raises SettingsError with all faults."""
    problems = list(_unknown(environ))
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        text = environ.get(setting.name) or _of_hub(setting.name, environ) or setting.default
        try:
            values[setting.field] = None if text is None else setting.read(text)
        except ValueError as error:
            problems.append(f"{setting.name}: {error}")
    if not environ.get("KILN_IMAGE_PREFIX"):
        problems.append("KILN_IMAGE_PREFIX: must be set, such as registry.example/org/")
    problems.extend(_who_may_not(values, environ))
    hub = None
    try:
        hub = _hub(environ)
    except ValueError as error:
        problems.append(str(error))
    if values.get("engine") == "kubernetes":
        problems.extend(_what_a_cluster_needs(values))
    if problems:
        raise SettingsError(problems)
    auth = values["auth"] or ("local",)
    decided = {
        "event_source": values["event_source"] or values["public_url"] or "/kiln",
        "auth": auth,
        "loopback_only": values["auth"] is None,
        "events_auth": values["events_auth"] or auth,
        "oidc_events_issuer": values["oidc_events_issuer"] or values["oidc_issuer"],
        "oidc_events_audience": values["oidc_events_audience"] or values["oidc_audience"],
        "hub": hub,
    }
    return Settings(**{**values, **decided})


def for_web(found: Settings) -> None:
    """Check the settings of web; the controller authenticates no clients. Raises SettingsError."""
    words = {"KILN_AUTH": found.auth, "KILN_EVENTS_AUTH": found.events_auth}
    if found.hub is None and (asking := [name for name in words if "hub" in words[name]]):
        raise SettingsError([f"{asking[0]}: hub needs {', '.join(OF_HUB)}, as a Hub gives them to its services"])


OF_HUB = ("JUPYTERHUB_API_URL", "JUPYTERHUB_API_TOKEN", "JUPYTERHUB_SERVICE_NAME")


def _hub(environ: Mapping[str, str]) -> Hub | None:
    """Return the Hub of this service. Raises ValueError for unusable variables."""
    url, token, name = (environ.get(variable) for variable in OF_HUB)
    if not (url and token and name):
        return None
    try:
        _url(url)
    except ValueError as error:
        raise ValueError(f"JUPYTERHUB_API_URL: {error}") from None
    if not re.fullmatch(r"[\x21-\x7e]+", token):
        raise ValueError("JUPYTERHUB_API_TOKEN: must be a token of the Hub, without blanks and line ends")
    try:
        scopes = msgspec.json.decode(environ.get("JUPYTERHUB_OAUTH_ACCESS_SCOPES") or "[]", type=tuple[str, ...])
    except msgspec.DecodeError:
        raise ValueError("JUPYTERHUB_OAUTH_ACCESS_SCOPES: must be a list of scopes, as JSON") from None
    base = environ.get("JUPYTERHUB_BASE_URL", "/").strip("/")
    host = environ.get("JUPYTERHUB_HOST", "").rstrip("/")
    pages = f"{host}{f'/{base}' if base else ''}/hub"
    return Hub(
        api_url=url.rstrip("/"),
        api_token=token,
        client_id=environ.get("JUPYTERHUB_CLIENT_ID") or f"service-{name}",
        access_scopes=scopes or (f"access:services!service={name}",),
        authorize_url=f"{pages}/api/oauth2/authorize",
        logout_url=f"{pages}/logout",
        callback_url=environ.get("JUPYTERHUB_OAUTH_CALLBACK_URL") or None,
    )


def _of_hub(name: str, environ: Mapping[str, str]) -> str | None:
    """Return a Hub's value for an unset setting."""
    if name == "KILN_BASE_PATH":
        return environ.get("JUPYTERHUB_SERVICE_PREFIX")
    if name == "PORT":
        with suppress(ValueError):
            port = urlsplit(environ.get("JUPYTERHUB_SERVICE_URL", "")).port
            return None if port is None else str(port)
    return None


def _unknown(environ: Mapping[str, str]) -> Iterable[str]:
    for name, value in sorted(environ.items()):
        if not name.startswith("KILN_") or name in _BY_NAME or name in OF_THE_COMMAND:
            continue
        if _OF_A_SERVICE.fullmatch(name) or value.startswith("tcp://"):
            continue  # Kubernetes injects these for every Service with a name like ours
        bare = name.removeprefix("KILN_")  # of the one for the port
        nearest = [bare] if bare in _BY_NAME else difflib.get_close_matches(name, _BY_NAME, n=1)
        yield f"{name}: unknown setting" + (f"; did you mean {nearest[0]}?" if nearest else "")


def _who_may_not(values: Mapping[str, Any], environ: Mapping[str, str]) -> Iterable[str]:
    """The start-up rule: without `KILN_AUTH`, Kiln must be unreachable from elsewhere."""
    if "auth" in values and values["auth"] is None:
        exposed = list(_ways_in(values, environ))
        if exposed:
            yield f"KILN_AUTH: must be set, because {' and '.join(exposed)}: choose {AUTH_CHOICES}"
    for name in ("KILN_AUTH", "KILN_EVENTS_AUTH"):
        words = values.get(_BY_NAME[name].field) or ()
        if "token" in words and not environ.get("KILN_SECRETS_DIR"):
            yield f"{name}: token needs KILN_SECRETS_DIR, a folder with api-tokens/<name> in it"
    yield from _what_oidc_needs(values)


def _what_oidc_needs(values: Mapping[str, Any]) -> Iterable[str]:
    auth = values.get("auth") or ()
    if "oidc" in auth:
        yield from (
            f"KILN_AUTH: oidc needs {name}"
            for name in ("KILN_OIDC_ISSUER", "KILN_OIDC_AUDIENCE")
            if not values.get(_BY_NAME[name].field, "wrong")
        )
    if values.get("oidc_client_id"):
        needed = {"KILN_AUTH with oidc": "oidc" in auth, "KILN_PUBLIC_URL": values.get("public_url", "wrong")}
        needed |= {"KILN_SECRETS_DIR, with oidc/client-secret in it": values.get("secrets_dir", "wrong")}
        needed |= {"openid among KILN_OIDC_SCOPES": "openid" in values.get("oidc_scopes", ("openid",))}
        yield from (f"KILN_OIDC_CLIENT_ID: needs {what}" for what, there in needed.items() if not there)
    if "oidc" not in auth and "oidc" in (values.get("events_auth") or ()):
        for field in ("issuer", "audience"):
            given = [values.get(f"oidc_{field}", "wrong"), values.get(f"oidc_events_{field}", "wrong")]
            if not any(given):
                yield f"KILN_EVENTS_AUTH: oidc needs KILN_OIDC_{field.upper()} or KILN_OIDC_EVENTS_{field.upper()}"


def _what_a_cluster_needs(values: Mapping[str, Any]) -> Iterable[str]:
    """Check the settings that the chart sets, and that web and controller share."""
    if not re.fullmatch(r"[a-z0-9-]+/[a-z0-9.-]+", values.get("instance") or ""):
        yield "KILN_INSTANCE: must be <namespace>/<release> with KILN_ENGINE kubernetes"
    if stays_with_daemon(values.get("image_prefix") or ""):
        prefix = values["image_prefix"]
        yield f"KILN_IMAGE_PREFIX: {prefix} names no registry, and with KILN_ENGINE kubernetes images must be pushed"
    if values.get("anchor") is None:
        yield "KILN_ANCHOR: must be set with KILN_ENGINE kubernetes, to the name of a ConfigMap and a Lease"


def _ways_in(values: Mapping[str, Any], environ: Mapping[str, str]) -> Iterable[str]:
    host, url = values.get("host"), values.get("public_url")
    if host and not is_loopback(host):
        yield f"KILN_HOST {host} is reachable from other machines"
    if values.get("base_path") not in ("/", None):
        yield "KILN_BASE_PATH implies a proxy"
    if url and not is_loopback(urlsplit(url).hostname or ""):
        yield "KILN_PUBLIC_URL is not a loopback URL"
    if any(name.startswith("JUPYTERHUB_") for name in environ):
        yield "a JupyterHub started it"


def _either(words: Iterable[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last
