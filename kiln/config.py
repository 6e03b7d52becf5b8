"""The YAML file: triggers, sinks, hosts, repositories. Every error names its place, as in `triggers[0].push.branches`.

YAML lets a key be written twice and keeps the last, which turns a slip of the editor into a rule that is silently gone;
here it is an error, as is every key nobody knows. What only a later version can do is refused as well: a section that
is accepted and does nothing is a promise.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from builds.errors import RepositoryError, RuleError
from builds.listed import Listed
from builds.private import Private, PrivateRule
from builds.repository import HostKind, canonical
from builds.triggers import DEFAULT, Trigger, TriggerRule, load
from eventing.sinks import Sink
from kiln.errors import ConfigError
from kiln.quantities import duration

LARGEST = 2**18
LATER = "is not in this version of Kiln"

LEAST_POLL = 60.0
"""Seconds between two looks at a repository: what has to be known sooner is a webhook's job."""

T = TypeVar("T")


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What the file says. `hosts` are by `host` or `host:port`; `allowed_images` are patterns."""

    triggers: tuple[Trigger, ...] = DEFAULT
    sinks: tuple[Sink, ...] = ()
    hosts: Mapping[str, HostKind] = {}
    repositories: tuple[Listed, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    private: tuple[PrivateRule, ...] = ()
    allowed_images: tuple[str, ...] = ()
    private_image_prefix: str | None = None


class _Host(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    kind: HostKind
    statuses: bool = False


class _Repository(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    url: str
    poll: str | int | None = None


def read(path: Path | None, sha256: str | None = None) -> Config:
    """The configuration in a file; the default one without. Raises ConfigError with all that is wrong.

    With `sha256` (hexadecimal) a file of any other content is refused.
    """
    if path is None:
        return Config()
    content = _content("KILN_CONFIG", path, sha256)
    try:
        return parse(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {problem}" for problem in error.problems) from None


def parse(content: bytes) -> Config:
    """The configuration in a YAML document. Raises ConfigError."""
    document = _document(content)
    if document is None:
        return Config()
    if not isinstance(document, dict):
        raise ConfigError(["The file must be a mapping of sections, such as `sinks:`"])
    reader = _Reader({str(name): value for name, value in document.items()})
    config = reader.config()
    if reader.problems:
        raise ConfigError(reader.problems)
    return config


def pod_template(path: Path, sha256: str | None = None) -> object:
    """The YAML document in the file of KILN_POD_TEMPLATE, and `sha256` as for `read`. Raises ConfigError."""
    content = _content("KILN_POD_TEMPLATE", path, sha256)
    try:
        return _document(content)
    except ConfigError as error:
        raise ConfigError(f"KILN_POD_TEMPLATE: {path}: {problem}" for problem in error.problems) from None


def _content(setting: str, path: Path, sha256: str | None) -> bytes:
    """Raises ConfigError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError([f"{setting}: {path} cannot be read ({error.strerror})"]) from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise ConfigError([f"{setting}: {path} is not the file of {setting}_SHA256: somebody has replaced its content"])
    return content


