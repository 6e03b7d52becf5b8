"""Triggers: which events request which builds.

A trigger consists of filters and a template. It produces a `RequestedBuild` in the sender's words; `builds.intake`
decides whether it may be built, and under which name. Templates contain no expressions: a field names a value, and a
value is text.

Some values are known only after the ref has been looked up (`{slug}`, and `{commit}` for events other than pushes). So
a template is filled in two steps, and inserted text is never interpreted as a template.

A rule that no event can match, or whose builds would all be refused, is an error when it is read. So an ineffective
trigger is found at the start, and not by the user who misses an image.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cache, partial
from typing import Annotated, TypeVar

import msgspec

from builds.arguments import check_name
from builds.build import Push
from builds.errors import CannotBuild, Malformed, RepositoryError, RuleError
from builds.globs import check_glob, check_order, chosen
from builds.pullrequests import PullRequestRule, objection, unasked
from builds.repository import canonical, is_commit, short_name
from eventing.errors import FilterError
from eventing.event import Event
from eventing.filters import (
    ATTRIBUTES,
    DATA_VALUE,
    Filter,
    any_of,
    mismatch,
    names,
    negated,
    parse,
    possible,
    value_of,
    values,
)
from eventing.hosts import DIALECTS, PushFacts, RequestFacts, push_of, request_of
from eventing.http import MAX_NAME

REQUESTED = "dev.kiln.build.requested.v1"
OURS = "dev.kiln."

PUSHES = frozenset(kind for dialect in DIALECTS.values() for kind in dialect.pushes)
"""The event types that are pushes."""
REQUESTS = tuple(sorted({kind for dialect in DIALECTS.values() for kind in dialect.requests}))
"""Prefixes of the event types about pull requests."""
PLAIN_SOURCES = (*sorted({f"{kind.rpartition('.')[0]}." for kind in PUSHES}), "org.jupyterhub.")
"""Prefixes of event types without extensions of their own."""
HUB_TYPES = ("org.jupyterhub.server.start", "org.jupyterhub.server.stop")
LOWER_SOURCES = tuple(each for each in PLAIN_SOURCES if not any(re.match(f"{each}.*[A-Z]", kind) for kind in PUSHES))
"""Prefixes whose event types have no capitals."""
ON_THE_WAY = re.compile(
    r"knative\w*|kafka\w*|key|trace(?:parent|state)|partitionkey|sequence(?:type)?|sampledrate|dataref|expirytime"
    r"|recordedtime|severity(?:number|text)|auth(?:type|id|claims)|(?:correlation|causation)id"
)
"""Extensions that brokers and senders add to any event
(https://github.com/cloudevents/spec/blob/main/cloudevents/documented-extensions.md)."""

SKIP = re.compile(r"\[(?:skip ci|ci skip|no ci)\]", re.IGNORECASE)

T = TypeVar("T")

Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")]


# The configuration's own form


class PushRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A selection of pushes: globs over short branch and tag names, and over the paths of changed files.

    If only one of `branches` and `tags` is given, the other kind of ref does not match. `paths` applies to branches,
    and matches if the host did not list all changes. The last matching glob decides, and one after `!` excludes, as in
    GitHub Actions.
    """

    branches: tuple[str, ...] | None = None
    tags: tuple[str, ...] | None = None
    paths: tuple[str, ...] | None = None


class BuildTemplate(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The build to request; texts may contain `{…}`. For a push or a pull request, repository, ref and commit default
    to those of the event."""

    repository: str | None = None
    ref: str | None = None
    commit: str | None = None
    subdir: str | None = None
    build_args: dict[str, str] = {}
    image: str | None = None
    tags: tuple[str, ...] | None = None
    force: bool = False


TAGS = ("pr-{number}",)
"""Default tags for images of pull requests."""


class TriggerRule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entry of `triggers:`. All filters and conditions (`when`) must match. With `push` only pushes match, with
    `pull_requests` only relevant changes of pull requests."""

    name: Name
    filters: tuple[dict[str, object], ...] = ()
    when: tuple[dict[str, object], ...] = ()
    push: PushRule | None = None
    pull_requests: PullRequestRule | None = None
    build: BuildTemplate = BuildTemplate()


class BuildRequestBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a request to the JSON API, and the data of `dev.kiln.build.requested.v1`."""

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
"""Values of the event: inside its data, its extensions, and its context attributes."""
LATE = frozenset({"repository", "ref", "ref_name", "commit", "slug"})
"""Values of the request, known after the look-up; a push contains all but `slug` itself."""
OF_PULL_REQUESTS = frozenset({"number", "base", "head"})
MEANT: Mapping[str, str] = {
    **dict.fromkeys(("branch", "branch_name", "tag", "tag_name", "refname", "github.ref_name"), "ref_name"),
    **dict.fromkeys(("sha", "revision", "commit_sha", "commit_id", "head_commit", "github.sha"), "commit"),
    **dict.fromkeys(("repo", "url", "repo_url", "clone_url", "repository_url", "github.repository"), "repository"),
    **dict.fromkeys(("name", "repo_name", "repository_name", "owner", "image"), "slug"),
    **dict.fromkeys(("reference", "git_ref", "github.ref"), "ref"),
    **dict.fromkeys(("pr", "mr", "iid", "pr_number", "pull_number"), "number"),
    **dict.fromkeys(("base_ref", "base_branch", "target", "target_branch", "github.base_ref"), "base"),
    **dict.fromkeys(("head_ref", "head_branch", "source_branch", "github.head_ref"), "head"),
}
"""Other tools' names for these values."""
NEVER_BRACES = ("repository", "ref", "commit", "image", "tags")
"""Fields in which a literal brace is of no use."""

Lookup = Callable[[str], str | None]


class Template(msgspec.Struct, frozen=True):
    """A text with placeholders: literal pieces and fields."""

    pieces: tuple[str | Field, ...]

    def fill(self, lookup: Lookup) -> Template:
        """Fills in the fields that `lookup` knows."""
        return Template(tuple(self._filled(piece, lookup) for piece in self.pieces))

    def text(self) -> str:
        """The complete text. Raises CannotBuild, naming the field, if a value is missing."""
        return "".join(map(self._known, self.pieces))

    @property
    def written(self) -> str:
        """The text that `template` reads as this template."""
        return "".join(
            f"{{{piece.name}}}" if isinstance(piece, Field) else re.sub(r"([{}])", r"\1\1", piece)
            for piece in self.pieces
        )

    @property
    def fields(self) -> frozenset[str]:
        """The names of its placeholders."""
        return frozenset(piece.name for piece in self.pieces if isinstance(piece, Field))

    @staticmethod
    def _known(piece: str | Field) -> str:
        if isinstance(piece, Field):
            raise CannotBuild(f"The event has no value for {{{piece.name}}}, which the trigger's template needs.")
        return piece

    @staticmethod
    def _filled(piece: str | Field, lookup: Lookup) -> str | Field:
        value = lookup(piece.name) if isinstance(piece, Field) else None
        return piece if value is None else value


def template(text: str, *, braces: bool = True) -> Template:
    """Parses `{name}`, with `{{` and `}}` for literal braces in fields that may need them.

    Raises RuleError, naming the invalid part.
    """
    pieces: list[str | Field] = []
    if other := re.search(r"\$\{\{\s*([\w.-]*)\s*\}\}|\$\{([\w.-]*)\}", text):
        raise RuleError(f"'{other[0]}' in '{text}' is another tool's syntax{_nearest(other[1] or other[2] or '')}")
    if not braces and (twice := re.search(r"\{\{\s*([\w.-]+)\s*\}\}", text)):
        raise RuleError(f"'{twice[0]}' in '{text}' is literal text in braces{_nearest(twice[1].strip('.'))}")
    for literal, escaped, name, brace in re.findall(r"([^{}]+)|(\{\{|\}\})|\{([^{}]*)\}|([{}])", text):
        if brace:
            raise RuleError(f"A single '{brace}' in '{text}': write it twice, or a name between two of them.")
        if literal or escaped:
            pieces.append(literal or escaped[0])
        elif name in LATE | OF_PULL_REQUESTS or EARLY.fullmatch(name):
            pieces.append(Field(name))
        else:
            raise RuleError(f"'{{{name}}}' in '{text}' names no value{_nearest(name)}")
    return Template(tuple(pieces))


def _nearest(name: str) -> str:
    """The end of a sentence about an unknown name."""
    stripped = re.sub(
        r"^(?:\$\.|event\.|github\.event\.|(?=body\.|payload\.))(?:(?:body|payload)\.)?", "data.", name.strip()
    )
    stripped = re.sub(r"^data\.(?:body|payload|data)\.", "data.", stripped)
    plain = re.sub(r"[-\s]", "_", name.strip().lower())
    known = sorted(LATE | OF_PULL_REQUESTS | ATTRIBUTES)
    near = stripped if stripped in LATE or EARLY.fullmatch(stripped) else MEANT.get(plain)
    near = near or next(iter(get_close_matches(plain, known, n=1, cutoff=0.75)), None)
    names = ", ".join(f"{{{name}}}" for name in sorted(LATE))
    there = f"he values are {{data.…}}, {{extensions.…}}, the event's attributes, and {names}."
    return f": did you mean {{{near}}}? T{there}" if near else f": t{there}"


def plain(text: str) -> Template:
    """A text without placeholders."""
    return Template((text,))


# The requested build


class RequestedBuild(msgspec.Struct, frozen=True, kw_only=True):
    """A request for a build in its sender's words, unchecked.

    `commit` is set for a push, and then needs no look-up. The templates still lack the values of the request. `head` is
    the branch that points at the commit, if the host has no `ref` of that name. `foreign`: it comes from a fork, whose
    code must not use a stored credential.
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
    head: str | None = None
    foreign: bool = False
    default: bool = False
    """Whether the ref is known to be the default branch."""


class Trigger(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed rule. `default_branch`: matches only pushes to the branch that the host reports as default."""

    name: str
    filters: tuple[Filter, ...] = ()
    when: tuple[Filter, ...] = ()
    push: PushRule | None = None
    pull_requests: PullRequestRule | None = None
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
"""The triggers if the configuration has none: every push to a repository's default branch."""


def read(rules: Sequence[TriggerRule] | None) -> tuple[tuple[Trigger, ...], list[str]]:
    """The triggers of a configuration (`None` if it has no such section), and all problems of their rules, each a
    sentence with its place."""
    if rules is None:
        return DEFAULT, []
    names = [rule.name for rule in rules]
    problems = [f"Two triggers have the name '{name}'." for name in dict.fromkeys(names) if names.count(name) > 1]
    readers = [_RuleParser(rule) for rule in rules]
    triggers = tuple(reader.trigger() for reader in readers)
    return triggers, [*problems, *(problem for reader in readers for problem in reader.problems)]


class _RuleParser:
    """Parses a rule, and collects its problems instead of stopping at the first."""

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
            pull_requests=self._rule.pull_requests,
            repository=self._template("repository", build.repository),
            ref=self._template("ref", build.ref),
            commit=self._template("commit", build.commit),
            subdir=self._template("subdir", build.subdir) or Template(()),
            build_args=dict(self._arguments()),
            image=self._template("image", build.image),
            tags=tuple(self._templates("tags", self._tags())),
            force=build.force,
        )
        for section in ("push", "pull_requests"):
            for name in ("branches", "tags", "paths"):
                self._check_globs(f"{section}.{name}", getattr(getattr(self._rule, section), name, None))
        if not self.problems:
            self.problems += (f"Trigger '{trigger.name}', {problem}" for problem in _unmatchable(trigger))
        return trigger

    def _note(self, place: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except (RuleError, Malformed) as error:
            self.problems.append(f"Trigger '{self._rule.name}', {place}: {error}")
        except FilterError as error:  # whose message begins with the place
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

    def _tags(self) -> Sequence[str]:
        given = self._rule.build.tags
        return (TAGS if self._rule.pull_requests else ()) if given is None else given

    def _check_globs(self, place: str, globs: Sequence[str] | None) -> None:
        known, paths = len(self.problems), place.endswith("paths")
        for index, glob in enumerate(globs or ()):
            self._note(f"{place}[{index}]", partial(check_glob, glob.removeprefix("!"), paths=paths))
        if globs is not None and len(self.problems) == known:
            self._note(place, partial(check_order, globs))


# Rules that no event can match


def _unmatchable(trigger: Trigger) -> Iterator[str]:
    """The reasons why a rule can produce no builds, with their places."""
    requested_builds, requests = trigger.filters, trigger.pull_requests
    own = any_of("prefix", "type", REQUESTS) if requests else any_of("exact", "type", [*PUSHES])
    may_be_own = possible([*requested_builds, *trigger.when, own])
    if not possible([*requested_builds, *trigger.when]):
        yield "filters: they contradict each other, so no event matches. Put alternatives into a list under `any:`."
        return
    if trigger.push and requests:
        yield "pull_requests: a trigger is for pushes or for pull requests, not for both. Write two triggers."
        return
    yield from _unsuitable(trigger)
    if trigger.push and trigger.push.branches is None and trigger.push.tags and trigger.push.paths:
        yield "push.paths: applies to branches, but only tags are selected. Leave it out, or add branches."
    slips: list[str | None] = [*_starred(requested_builds)]
    slips += [_misspelt(kind) for kind in sorted(values(requested_builds, "type"))]
    slips += [
        *map(_misspelt_beginning, sorted(values(requested_builds, "type", "prefix"))),
        *map(_misplaced, sorted(values(requested_builds, "source"))),
    ]
    if trigger.push is not None or (trigger.repository is None and not requests):
        slips += [_no_subject(trigger, subject) for subject in sorted(values(requested_builds, "subject"))]
    if any(slips):
        yield from (f"filters: {problem}" for problem in slips if problem)
        return
    if not possible([*requested_builds, negated(any_of("prefix", "type", [OURS]))]):
        yield "filters: Kiln's own events match no trigger; dev.kiln.build.requested.v1 needs none."
    elif trigger.push is not None and not may_be_own:
        yield f"push: the filters exclude all pushes. Their types are {', '.join(sorted(PUSHES))}."
    elif requests and not may_be_own:
        yield f"pull_requests: the filters exclude all such events, whose types begin with {', '.join(REQUESTS)}."
    elif trigger.repository is None and not may_be_own:
        yield (
            "build.repository: required, because the filters exclude all pushes. Give an address, or a value of the "
            "event such as '{data.course.repository}'."
        )
    yield from _without_value(trigger, own, may_be_own=may_be_own)


def _unsuitable(trigger: Trigger) -> Iterator[str]:
    """The options that are only for rules about pull requests, or not for them."""
    rule = trigger.pull_requests
    if rule is None:
        for place, part in _parts(trigger):
            for name in sorted(part.fields & OF_PULL_REQUESTS):
                yield f"build.{place}: only pull requests have {{{name}}}. Add `pull_requests:` to the trigger."
        return
    if rule.labels is not None and not all(label.strip() for label in rule.labels or ("",)):
        yield "pull_requests.labels: the list is empty. Name a label, or leave the list out."
    for place, part in _parts(trigger):
        for name in sorted(part.fields) if rule.forks and place.startswith(("image", "tags")) else ():
            if name == "head" or name.startswith("data."):
                yield f"build.{place}: with `from: anyone`, strangers would choose {{{name}}}. Use {{number}}."


def _without_value(trigger: Trigger, own: Filter, *, may_be_own: bool) -> Iterator[str]:
    """Comparisons and fields whose value no matching event has. `own`: pushes, or pull requests."""
    only_own = trigger.push is not None or trigger.pull_requests is not None or trigger.repository is None
    requested_builds = [*trigger.filters, *([own] if only_own else [])]
    if not possible([*requested_builds, negated(any_of("prefix", "type", PLAIN_SOURCES))]):
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
        unknown = LATE if not may_be_own else {"slug"}
        for name in sorted(found.fields & unknown if found else ()):
            yield f"build.{place}: {{{name}}} is unknown before the repository is known. Use {{data.…}} or a text."


def _absent(name: str) -> str:
    hint = {"ref": "subject", "branch": "push.branches", "tag": "push.tags", "repository": "source"}.get(name)
    form = f"; use {hint}" if hint else "; for a value inside its data use `when:`, such as data.action"
    return f"no matching event has the attribute {name}{form}."


def _parts(trigger: Trigger) -> Iterator[tuple[str, Template]]:
    for place in ("repository", "ref", "commit", "subdir", "image"):
        found: Template | None = getattr(trigger, place)
        if found is not None:
            yield place, found
    yield from ((f"build_args.{name}", part) for name, part in trigger.build_args.items())
    yield from ((f"tags[{index}]", part) for index, part in enumerate(trigger.tags))


def _misspelt(kind: str) -> str | None:
    """The problem of a filter's event type, if it can only be a typing mistake."""
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
    """The problem of a repository's address as the source of events, in GitHub's spelling."""
    found = re.fullmatch(r"(?:https?://)?(?:www\.|git@)?github\.com[/:]([^/]+/[^/]+?)(?:\.git)?/?", source)
    form = f"https://github.com/{found[1]}" if found else source
    return None if form == source else f"no event has the source {source}; write {form}."


def _no_subject(trigger: Trigger, subject: str) -> str | None:
    """The problem of a filter's subject for pushes. The subject is the full ref; for GitLab's branches it is the
    commit, in Knative's events two commits."""
    if not subject.startswith("refs/") and "..." not in subject and not is_commit(subject):
        return f"no push has the subject {subject}. Give the full ref, such as refs/heads/main, or use push.branches."
    only = not possible([*trigger.filters, negated(any_of("exact", "subject", [subject]))])
    if only and subject.startswith("refs/") and trigger.push and not _chooses(trigger.push, subject):
        return f"they require the subject {subject}, which push excludes."
    return None


def _starred(filters: Sequence[Filter]) -> Iterator[str]:
    """The problems of texts in the form of globs, which filters do not support."""
    for name, dialect in itertools.product(("type", "source", "subject"), ("exact", "prefix", "suffix")):
        for text in sorted(values(filters, name, dialect)):
            if text.startswith("*") or text.endswith("*"):
                form = "suffix" if text.startswith("*") else "prefix"
                yield f"they compare text, without * ({text}). Write {form}: {{{name}: {text.strip('*')}}}."


def _misspelt_beginning(text: str) -> str | None:
    known = [*PLAIN_SOURCES, OURS]
    near = get_close_matches(text, known, n=1, cutoff=0.9)
    if near and not any(text.startswith(each) or each.startswith(text) for each in known):
        return f"no event has a type that begins with {text}; did you mean {near[0]}?"
    return None


# Events


DefaultBranch = Callable[[PushFacts], str | None]
"""Returns the short name of a repository's default branch. Raises RequestError."""


class EventFacts(msgspec.Struct, frozen=True, kw_only=True):
    """An event's facts about its build: a push, or a pull request. `head` is as in `RequestedBuild`."""

    repository: str
    ref: str
    commit: str | None
    push: Push
    values: Mapping[str, str] = {}
    head: str | None = None
    default: bool = False


def requested_builds(
    triggers: Sequence[Trigger],
    event: Event,
    default_branch: DefaultBranch = lambda push: push.default_branch,
    changed: Callable[[RequestFacts], Collection[str] | None] = lambda request: None,  # noqa: ARG005
) -> list[RequestedBuild]:
    """The builds that the event requests: one for each matching trigger, or that of a request for a build.

    `default_branch` is called if a trigger is for that branch alone, because some hosts omit it from pushes. `changed`
    returns the changed paths of a pull request, which no event lists; `None` if they are unknown.

    Every event counts as verified: webhooks by their signature, CloudEvents by `KILN_EVENTS_AUTH`. Raises CannotBuild
    if the event lacks a value that a template needs, Malformed for the invalid data of a request. Raises
    eventing.errors.DecodeError for the invalid data of a push, and the exceptions of `default_branch`.
    """
    if event.type == REQUESTED:
        return [from_event_data(event.data)]
    scene = _Scene(event, default_branch, changed)
    if scene.idle is not None:
        return []
    return [scene.build(each) for each in triggers if all(check.holds for check in scene.checks(each))]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One condition of a trigger: its place in the rule, and why an event does not meet it, as a phrase."""

    place: str
    why: str | None = None

    @property
    def holds(self) -> bool:
        return self.why is None


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one trigger for an event: each condition, and if all hold the build, or the missing value."""

    trigger: str
    checks: tuple[Check, ...]
    build: RequestedBuild | None = None
    lacks: str | None = None

    @property
    def matches(self) -> bool:
        return all(check.holds for check in self.checks)


def explain(triggers: Sequence[Trigger], event: Event, default_branch: DefaultBranch) -> list[Verdict]:
    """Evaluate every trigger as `requested_builds` does, with all reasons. Changed paths count as unknown.

    Raises the exceptions of `requested_builds`, except CannotBuild for a missing value.
    """
    if event.type == REQUESTED:
        return []
    scene = _Scene(event, default_branch, lambda _: None)
    return [] if scene.idle is not None else [scene.verdict(each) for each in triggers]


def idle(event: Event) -> str | None:
    """Return why no trigger is evaluated for an event, as a sentence; `None` if they are. Raises DecodeError."""
    return _idle(event, push_of(event))


def _idle(event: Event, push: PushFacts | None) -> str | None:
    if event.type.startswith(OURS):
        return "Kiln's own events match no trigger."
    if push is not None and push.deleted:
        return "The push deletes the ref."
    if push is not None and skips(push):
        return "The commit's message says that nothing is to be built of it ([skip ci])."
    return None


class _Scene:
    """One event, and the facts that triggers compare."""

    def __init__(
        self,
        event: Event,
        default_branch: DefaultBranch,
        changed: Callable[[RequestFacts], Collection[str] | None],
    ) -> None:
        self._event = event
        self._default_branch = default_branch
        own = event.type.startswith(OURS)
        self._push = None if own else push_of(event)
        self.idle = _idle(event, self._push)
        self._request = request = None if own or self.idle else request_of(event)
        self._paths = cache(lambda: None if request is None else changed(request))

    def checks(self, trigger: Trigger) -> Iterator[Check]:
        """Yield the cheap conditions first: the last may need a request to the Git host."""
        for section, filters in (("filters", trigger.filters), ("when", trigger.when)):
            for index, each in enumerate(filters):
                yield Check(place=f"{section}[{index}]", why=mismatch(each, self._event))
        if trigger.pull_requests is not None:
            yield Check(place="pull_requests", why=self._unwanted_request(trigger.pull_requests))
        elif trigger.default_branch:
            yield Check(place="default branch", why=self._off_default())
        elif trigger.push is not None:
            yield Check(place="push", why=self._unwanted_push(trigger.push))

    def build(self, trigger: Trigger) -> RequestedBuild:
        """Raises CannotBuild."""
        foreign = self._request is not None and self._request.fork
        return _requested_build(trigger, self._event, _facts(trigger, self._push, self._request), foreign=foreign)

    def verdict(self, trigger: Trigger) -> Verdict:
        checks = tuple(self.checks(trigger))
        if not all(check.holds for check in checks):
            return Verdict(trigger=trigger.name, checks=checks)
        try:
            return Verdict(trigger=trigger.name, checks=checks, build=self.build(trigger))
        except CannotBuild as error:
            return Verdict(trigger=trigger.name, checks=checks, lacks=str(error))

    def _unwanted_request(self, rule: PullRequestRule) -> str | None:
        if self._request is None:
            return "the event is not about a pull request"
        return objection(rule, self._request, self._paths)

    def _off_default(self) -> str | None:
        if self._push is None:
            return NO_PUSH
        if not self._push.ref.startswith("refs/heads/"):
            return f"{self._push.ref} is no branch"
        branch = self._default_branch(self._push)
        return None if _is_default(self._push, branch) else f"{self._push.ref} is not the default branch, {branch}"

    def _unwanted_push(self, rule: PushRule) -> str | None:
        return NO_PUSH if self._push is None else _unchosen(rule, self._push)


NO_PUSH = "the event is no push"


def _facts(trigger: Trigger, push: PushFacts | None, request: RequestFacts | None) -> EventFacts | None:
    if push is not None:
        return EventFacts(
            repository=push.repository,
            ref=push.ref,
            commit=push.commit,
            push=Push(before=push.before, at=push.pushed_at),
            default=trigger.default_branch or _is_default(push, push.default_branch),
        )
    if request is None or trigger.pull_requests is None:
        return None
    return EventFacts(
        repository=request.repository,
        ref=request.ref,
        commit=request.commit,
        push=Push(before=request.before, at=request.at),
        values={"number": str(request.number), "base": request.base, "head": request.head},
        head=None if request.served else f"refs/heads/{request.head}",
    )


def skips(push: PushFacts) -> bool:
    """Whether the author of a commit has marked it to skip builds. Tags are exempt: release tools tag such commits.

    The marks are those of GitHub Actions and GitLab:
    https://docs.github.com/en/actions/how-tos/manage-workflow-runs/skip-workflow-runs,
    https://docs.gitlab.com/ci/pipelines/#skip-a-pipeline
    """
    return push.ref.startswith("refs/heads/") and SKIP.search(push.message or "") is not None


def reason(event: Event) -> str:
    """The reason, as a sentence, why an event requests no build. Raises DecodeError."""
    push = push_of(event)
    if push is not None and skips(push):
        return _idle(event, push) or ""
    request = request_of(event)
    if request is not None:
        return unasked(request)
    return "No trigger matches this event."


def from_event_data(data: object) -> RequestedBuild:
    """Parses the data of a `dev.kiln.build.requested.v1`. Raises Malformed."""
    try:
        return from_body(msgspec.convert(data, BuildRequestBody))
    except msgspec.ValidationError as error:
        raise Malformed(f"Invalid request for a build: {str(error)[:200]}.") from None


def from_body(body: BuildRequestBody) -> RequestedBuild:
    """The build that a request body describes; braces have no special meaning in it."""
    return RequestedBuild(
        repository=body.repository,
        ref=body.ref,
        commit=body.commit,
        subdir=plain(body.subdir or ""),
        build_args={name: plain(text) for name, text in (body.build_args or {}).items()},
        image=None if body.image is None else plain(body.image),
        tags=tuple(map(plain, body.tags or ())),
        force=bool(body.force),
    )


def _is_default(push: PushFacts, branch: str | None) -> bool:
    return branch is not None and push.ref == f"refs/heads/{branch}"


def _unchosen(rule: PushRule, push: PushFacts) -> str | None:
    """Return why a rule does not match a push, as a phrase; `None` if it matches."""
    branch = push.ref.startswith("refs/heads/")
    if not _chooses(rule, push.ref):
        return f"no pattern of push.{'branches' if branch else 'tags'} matches {push.ref}"
    if rule.paths is None or push.paths is None or not branch:
        return None
    return (
        None
        if any(chosen(rule.paths, path) for path in push.paths)
        else "no pattern of push.paths matches a changed file"
    )


def _chooses(rule: PushRule, ref: str) -> bool:
    """Whether a rule selects pushes to a ref."""
    if rule.branches is None and rule.tags is None:
        return True
    globs = rule.branches if ref.startswith("refs/heads/") else rule.tags
    return chosen(globs or (), short_name(ref))


def _requested_build(trigger: Trigger, event: Event, facts: EventFacts | None, *, foreign: bool) -> RequestedBuild:
    """If a template names another repository or ref than the event, the event's other values do not apply."""
    given = _values(facts) if facts else {}
    values = facts.values if facts else {}

    def early(name: str) -> str | None:
        return given.get(name) if name in LATE else known(name)

    def known(name: str) -> str | None:
        return None if name in LATE else values.get(name) or value_of(event, name)

    def own(part: Template | None) -> str | None:
        return None if part is None else part.fill(early).text()

    repository = own(trigger.repository) or given.get("repository")
    if repository is None:
        raise CannotBuild(f"The trigger '{trigger.name}' names no repository, and this event is not a push.")
    if facts and repository != facts.repository and not _same(repository, facts.repository):
        facts = None
    ref = own(trigger.ref) or (facts.ref if facts else None)
    if facts and ref != facts.ref:
        facts = None
    return RequestedBuild(
        repository=repository,
        ref=ref,
        commit=own(trigger.commit) or (facts.commit if facts else None),
        subdir=trigger.subdir.fill(known),
        build_args={name: part.fill(known) for name, part in trigger.build_args.items()},
        image=trigger.image and trigger.image.fill(known),
        tags=tuple(tag.fill(known) for tag in trigger.tags),
        force=trigger.force,
        trigger=trigger.name,
        # Hosts replace invalid UTF-8 by U+FFFD. Such refs cannot be distinguished, so none supersedes another.
        push=facts.push if facts and "\ufffd" not in facts.ref else None,
        head=facts.head if facts else None,
        foreign=foreign,
        default=facts is not None and facts.default,
    )


def _same(one: str, other: str) -> bool:
    try:
        return canonical(one).url == canonical(other).url
    except RepositoryError:
        return False


def _values(facts: EventFacts) -> dict[str, str | None]:
    return {
        "repository": facts.repository,
        "ref": facts.ref,
        "ref_name": short_name(facts.ref),
        "commit": facts.commit,
    }
