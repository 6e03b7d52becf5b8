"""Triggers: which events ask for which builds.

A trigger is filters, then a template. What it makes is a `Wanted`: what somebody asks for, still in their words;
whether it may be built, and under which name, is `builds.intake`'s to say. Nothing in a template is evaluated: it names
values, and a value is text.

Some names are known only when the ref has been looked up (`{slug}`, and `{commit}` for events that are no push), so a
template is filled in two steps, and what has been filled in is never read as a template again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import msgspec

from builds.arguments import check_name
from builds.build import Push
from builds.errors import CannotBuild, Malformed, RepositoryError, RuleError
from builds.repository import canonical, glob_match, short_name
from eventing.errors import FilterError
from eventing.event import Event
from eventing.filters import Filter, matches, parse
from eventing.hosts import PushFacts, push_of
from eventing.http import wire_text

REQUESTED = "dev.kiln.build.requested.v1"
OURS = "dev.kiln."

Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")]


# As users write them


class PushRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which pushes: globs over short branch and tag names, and over the paths of changed files.

    Where only one of `branches` and `tags` is given, the other kind of ref does not match. `paths` is for branches, and
    holds too where the host did not say all that has changed. Globs are taken in order, and one after `!` takes back
    what those before it have chosen, as in GitHub Actions.
    """

    branches: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None


class BuildTemplate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to build; texts may hold `{…}`. For a push, repository, ref and commit are its own unless they are given."""

    repository: str | None = None
    ref: str | None = None
    commit: str | None = None
    subdir: str | None = None
    build_args: dict[str, str] = {}
    image: str | None = None
    tags: tuple[str, ...] = ()
    force: bool = False


class TriggerRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `triggers:`. All filters must hold; with `push` only pushes match."""

    name: Name
    filters: tuple[dict[str, object], ...] = ()
    push: PushRule | None = None
    build: BuildTemplate = BuildTemplate()


class BuildRequestBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the JSON API is sent, and the data of `dev.kiln.build.requested.v1`."""

    repository: str
    ref: str | None = None
    commit: str | None = None
    subdir: str | None = None
    build_args: dict[str, str] | None = None
    image: str | None = None
    tags: tuple[str, ...] | None = None
    force: bool | None = None


# Templates


class Field(msgspec.Struct, frozen=True):
    """A `{name}` in a template."""

    name: str


EARLY = re.compile(r"data(?:\.[A-Za-z0-9_-]+)+|(?!data$)[a-z][a-z0-9]*")
"""Of the event: context attributes and extensions by name, and values inside its data."""
LATE = frozenset({"repository", "ref", "ref_name", "commit", "slug"})
"""Of the request, once it is known."""

Lookup = Callable[[str], str | None]


class Template(msgspec.Struct, frozen=True):
    """A text with gaps: literal pieces and fields."""

    pieces: tuple[str | Field, ...]

    def fill(self, lookup: Lookup) -> Template:
        """With those fields filled in that `lookup` knows."""
        return Template(tuple(self._filled(piece, lookup) for piece in self.pieces))

    def text(self) -> str:
        """Raises CannotBuild, naming the value, where one is missing."""
        return "".join(map(self._known, self.pieces))

    @staticmethod
    def _known(piece: str | Field) -> str:
        if isinstance(piece, Field):
            raise CannotBuild(f"The trigger's template needs {{{piece.name}}}, and this event does not have it.")
        return piece

    @staticmethod
    def _filled(piece: str | Field, lookup: Lookup) -> str | Field:
        value = lookup(piece.name) if isinstance(piece, Field) else None
        return piece if value is None else value


def template(text: str) -> Template:
    """Reads `{name}`, with `{{` and `}}` for braces. Raises RuleError, naming what it cannot read."""
    pieces: list[str | Field] = []
    for literal, escaped, name, brace in re.findall(r"([^{}]+)|(\{\{|\}\})|\{([^{}]*)\}|([{}])", text):
        if brace:
            raise RuleError(f"A single '{brace}' in '{text}': write it twice, or a name between two of them.")
        if literal or escaped:
            pieces.append(literal or escaped[0])
        elif name in LATE or EARLY.fullmatch(name):
            pieces.append(Field(name))
        else:
            raise RuleError(
                f"'{{{name}}}' in '{text}' names no value: there are {{data.…}}, the event's attributes, "
                f"and {', '.join(f'{{{known}}}' for known in sorted(LATE))}."
            )
    return Template(tuple(pieces))


def plain(text: str) -> Template:
    """A text without gaps, whatever it holds."""
    return Template((text,))


# What is wanted


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What an event asks for, in its sender's words: nothing here has been checked.

    `commit` is there for a push, and then needs no look-up. The templates still lack what only the request can tell.
    """

    repository: str
    ref: str | None = None
    commit: str | None = None
    subdir: Template = Template(())
    build_args: Mapping[str, Template] = {}
    image: Template | None = None
    tags: tuple[Template, ...] = ()
    force: bool = False
    trigger: str | None = None
    push: Push | None = None


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that has been read. `default_branch`: only pushes to the branch that the host calls so."""

    name: str
    filters: tuple[Filter, ...] = ()
    push: PushRule | None = None
    default_branch: bool = False
    repository: Template | None = None
    ref: Template | None = None
    commit: Template | None = None
    subdir: Template = Template(())
    build_args: Mapping[str, Template] = {}
    image: Template | None = None
    tags: tuple[Template, ...] = ()
    force: bool = False


DEFAULT = (Trigger(name="default", default_branch=True),)
"""Without triggers in the configuration: every push to a repository's default branch."""


