"""The YAML file: triggers, sinks, hosts, repositories. Every error names its place, as in `triggers[0].push.branches`.

Repeated keys, unknown keys and keys without a value are errors: each is a slip of the editor that would change the
meaning of a rule silently.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import ssl
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

import msgspec

from builds.errors import RepositoryError, RuleError
from builds.image import image_pattern
from builds.options import Options
from builds.plan import Word
from builds.private import Private, PrivateRule
from builds.repository import KNOWN_HOSTS, HostKind, canonical
from builds.retention import Rule
from builds.statuses import HostRule
from builds.sync.missing import Listed
from builds.triggers import DEFAULT, Trigger, TriggerRule
from builds.triggers import read as read_triggers
from eventing.cdevents import TYPES
from eventing.sinks import Sink, wanted
from kiln.errors import ConfigError
from kiln.quantities import duration
from kiln.yamlfile import Document, document

MAX_SINKS = 50
"""A record keeps every event until all sinks accept it, with the state of each delivery."""

LEAST_POLL = 60.0
"""Minimum seconds between two polls of a repository. A webhook reports changes sooner."""

EVENT_TYPES = tuple(f"dev.kiln.build.{word.value}.v1" for word in Word)
BOOLEAN = "YAML reads `on`, `off`, `yes` and `no` as booleans; write it in quotes"
PORT = r"(?::(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]))?"

T = TypeVar("T")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """The content of the file. `hosts` are by `host` or `host:port`, and so are `accounts`, the names of Kiln's own
    accounts there, and `statuses`, the statuses to report there; `allowed_images` are patterns.
    """

    triggers: tuple[Trigger, ...] = DEFAULT
    sinks: tuple[Sink, ...] = ()
    hosts: Mapping[str, HostKind] = {}
    accounts: Mapping[str, str] = {}
    statuses: Mapping[str, HostRule] = {}
    repositories: tuple[Listed, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    private: tuple[PrivateRule, ...] = ()
    allowed_images: tuple[str, ...] = ()
    private_image_prefix: str | None = None
    repo2docker: Options = Options()
    keep: Rule | None = None


class _Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: HostKind
    account: Annotated[str, msgspec.Meta(pattern=r"\A\S.{0,254}\Z")] | None = None
    statuses: bool = False
    comment: bool = False


class _Keep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    period: str | int = msgspec.field(name="for")
    per_ref: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] = 1


class _RepositoryEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str
    poll: str | int | None = None


def read(path: Path | None, sha256: str | None = None) -> Config:
    """Read the configuration from a file; the default one without. Raises ConfigError with all faults.

    With `sha256` (hexadecimal) a file with other content is refused.
    """
    if path is None:
        return Config()
    content = _content("KILN_CONFIG", path, sha256)
    try:
        return parse(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {problem}" for problem in error.problems) from None


def parse(content: bytes) -> Config:
    """Parse the configuration from a YAML document. Raises ConfigError."""
    found = document(content)
    if found.value is None:
        return Config()
    if not isinstance(found.value, dict):
        raise ConfigError(["The file must be a mapping of sections, such as `sinks:`"])
    reader = _ConfigReader(found)
    config = reader.config()
    if reader.problems:
        raise ConfigError(reader.problems)
    return config


def pod_template(path: Path, sha256: str | None = None) -> object:
    """Read the YAML document in the file of KILN_POD_TEMPLATE; `sha256` as for `read`. Raises ConfigError."""
    content = _content("KILN_POD_TEMPLATE", path, sha256)
    try:
        return document(content).value
    except ConfigError as error:
        raise ConfigError(f"KILN_POD_TEMPLATE: {path}: {problem}" for problem in error.problems) from None


def _content(setting: str, path: Path, sha256: str | None) -> bytes:
    """Raises ConfigError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{setting}: {path} cannot be read ({error.strerror})"]) from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError([f"{setting}: {path} does not match {setting}_SHA256. Its content was replaced"])
    return content


