"""Triggers: which events ask for which builds.

A trigger is filters, then a template. What it makes is a `Wanted`: what somebody asks for, still in their words;
whether it may be built, and under which name, is `builds.intake`'s to say. Nothing in a template is evaluated: it names
values, and a value is text.

Some names are known only when the ref has been looked up (`{slug}`, and `{commit}` for events that are no push), so a
template is filled in two steps, and what has been filled in is never read as a template again.

A rule that no event can meet, or whose builds could not be asked for, is an error when it is read, whatever the event:
a trigger that does nothing is found at the start, and not by the person whose image never came.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Annotated, TypeVar

import msgspec

from builds.arguments import check_name
from builds.build import Push
from builds.errors import CannotBuild, Malformed, RepositoryError, RuleError
from builds.repository import canonical, checked_ref, glob_match, is_commit, short_name
from eventing.errors import FilterError
from eventing.event import Event
from eventing.filters import (
    ATTRIBUTES,
    DATA_VALUE,
    Filter,
    any_of,
    matches,
    names,
    negated,
    parse,
    possible,
    value_of,
    values,
)
from eventing.hosts import DIALECTS, PushFacts, push_of
from eventing.http import MAX_NAME

REQUESTED = "dev.kiln.build.requested.v1"
OURS = "dev.kiln."

PUSHES = frozenset(kind for dialect in DIALECTS.values() for kind in dialect.pushes)
"""The types of events that are pushes."""
PLAIN_SOURCES = (*sorted({f"{kind.rpartition('.')[0]}." for kind in PUSHES}), "org.jupyterhub.")
"""How types of events begin that have no extensions of their own."""
HUB_TYPES = ("org.jupyterhub.server.start", "org.jupyterhub.server.stop")
LOWER_SOURCES = tuple(each for each in PLAIN_SOURCES if not any(re.match(f"{each}.*[A-Z]", kind) for kind in PUSHES))
"""Those whose types have no capitals."""
ON_THE_WAY = re.compile(
    r"knative\w*|kafka\w*|key|trace(?:parent|state)|partitionkey|sequence(?:type)?|sampledrate|dataref|expirytime"
    r"|recordedtime|severity(?:number|text)|auth(?:type|id|claims)|(?:correlation|causation)id"
)
"""Extensions that brokers and senders add to any event
(https://github.com/cloudevents/spec/blob/main/cloudevents/documented-extensions.md)."""

SKIP = re.compile(r"\[(?:skip ci|ci skip|no ci)\]", re.IGNORECASE)

T = TypeVar("T")

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
    """One entry of `triggers:`. All filters and conditions (`when`) must hold; with `push` only pushes match."""

    name: Name
    filters: tuple[dict[str, object], ...] = ()
    when: tuple[dict[str, object], ...] = ()
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


EARLY = re.compile(rf"{DATA_VALUE}|extensions\.[a-z0-9]{{1,{MAX_NAME}}}|{'|'.join(sorted(ATTRIBUTES))}")
"""Of the event: values inside its data, its extensions, and its context attributes."""
LATE = frozenset({"repository", "ref", "ref_name", "commit", "slug"})
"""Of the request, once it is known; but for `slug`, a push says them itself."""
MEANT: Mapping[str, str] = {
    **dict.fromkeys(("branch", "branch_name", "tag", "tag_name", "refname", "github.ref_name"), "ref_name"),
    **dict.fromkeys(("sha", "revision", "commit_sha", "commit_id", "head_commit", "github.sha"), "commit"),
    **dict.fromkeys(("repo", "url", "repo_url", "clone_url", "repository_url", "github.repository"), "repository"),
    **dict.fromkeys(("name", "repo_name", "repository_name", "owner", "image"), "slug"),
    **dict.fromkeys(("reference", "git_ref", "github.ref"), "ref"),
}
"""What others call the values that there are."""
NEVER_BRACES = ("repository", "ref", "commit", "image", "tags")
"""Where a brace itself would be of no use."""

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

    @property
    def written(self) -> str:
        """As it is read by `template`."""
        return "".join(
            f"{{{piece.name}}}" if isinstance(piece, Field) else re.sub(r"([{}])", r"\1\1", piece)
            for piece in self.pieces
        )

    @property
    def fields(self) -> frozenset[str]:
        """The names of its gaps."""
        return frozenset(piece.name for piece in self.pieces if isinstance(piece, Field))

    @staticmethod
    def _known(piece: str | Field) -> str:
        if isinstance(piece, Field):
            raise CannotBuild(f"The trigger's template needs {{{piece.name}}}, and this event does not have it.")
        return piece

    @staticmethod
    def _filled(piece: str | Field, lookup: Lookup) -> str | Field:
        value = lookup(piece.name) if isinstance(piece, Field) else None
        return piece if value is None else value


def template(text: str, *, braces: bool = True) -> Template:
    """Reads `{name}`, with `{{` and `}}` for braces where those are of any use.

    Raises RuleError, naming what it cannot read.
    """
    pieces: list[str | Field] = []
    if other := re.search(r"\$\{\{\s*([\w.-]*)\s*\}\}|\$\{([\w.-]*)\}", text):
        raise RuleError(f"'{other[0]}' in '{text}' is another tool's form{_nearest(other[1] or other[2] or '')}")
    if not braces and (twice := re.search(r"\{\{\s*([\w.-]+)\s*\}\}", text)):
        raise RuleError(f"'{twice[0]}' in '{text}' is a text in braces, and no value{_nearest(twice[1].strip('.'))}")
    for literal, escaped, name, brace in re.findall(r"([^{}]+)|(\{\{|\}\})|\{([^{}]*)\}|([{}])", text):
        if brace:
            raise RuleError(f"A single '{brace}' in '{text}': write it twice, or a name between two of them.")
        if literal or escaped:
            pieces.append(literal or escaped[0])
        elif name in LATE or EARLY.fullmatch(name):
            pieces.append(Field(name))
        else:
            raise RuleError(f"'{{{name}}}' in '{text}' names no value{_nearest(name)}")
    return Template(tuple(pieces))


def _nearest(name: str) -> str:
    """The end of a sentence about a name that is none."""
    stripped = re.sub(
        r"^(?:\$\.|event\.|github\.event\.|(?=body\.|payload\.))(?:(?:body|payload)\.)?", "data.", name.strip()
    )
    stripped = re.sub(r"^data\.(?:body|payload|data)\.", "data.", stripped)
    plain = re.sub(r"[-\s]", "_", name.strip().lower())
    known = sorted(LATE | ATTRIBUTES)
    near = stripped if stripped in LATE or EARLY.fullmatch(stripped) else MEANT.get(plain)
    near = near or next(iter(get_close_matches(plain, known, n=1, cutoff=0.75)), None)
    names = ", ".join(f"{{{name}}}" for name in sorted(LATE))
    there = f"here are {{data.…}}, {{extensions.…}}, the event's attributes, and {names}."
    return f": did you mean {{{near}}}? T{there}" if near else f": t{there}"


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
    when: tuple[Filter, ...] = ()
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


def read(rules: Sequence[TriggerRule] | None) -> tuple[tuple[Trigger, ...], list[str]]:
    """The triggers of a configuration (`None` where it has no such section), and all that is wrong with their rules, a
    sentence each that names its place."""
    if rules is None:
        return DEFAULT, []
    names = [rule.name for rule in rules]
    problems = [f"There are two triggers called '{name}'." for name in dict.fromkeys(names) if names.count(name) > 1]
    readers = [_Reader(rule) for rule in rules]
    triggers = tuple(reader.trigger() for reader in readers)
    return triggers, [*problems, *(problem for reader in readers for problem in reader.problems)]


class _Reader:
    """Reads a rule, and notes what is wrong instead of stopping at it."""

    def __init__(self, rule: TriggerRule) -> None:
        self._rule = rule
        self.problems: list[str] = []

    def trigger(self) -> Trigger:
        build = self._rule.build
        trigger = Trigger(
            name=self._rule.name,
            filters=tuple(self._filters("filters", self._rule.filters)),
            when=tuple(self._filters("when", self._rule.when, data=True)),
            push=self._rule.push,
            repository=self._template("repository", build.repository),
            ref=self._template("ref", build.ref),
            commit=self._template("commit", build.commit),
            subdir=self._template("subdir", build.subdir) or Template(()),
            build_args=dict(self._arguments()),
            image=self._template("image", build.image),
            tags=tuple(self._templates("tags", build.tags)),
            force=build.force,
        )
        for name in PushRule.__struct_fields__ if self._rule.push else ():
            self._check_globs(name, getattr(self._rule.push, name))
        if not self.problems:
            self.problems += (f"Trigger '{trigger.name}', {problem}" for problem in _unmet(trigger))
        return trigger

    def _note(self, place: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (RuleError, Malformed) as error:
            self.problems.append(f"Trigger '{self._rule.name}', {place}: {error}")
        except FilterError as error:  # which begins with its place
            self.problems.append(f"Trigger '{self._rule.name}', {error}")
        return None

    def _filters(self, section: str, values: Sequence[object], *, data: bool = False) -> Iterator[Filter]:
        for index, value in enumerate(values):
            place = f"{section}[{index}]"
            found = self._note(place, partial(parse, value, place, data=data))
            if found is not None:
                yield found

    def _template(self, place: str, text: str | None) -> Template | None:
        if text is None:
            return None
        braces = place.partition("[")[0] not in NEVER_BRACES
        return self._note(f"build.{place}", partial(template, text, braces=braces))

    def _templates(self, place: str, texts: Sequence[str]) -> Iterator[Template]:
        for index, text in enumerate(texts):
            if (found := self._template(f"{place}[{index}]", text)) is not None:
                yield found

    def _arguments(self) -> Iterator[tuple[str, Template]]:
        for name, text in self._rule.build.build_args.items():
            self._note("build.build_args", partial(check_name, name))
            if (found := self._template(f"build_args.{name}", text)) is not None:
                yield name, found

    def _check_globs(self, place: str, globs: Sequence[str] | None) -> None:
        known = len(self.problems)
        for index, glob in enumerate(globs or ()):
            self._note(f"push.{place}[{index}]", partial(_check_glob, glob.removeprefix("!"), paths=place == "paths"))
        if globs is not None and len(self.problems) == known:
            self._note(f"push.{place}", partial(_check_order, globs))


# Rules that no event can meet


def _unmet(trigger: Trigger) -> Iterator[str]:
    """Why a rule can have no builds, with the place."""
    wanted = trigger.filters
    pushes = any_of("exact", "type", [*PUSHES])
    may_be_push = possible([*wanted, *trigger.when, pushes])
    if not possible([*wanted, *trigger.when]):
        yield "filters: they contradict each other, so no event matches. One of several is a list under `any:`."
        return
    if trigger.push and trigger.push.branches is None and trigger.push.tags and trigger.push.paths:
        yield "push.paths: is for branches, and only tags are chosen; leave it out, or name branches too."
    slips: list[str | None] = [*_starred(wanted)]
    slips += [_misspelt(kind) for kind in sorted(values(wanted, "type"))]
    slips += [
        *map(_misspelt_beginning, sorted(values(wanted, "type", "prefix"))),
        *map(_misplaced, sorted(values(wanted, "source"))),
    ]
    if trigger.push is not None or trigger.repository is None:
        slips += [_no_subject(trigger, subject) for subject in sorted(values(wanted, "subject"))]
    if any(slips):
        yield from (f"filters: {problem}" for problem in slips if problem)
        return
    if not possible([*wanted, negated(any_of("prefix", "type", [OURS]))]):
        yield "filters: Kiln's own events match no trigger; dev.kiln.build.requested.v1 needs none."
    elif trigger.push is not None and not may_be_push:
        yield f"push: is for pushes, and the filters want none of them ({', '.join(sorted(PUSHES))})."
    elif trigger.repository is None and not may_be_push:
        yield (
            "build.repository: must be given, because the filters want no pushes: where the event says it, such as "
            "'{data.course.repository}', or an address."
        )
    yield from _without_value(trigger, may_be_push=may_be_push)


def _without_value(trigger: Trigger, *, may_be_push: bool) -> Iterator[str]:
    """What is compared or filled in, and that no event has which could match."""
    only_pushes = trigger.push is not None or trigger.repository is None
    wanted = [*trigger.filters, *([any_of("exact", "type", [*PUSHES])] if only_pushes else [])]
    if not possible([*wanted, negated(any_of("prefix", "type", PLAIN_SOURCES))]):
        for name in sorted(names([*trigger.filters, *trigger.when]) - ATTRIBUTES):
            if "." not in name and not ON_THE_WAY.fullmatch(name):
                yield f"filters: {_absent(name)}"
        for place, part in _parts(trigger):
            for name in sorted(part.fields):
                extension = name.removeprefix("extensions.")
                if extension != name and not ON_THE_WAY.fullmatch(extension):
                    yield f"build.{place}: {_absent(extension)}"
    for place in ("repository", "ref", "commit"):
        found: Template | None = getattr(trigger, place)
        unknown = LATE if not may_be_push else {"slug"}
        for name in sorted(found.fields & unknown if found else ()):
            yield f"build.{place}: {{{name}}} is not known before the repository is; write {{data.…}} or a text."


def _absent(name: str) -> str:
    hint = {"ref": "subject", "branch": "push.branches", "tag": "push.tags", "repository": "source"}.get(name)
    form = f"; {hint} says that" if hint else "; a value inside its data is for `when:`, such as data.action"
    return f"none of the events that can match has the attribute {name}{form}."


def _parts(trigger: Trigger) -> Iterator[tuple[str, Template]]:
    for place in ("repository", "ref", "commit", "subdir", "image"):
        found: Template | None = getattr(trigger, place)
        if found is not None:
            yield place, found
    yield from ((f"build_args.{name}", part) for name, part in trigger.build_args.items())
    yield from ((f"tags[{index}]", part) for index, part in enumerate(trigger.tags))


def _misspelt(kind: str) -> str | None:
    """What is wrong with the type that a filter names, if it can only be a slip."""
    known = {each.lower(): each for each in (*PUSHES, REQUESTED, *HUB_TYPES)}
    lower = kind.lower()
    if kind in known.values():
        return None
    near = [known[lower]] if lower in known else get_close_matches(kind, known.values(), n=1, cutoff=0.93)
    if not near and kind != lower and lower.startswith(LOWER_SOURCES):
        near = [lower]
    if kind in ("push", "tag_push"):
        near = [f"com.github.push, or com.gitlab.{kind}"]
    return f"no event has the type {kind}; did you mean {near[0]}?" if near else None


def _misplaced(source: str) -> str | None:
    """What is wrong with a repository's address as the source of events, as GitHub spells it."""
    found = re.fullmatch(r"(?:https?://)?(?:www\.|git@)?github\.com[/:]([^/]+/[^/]+?)(?:\.git)?/?", source)
    form = f"https://github.com/{found[1]}" if found else source
    return None if form == source else f"no event has the source {source}; write {form}."


def _no_subject(trigger: Trigger, subject: str) -> str | None:
    """What is wrong with the subject of a push that a filter names: it is the full ref; of GitLab's branches the
    commit, by Knative two commits."""
    if not subject.startswith("refs/") and "..." not in subject and not is_commit(subject):
        return f"no push has the subject {subject}: it is the full ref, such as refs/heads/main; or use push.branches."
    only = not possible([*trigger.filters, negated(any_of("exact", "subject", [subject]))])
    if only and subject.startswith("refs/") and trigger.push and not _chooses(trigger.push, subject):
        return f"they want the subject {subject}, which push does not choose."
    return None


def _starred(filters: Sequence[Filter]) -> Iterator[str]:
    """What is wrong with texts that are meant as globs, which filters do not know."""
    for name, dialect in itertools.product(("type", "source", "subject"), ("exact", "prefix", "suffix")):
        for text in sorted(values(filters, name, dialect)):
            if text.startswith("*") or text.endswith("*"):
                form = "suffix" if text.startswith("*") else "prefix"
                yield f"they compare text, without * ({text}); write {form}: {{{name}: {text.strip('*')}}}."


def _misspelt_beginning(text: str) -> str | None:
    known = [*PLAIN_SOURCES, OURS]
    near = get_close_matches(text, known, n=1, cutoff=0.9)
    if near and not any(text.startswith(each) or each.startswith(text) for each in known):
        return f"no event has a type that begins with {text}; did you mean {near[0]}?"
    return None


def _check_order(globs: Sequence[str]) -> None:
    """Raises RuleError where globs in this order can match nothing."""
    if not globs:
        raise RuleError("the list is empty, so nothing matches; leave it out, or write ['**'].")
    if globs[0].startswith("!"):
        raise RuleError("nothing is chosen before what is taken away; begin with a pattern such as '**'.")
    if not any(_remains(glob, globs[index:]) for index, glob in enumerate(globs) if not glob.startswith("!")):
        raise RuleError("all that is chosen is taken away again, so nothing matches; the last that matches decides.")


def _remains(glob: str, later: Sequence[str]) -> bool:
    """Whether something that a glob chooses is not taken away by a later one."""
    samples = {glob.replace("**", deep) for deep in ("*", "*/*")}
    return not any(
        other.startswith("!") and all(glob_match(other[1:], sample) for sample in samples) for other in later
    )


def _check_glob(glob: str, *, paths: bool) -> None:
    """Raises RuleError for one that can match nothing, or means something else to who knows GitHub Actions."""
    if special := re.search(r"[?\[\]{}\\]", glob):
        raise RuleError(f"'{special[0]}' has no meaning in '{glob}', only * and ** have; write several patterns.")
    if "+" in glob:  # which repeats what is before it in GitHub Actions
        raise RuleError(f"'+' has no meaning in '{glob}', only * and ** have; write '{glob.replace('+', '*')}'.")
    form = re.sub(r"^(?:refs/(?:heads|tags)/|(?:\./|/)+|!+)", "", glob.strip(" \t\r\n"))
    form = re.sub(r"//+", "/", re.sub(r"/+$", "/**", form))
    if form != glob or not form:
        raise RuleError(f"'{glob}' can match nothing; write '{form or '**'}'.")
    sample = re.sub(r"\*+", "a", glob)
    if paths:
        if {".", ".."} & {*sample.split("/")}:
            raise RuleError(f"'{glob}' can match nothing: paths are those of the repository, without '.' and '..'.")
        return
    try:
        checked_ref(sample)
    except Malformed:
        form = re.sub(r"[\^~:\s]|\.\.+|\.lock$|\.$|@\{", "", re.sub(r"(^|/)\.\*+", r"\1**", glob)) or "**"
        raise RuleError(f"'{glob}' can match nothing, as no branch or tag can be called so; write '{form}'.") from None


# From events


DefaultBranch = Callable[[PushFacts], str | None]
"""Says which branch of a repository is the default one, by its short name. Raises AskError."""


def wanted(
    triggers: Sequence[Trigger], event: Event, default_branch: DefaultBranch = lambda push: push.default_branch
) -> list[Wanted]:
    """What the event asks for: one for each trigger that it matches, or what a request for a build holds.

    `default_branch` is asked where a trigger is for that branch alone: some hosts do not say it with a push.

    Everything that comes here counts as verified: webhooks by their signature, CloudEvents by `KILN_EVENTS_AUTH`.
    Raises CannotBuild for a value that a template names and the event lacks, Malformed for a request whose data is
    none, eventing.errors.DecodeError for a push whose data is none, and what `default_branch` raises.
    """
    if event.type == REQUESTED:
        return [requested(event.data)]
    if event.type.startswith(OURS):
        return []
    push = push_of(event)
    if push is not None and (push.deleted or skips(push)):
        return []
    matching = [trigger for trigger in triggers if _matches(trigger, event, push, default_branch)]
    return [_wanted(trigger, event, push) for trigger in matching]


def skips(push: PushFacts) -> bool:
    """Whether the author of a commit wants no build of it. A tag is a wish of its own: release tools tag such commits.

    Where GitHub Actions and GitLab look for it, too:
    https://docs.github.com/en/actions/how-tos/manage-workflow-runs/skip-workflow-runs,
    https://docs.gitlab.com/ci/pipelines/#skip-a-pipeline
    """
    return push.ref.startswith("refs/heads/") and SKIP.search(push.message or "") is not None


def reason(event: Event) -> str:
    """Why nothing is wanted by an event, in a sentence. Raises DecodeError."""
    push = push_of(event)
    if push is not None and skips(push):
        return "The commit's message says that nothing is to be built of it ([skip ci])."
    return "No trigger asks for a build of this."


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


def _matches(trigger: Trigger, event: Event, push: PushFacts | None, default_branch: DefaultBranch) -> bool:
    if not all(matches(wanted, event) for wanted in (*trigger.filters, *trigger.when)):
        return False
    if trigger.default_branch:
        is_branch = push is not None and push.ref.startswith("refs/heads/")
        return push is not None and is_branch and short_name(push.ref) == default_branch(push)
    return trigger.push is None or (push is not None and _pushed(trigger.push, push))


def _pushed(rule: PushRule, push: PushFacts) -> bool:
    """Whether a rule wants a push."""
    branch = push.ref.startswith("refs/heads/")
    if not _chooses(rule, push.ref):
        return False
    if rule.paths is None or push.paths is None or not branch:
        return True
    return any(_chosen(rule.paths, path) for path in push.paths)


def _chooses(rule: PushRule, ref: str) -> bool:
    """Whether a rule wants pushes of a ref."""
    if rule.branches is None and rule.tags is None:
        return True
    globs = rule.branches if ref.startswith("refs/heads/") else rule.tags
    return _chosen(globs or (), short_name(ref))


def _chosen(globs: Sequence[str], text: str) -> bool:
    """By the last glob that matches."""
    for glob in reversed(globs):
        if glob_match(glob.removeprefix("!"), text):
            return not glob.startswith("!")
    return False


def _wanted(trigger: Trigger, event: Event, push: PushFacts | None) -> Wanted:
    """Where a template names another repository or ref than the push, nothing more is taken from the push."""
    given = _push_values(push) if push else {}

    def early(name: str) -> str | None:
        return given.get(name) if name in LATE else value_of(event, name)

    def known(name: str) -> str | None:
        return None if name in LATE else value_of(event, name)

    def own(part: Template | None) -> str | None:
        return None if part is None else part.fill(early).text()

    repository = own(trigger.repository) or given.get("repository")
    if repository is None:
        raise CannotBuild(f"The trigger '{trigger.name}' names no repository, and this event is no push.")
    if push and repository != push.repository and not _same(repository, push.repository):
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
        # For bytes that are no UTF-8 hosts write U+FFFD: such refs cannot be told apart, so none supersedes another.
        push=Push(before=push.before, at=push.pushed_at) if push and "\ufffd" not in push.ref else None,
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