def load(rules: Sequence[TriggerRule] | None) -> tuple[Trigger, ...]:
    """The triggers of a configuration; `None` where it has no such section. Raises RuleError, naming the place."""
    if rules is None:
        return DEFAULT
    names = [rule.name for rule in rules]
    for name in names:
        if names.count(name) > 1:
            raise RuleError(f"There are two triggers called '{name}'.")
    return tuple(map(_load, rules))


def _load(rule: TriggerRule) -> Trigger:
    build = rule.build

    def read(place: str, text: str) -> Template:
        try:
            return template(text)
        except RuleError as error:
            raise RuleError(f"Trigger '{rule.name}', build.{place}: {error}") from None

    def argument(name: str, text: str) -> Template:
        try:
            check_name(name)
        except Malformed as error:
            raise RuleError(f"Trigger '{rule.name}', build.build_args: {error}") from None
        return read(f"build_args.{name}", text)

    def given(name: str) -> Template | None:
        text: str | None = getattr(build, name)
        return None if text is None else read(name, text)

    try:
        filters = tuple(parse(value, f"filters[{index}]") for index, value in enumerate(rule.filters))
    except FilterError as error:
        raise RuleError(f"Trigger '{rule.name}', {error}") from None
    for place in PushRule.__struct_fields__:
        _check_globs(f"Trigger '{rule.name}', push.{place}", getattr(rule.push, place, None) or ())
    return Trigger(
        name=rule.name,
        filters=filters,
        push=rule.push,
        repository=given("repository"),
        ref=given("ref"),
        commit=given("commit"),
        subdir=given("subdir") or Template(()),
        build_args={name: argument(name, text) for name, text in build.build_args.items()},
        image=given("image"),
        tags=tuple(read(f"tags[{index}]", text) for index, text in enumerate(build.tags)),
        force=build.force,
    )


def _check_globs(place: str, globs: Sequence[str]) -> None:
    """Raises RuleError for globs that can match nothing, or mean something else to who knows GitHub Actions."""
    for index, glob in enumerate(globs):
        _check_glob(f"{place}[{index}]", glob.removeprefix("!"))
    if globs and globs[0].startswith("!"):
        raise RuleError(f"{place}: nothing is chosen before what is taken away; begin with a pattern such as '**'.")


def _check_glob(place: str, glob: str) -> None:
    if special := re.search(r"[?\[\]{}\\]", glob):
        raise RuleError(
            f"{place}: '{special[0]}' has no meaning in '{glob}', only * and ** have; write several patterns."
        )
    form = re.sub(r"^(?:refs/(?:heads|tags)/|(?:\./|/)+|!+)", "", glob.strip())
    form = re.sub(r"/+$", "/**", form)
    if form != glob or not form:
        raise RuleError(f"{place}: '{glob}' can match nothing; write '{form or '**'}'.")


# From events