class _ConfigReader:
    """Read the sections, and collect faults instead of stopping at the first."""

    def __init__(self, found: Document) -> None:
        self._document = found
        self._sections = {str(name): value for name, value in found.value.items()}
        self.problems: list[str] = []

    def config(self) -> Config:
        known = [name for name in Config.__struct_fields__ if name not in ("accounts", "statuses")]  # of `hosts`
        for name in sorted(self._sections.keys() - {*known}):
            self.problems.append(f"{name}: unknown section{_meant(name, known)}")
        hosts = dict(self._hosts())
        kinds = {name: host.kind for name, host in hosts.items()}
        for name, host in hosts.items():
            if host.kind != KNOWN_HOSTS.get(name, host.kind):
                self.problems.append(f"hosts.{name}.kind: this is already a {KNOWN_HOSTS[name]} host. Remove the key")
        return Config(
            triggers=self._triggers(),
            sinks=self._sinks(),
            hosts=kinds,
            accounts={name: host.account for name, host in hosts.items() if host.account is not None},
            statuses=dict(_host_rules(hosts)),
            repositories=tuple(self._repositories(kinds)),
            insecure_registries=self._registries(),
            private=tuple(self._private()),
            allowed_images=tuple(self._allowed_images()),
            private_image_prefix=self._private_image_prefix(),
            repo2docker=self._options(),
            keep=self._keep(),
        )

    def _keep(self) -> Rule | None:
        given = self._converted(self._sections["keep"], _Keep, "keep") if "keep" in self._sections else None
        try:
            return given and Rule(per_ref=given.per_ref, period=timedelta(seconds=duration(str(given.period))))
        except ValueError as error:
            self.problems.append(f"keep.for: {error}")
            return None

    def _options(self) -> Options:
        if "repo2docker" not in self._sections:
            return Options()
        options: Options | None = self._converted(self._sections["repo2docker"], Options, "repo2docker")
        if options is None:
            return Options()
        self.problems += (f"repo2docker.{problem}" for problem in options.problems())
        base, prefix = options.base_image, self._sections.get("private_image_prefix")
        if base is not None and isinstance(prefix, str) and base.startswith(prefix):
            self.problems.append(
                "repo2docker.base_image: must not be under private_image_prefix, from which builds cannot pull"
            )
        return options

    def _private(self) -> Iterator[PrivateRule]:
        for number, value in enumerate(self._listed("private", tell=True)):
            rule = self._converted(value, PrivateRule, f"private[{number}]")
            if rule is None:
                continue
            try:
                Private([rule])
            except RuleError as error:
                self.problems.append(f"private[{number}]: {error}")
            if not rule.use_by:
                self.problems.append(
                    f"private[{number}].use_by: is empty, so Kiln would build nothing. Omit it for [webhooks]"
                )
            yield rule

    def _allowed_images(self) -> Iterator[str]:
        for number, pattern in enumerate(self._items("allowed_images", str)):
            try:
                yield image_pattern(pattern)
            except RuleError as error:
                self.problems.append(f"allowed_images[{number}]: {error}")

    def _private_image_prefix(self) -> str | None:
        prefix: str | None = self._converted(
            self._sections.get("private_image_prefix"), str | None, "private_image_prefix"
        )
        if prefix is None and self._listed("private"):
            self.problems.append(
                "private_image_prefix: must be set, because `private` names a repository. Set the prefix of "
                "its images, such as registry.example/private/"
            )
        return prefix

    def _triggers(self) -> tuple[Trigger, ...]:
        rules = list(self._items("triggers", TriggerRule)) if "triggers" in self._sections else None
        triggers, problems = read_triggers(rules)
        self.problems += (f"triggers: {problem}" for problem in problems)
        return triggers

    def _sinks(self) -> tuple[Sink, ...]:
        sinks = []
        for number, value in enumerate(self._listed("sinks", tell=True)):
            sink = self._converted(value, Sink, f"sinks[{number}]")
            if sink is not None:
                self.problems += (f"sinks[{number}].{problem}" for problem in _unsendable(sink))
                sinks.append(sink)
        if len(sinks) > MAX_SINKS:
            self.problems.append(f"sinks: there are {len(sinks)}, and at most {MAX_SINKS}. For more, use a broker")
        for name, count in Counter(sink.name for sink in sinks).items():
            if count > 1:
                self.problems.append(f"sinks: there are {count} sinks called {name}")
        return tuple(sinks)

    def _hosts(self) -> Iterator[tuple[str, _Host]]:
        section = self._sections.get("hosts", {})
        if not isinstance(section, dict):
            self.problems.append("hosts: must be a mapping from host names, such as `git.example.edu: {kind: gitlab}`")
            return
        names = Counter(str(name).lower() for name in section)
        self.problems += (f"hosts.{name}: this host is listed {names[name]} times" for name in names if names[name] > 1)
        for name, value in section.items():
            if not isinstance(name, str) or not re.fullmatch(rf"[A-Za-z0-9.-]+{PORT}", name):
                self.problems.append(f"hosts.{name}: must be a host name, with or without a port")
            elif (host := self._converted(value, _Host, f"hosts.{name}")) is not None:
                yield name.lower(), host

    def _repositories(self, hosts: Mapping[str, HostKind]) -> Iterator[Listed]:
        places: dict[str, int] = {}
        for number, value in enumerate(self._listed("repositories", tell=True)):
            place = f"repositories[{number}]"
            repository = self._converted(value, _RepositoryEntry, place)
            if repository is None:
                continue
            try:
                identity = canonical(repository.url, hosts).url
            except RepositoryError as error:
                self.problems.append(f"{place}.url: {error}")
                continue
            first = places.setdefault(identity, number)
            if first != number:
                self.problems.append(f"{place}.url: this repository is repositories[{first}] already")
            try:
                yield Listed(url=repository.url, poll=_poll(repository.poll))
            except ValueError as error:
                self.problems.append(f"{place}.poll: {error}")

    def _registries(self) -> tuple[str, ...]:
        registries = tuple(self._items("insecure_registries", str))
        for number, registry in enumerate(registries):
            if not re.fullmatch(rf"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]){PORT}", registry):
                self.problems.append(f"insecure_registries[{number}]: must be host:port, without scheme and path")
            if registry != registry.lower():
                self.problems.append(f"insecure_registries[{number}]: images name it in lower case, {registry.lower()}")
        return registries

    def _items(self, section: str, kind: type[T]) -> Iterator[T]:
        for number, value in enumerate(self._listed(section, tell=True)):
            item = self._converted(value, kind, f"{section}[{number}]")
            if item is not None:
                yield item

    def _listed(self, section: str, *, tell: bool = False) -> list[Any]:
        value = self._sections.get(section, [])
        if isinstance(value, list):
            return value
        if tell:
            self.problems.append(f"{section}: must be a list")
        return []

    def _converted(self, value: object, kind: Any, place: str) -> Any:
        if slips := list(_slips(value, place)) if place != "private_image_prefix" else []:
            self.problems += slips
            return None
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$")
            where = _named(value, where.rstrip("`"))
            self.problems.append(f"{place}{where}: {what}{self._advice(what, f'{place}{where}', kind, where)}")
            return None

    def _advice(self, what: str, place: str, kind: Any, where: str) -> str:
        """Return advice on one of msgspec's errors, as the end of its sentence."""
        if unknown := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
            return _meant(unknown[1], _fields(kind, where))
        if what.startswith("Invalid enum value"):
            return f"; there are {', '.join(_choices(_type_at(kind, where)))}"
        if "matching regex" in what:
            return ": letters, digits, '.', '_' and '-', a letter or digit first"
        return self._form(what, place)

    def _form(self, what: str, place: str) -> str:
        if what.startswith("Expected `object`"):
            return ": write a mapping"
        expected = re.match(r"Expected `(.*)`, got `(.*)`", what)
        written = self._document.scalar(place)
        if expected is None or not expected[1].startswith(("str", "array")):
            return ""
        if written is None:
            return ": write a list" if expected[1].startswith("array") else ""
        text, line = written
        if expected[1].startswith("array"):
            return f": write a list, [{text}] (line {line})"
        return f", which is what YAML reads in {text}: write it in quotes, '{text}' (line {line})"