class _Reader:
    """Goes through the sections, and notes what is wrong instead of stopping at it."""

    def __init__(self, sections: dict[str, Any]) -> None:
        self._sections = sections
        self.problems: list[str] = []

    def config(self) -> Config:
        unknown = self._sections.keys() - {*Config.__struct_fields__}
        self.problems += [f"{name}: there is no such section" for name in sorted(unknown)]
        hosts = dict(self._hosts())
        kinds = {name: host.kind for name, host in hosts.items()}
        for name, host in hosts.items():
            if host.statuses:
                self.problems.append(f"hosts.{name}.statuses: setting commit statuses {LATER}")
        return Config(
            triggers=self._triggers(),
            sinks=self._sinks(),
            hosts=kinds,
            repositories=tuple(self._repositories(kinds)),
            insecure_registries=self._registries(),
            private=tuple(self._private()),
            allowed_images=tuple(self._items("allowed_images", str)),
            private_image_prefix=self._private_image_prefix(),
        )

    def _private(self) -> Iterator[PrivateRule]:
        for number, value in enumerate(self._listed("private", tell=True)):
            rule = self._converted(value, PrivateRule, f"private[{number}]")
            if rule is None:
                continue
            try:
                Private([rule])
            except RuleError as error:
                self.problems.append(f"private[{number}]: {error}")
            yield rule

    def _private_image_prefix(self) -> str | None:
        prefix: str | None = self._converted(
            self._sections.get("private_image_prefix"), str | None, "private_image_prefix"
        )
        if prefix is None and self._listed("private"):
            self.problems.append(
                "private_image_prefix: must be set, because `private` names a repository: the prefix under which its "
                "images lie apart from all others, such as registry.example/private/"
            )
        return prefix

    def _triggers(self) -> tuple[Trigger, ...]:
        if "triggers" not in self._sections:
            return DEFAULT
        rules = list(self._items("triggers", TriggerRule))
        try:
            return load(rules)
        except RuleError as error:
            self.problems.append(f"triggers: {error}")
            return ()

    def _sinks(self) -> tuple[Sink, ...]:
        for number, sink in enumerate(self._listed("sinks")):
            if isinstance(sink, dict) and sink.get("format") == "cdevents":
                self.problems.append(f"sinks[{number}].format: cdevents {LATER}")
                sink["format"] = "kiln"
        sinks = tuple(self._items("sinks", Sink))
        for name, count in Counter(sink.name for sink in sinks).items():
            if count > 1:
                self.problems.append(f"sinks: there are {count} sinks called {name}")
        return sinks

    def _hosts(self) -> Iterator[tuple[str, _Host]]:
        section = self._sections.get("hosts", {})
        if not isinstance(section, dict):
            self.problems.append("hosts: must be a mapping from host names, such as `git.example.edu: {kind: gitlab}`")
            return
        for name, value in section.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9.-]+(?::[0-9]{1,5})?", name):
                self.problems.append(f"hosts.{name}: must be a host name, with or without a port")
            elif (host := self._converted(value, _Host, f"hosts.{name}")) is not None:
                yield name.lower(), host

    def _repositories(self, hosts: Mapping[str, HostKind]) -> Iterator[Listed]:
        places: dict[str, int] = {}
        for number, value in enumerate(self._listed("repositories", tell=True)):
            place = f"repositories[{number}]"
            repository = self._converted(value, _Repository, place)
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
            if not re.fullmatch(r"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", registry):
                self.problems.append(f"insecure_registries[{number}]: must be host:port, without a scheme and a path")
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
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `$")
            self.problems.append(f"{place}{where.rstrip('`')}: {what}")
            return None


def _poll(given: str | int | None) -> float | None:
    """Seconds. Raises ValueError."""
    if given is None:
        return None
    seconds = duration(str(given))
    if seconds < LEAST_POLL:
        raise ValueError("must be at least 1m; without it the repository is looked at by `kiln sync` only")
    return seconds


def _document(content: bytes) -> Any:
    """The YAML document as plain values. Raises ConfigError."""
    import yaml  # noqa: PLC0415  # only where there is a file

    if len(content) > LARGEST:
        raise ConfigError([f"The file is larger than {LARGEST // 2**10} KiB"])

    class Loader(yaml.SafeLoader):  # not the one in C, which dies of deep nesting
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key, _ in node.value:
                if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key `{key.value}` is there twice", key.start_mark
                    )
                if isinstance(key.value, str):
                    seen.add(key.value)
            return super().construct_mapping(node, deep=deep)

    try:
        return yaml.load(content, Loader)  # noqa: S506  # it is a safe one
    except yaml.MarkedYAMLError as error:
        line = f"Line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError([f"{line}{error.problem or 'this is not YAML'}"]) from None
    except RecursionError:
        raise ConfigError(["The file is nested too deeply"]) from None
    except Exception as error:  # noqa: BLE001  # PyYAML lets everything through that a value does not fit its tag with
        raise ConfigError([f"The file is not YAML: {type(error).__name__}"]) from None