def wanted(triggers: Sequence[Trigger], event: Event) -> list[Wanted]:
    """What the event asks for: one for each trigger that it matches, or what a request for a build holds.

    Everything that comes here counts as verified: webhooks by their signature, CloudEvents by `KILN_EVENTS_AUTH`.
    Raises CannotBuild for a value that a template names and the event lacks, Malformed for a request whose data is
    none, eventing.errors.DecodeError for a push whose data is none.
    """
    if event.type == REQUESTED:
        return [requested(event.data)]
    if event.type.startswith(OURS):
        return []
    push = push_of(event)
    if push is not None and push.commit is None and not push.look_up:
        return []
    matching = (trigger for trigger in triggers if _matches(trigger, event, push))
    return [_wanted(trigger, event, push) for trigger in matching]


def requested(data: object) -> Wanted:
    """The data of a `dev.kiln.build.requested.v1`. Raises Malformed."""
    try:
        return asked(msgspec.convert(data, BuildRequestBody))
    except msgspec.ValidationError as error:
        raise Malformed(f"This is no request for a build: {str(error)[:200]}.") from None


def asked(body: BuildRequestBody) -> Wanted:
    """What a request for a build wants; braces in it mean nothing."""
    return Wanted(
        repository=body.repository,
        ref=body.ref,
        commit=body.commit,
        subdir=plain(body.subdir or ""),
        build_args={name: plain(text) for name, text in (body.build_args or {}).items()},
        image=None if body.image is None else plain(body.image),
        tags=tuple(map(plain, body.tags or ())),
        force=bool(body.force),
    )


def _matches(trigger: Trigger, event: Event, push: PushFacts | None) -> bool:
    if not all(matches(wanted, event) for wanted in trigger.filters):
        return False
    if trigger.default_branch:
        return push is not None and push.default_branch is not None and push.ref == f"refs/heads/{push.default_branch}"
    return trigger.push is None or (push is not None and _pushed(trigger.push, push))


def _pushed(rule: PushRule, push: PushFacts) -> bool:
    """Whether a rule wants a push."""
    branch = push.ref.startswith("refs/heads/")
    if rule.branches is not None or rule.tags is not None:
        globs = rule.branches if branch else rule.tags
        if not _chosen(globs or (), short_name(push.ref)):
            return False
    if rule.paths is None or push.paths is None or not branch:
        return True
    return any(_chosen(rule.paths, path) for path in push.paths)


def _chosen(globs: Sequence[str], text: str) -> bool:
    """By the last glob that matches."""
    last = [glob for glob in globs if glob_match(glob.removeprefix("!"), text)][-1:]
    return bool(last) and not last[0].startswith("!")


def _wanted(trigger: Trigger, event: Event, push: PushFacts | None) -> Wanted:
    """Where a template names another repository or ref than the push, nothing more is taken from the push."""
    given = _push_values(push) if push else {}

    def early(name: str) -> str | None:
        return given.get(name) or _value(event, name)

    def known(name: str) -> str | None:
        return None if name in LATE else _value(event, name)

    def own(part: Template | None) -> str | None:
        return None if part is None else part.fill(early).text()

    repository = own(trigger.repository) or given.get("repository")
    if repository is None:
        raise CannotBuild(f"The trigger '{trigger.name}' names no repository, and this event is no push.")
    if push and not _same(repository, push.repository):
        push = None
    ref = own(trigger.ref) or (push.ref if push else None)
    if push and ref != push.ref:
        push = None
    return Wanted(
        repository=repository,
        ref=ref,
        commit=own(trigger.commit) or (push.commit if push else None),
        subdir=trigger.subdir.fill(known),
        build_args={name: part.fill(known) for name, part in trigger.build_args.items()},
        image=trigger.image and trigger.image.fill(known),
        tags=tuple(tag.fill(known) for tag in trigger.tags),
        force=trigger.force,
        trigger=trigger.name,
        push=Push(before=push.before, at=push.pushed_at) if push else None,
    )


def _same(one: str, other: str) -> bool:
    try:
        return canonical(one).url == canonical(other).url
    except RepositoryError:
        return False


def _push_values(push: PushFacts) -> dict[str, str | None]:
    return {
        "repository": push.repository,
        "ref": push.ref,
        "ref_name": short_name(push.ref),
        "commit": push.commit,
    }


def _value(event: Event, name: str) -> str | None:
    """A context attribute in its wire form, or a text, number or boolean inside the data; `None` where it is absent."""
    if not name.startswith("data."):
        attribute = event.attribute(name)
        return None if attribute is None else wire_text(attribute)
    value = event.data
    for part in name.split(".")[1:]:
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, bool | int | float) else None