def _host_rules(hosts: Mapping[str, _Host]) -> Iterator[tuple[str, HostRule]]:
    """Return the hosts that receive statuses."""
    for name, host in hosts.items():
        if host.statuses or host.comment:
            yield name, HostRule(statuses=host.statuses, comment=host.comment)


def _meant(given: str, known: Iterable[str]) -> str:
    """Return the end of a sentence about an unknown name."""
    if given in ("True", "False"):
        return f": {BOOLEAN}"
    near = difflib.get_close_matches(given.lower().replace("-", "_"), tuple(known), n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _fields(kind: Any, where: str) -> tuple[str, ...]:
    """Return the keys that a struct has, or the one at a place in it, such as `.push`."""
    fields: tuple[str, ...] = getattr(_type_at(kind, where), "__struct_encode_fields__", ())
    return fields


def _type_at(kind: Any, where: str) -> Any:
    for name in re.findall(r"\.([a-z_]+)", where):
        kind = next((field.type for field in msgspec.structs.fields(kind) if field.encode_name == name), kind)
        kind = next((one for one in get_args(kind) if hasattr(one, "__struct_fields__")), kind)
    return kind


def _choices(kind: Any) -> tuple[str, ...]:
    """Return the choices of an enumeration or a Literal, or of a type that contains one."""
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(str(one.value) for one in kind)
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(choice for part in get_args(kind) for choice in _choices(part))


def _named(value: Any, where: str) -> str:
    """Return a place of msgspec's, with the key of a mapping's non-text value instead of its `[...]`."""
    head, found, tail = where.partition("[...]")
    for name in re.findall(r"\.([a-z_]+)", head):
        value = value.get(name) if isinstance(value, dict) else None
    if not found or not isinstance(value, dict):
        return where
    key = next((key for key, one in value.items() if not isinstance(key, str) or not isinstance(one, str)), "...")
    return f"{head}.{key}{tail}"


def _slips(value: object, place: str, seen: set[int] | None = None) -> Iterator[str]:
    """Yield values that YAML reads as nothing or as another type: `branches:` without a value, and keys that are not
    text.

    Aliases are visited once, even recursive ones.
    """
    seen = set() if seen is None else seen
    if value is None:
        yield f"{place}: is empty; leave the key out, or give it a value"
    elif isinstance(value, dict | list) and id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, list):
            for index, part in enumerate(value):
                if part and isinstance(part, dict) and not any(one is not None for one in part.values()):
                    yield f"{place}[{index}]: YAML reads braces as a mapping; write [{', '.join(map(str, part))}]"
                else:
                    yield from _slips(part, f"{place}[{index}]", seen)
            return
        for name, part in value.items():
            if not isinstance(name, str):
                yield f"{place}: the key {name}: {BOOLEAN if isinstance(name, bool) else 'write it in quotes'}"
            else:
                yield from _slips(part, f"{place}.{name}", seen)


def _unsendable(sink: Sink) -> Iterator[str]:
    """Return why Kiln cannot send as a sink requires."""
    yield from (f"types: {_no_type(sink, glob)}" for glob in sink.types if not _is_type(sink, glob))
    if sink.ca is not None:
        try:
            ssl.create_default_context().load_verify_locations(cadata=sink.ca)
        except (ssl.SSLError, ValueError):
            yield "ca: must be the certificates themselves, in PEM form and without other text, not a file's name"


def _is_type(sink: Sink, glob: str) -> bool:
    return wanted(msgspec.structs.replace(sink, types=(glob,)), *_types(sink))


def _types(sink: Sink) -> tuple[str, ...]:
    """Return the types by which a sink may select events."""
    return (*EVENT_TYPES, *(TYPES.values() if sink.format == "cdevents" else ()))


def _no_type(sink: Sink, glob: str) -> str:
    if _is_type(msgspec.structs.replace(sink, format="cdevents"), glob):
        return f"{glob} is a type of CDEvents, for which the sink needs `format: cdevents`"
    near = [kind for kind in _types(sink) if kind.split(".")[3] in glob.lower()]
    near = near or difflib.get_close_matches(glob, _types(sink), n=1, cutoff=0.5)
    return f"unknown event type {glob}; write {near[0] if near else 'dev.kiln.build.*'}"


def _poll(given: str | int | None) -> float | None:
    """Parse the interval in seconds. Raises ValueError."""
    if given is None:
        return None
    seconds = duration(str(given))
    if seconds < LEAST_POLL:
        raise ValueError("must be at least 1m. Without it, only `kiln sync` polls the repository")
    return seconds
