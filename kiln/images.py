"""`kiln images` lists the pushed images from records and registry; `kiln images prune` deletes those without use.

It reads the records and pushes nothing. It runs next to the controller, which has the credential for deletion.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from builds.builder.log import clean
from builds.clients.errors import RegistryError
from builds.engines import EngineError
from builds.prune import ImageReview, Pruner
from builds.repository import canonical, glob_match
from builds.retention import Pushed, RetentionDecision
from kiln import wiring
from kiln.errors import CommandError
from kiln.wiring import Kiln

Say = Callable[[str], object]


def show(environ: Mapping[str, str], *, as_json: bool, say: Say, complain: Say) -> int:
    """List all images with Kiln's label. Returns the exit status. Raises KilnError."""
    with _opened(environ) as (kiln, pruner):
        looks = [*pruner.review(_more(kiln))]
    ruled = kiln.config.keep is not None
    found = [verdict for looked in looks for verdict in looked.verdicts if verdict.by_kiln]
    _print(found, as_json, say, ruled=ruled)
    return _errors(((looked.repository, looked.error) for looked in looks), complain)


def prune(environ: Mapping[str, str], *, delete: bool, as_json: bool, say: Say, complain: Say) -> int:
    """List the images that `keep` does not retain, or delete them with `delete`. Returns the exit status. Raises
    KilnError.
    """
    with _opened(environ) as (kiln, pruner):
        if kiln.config.keep is None:
            raise CommandError("No retention rule. Set `keep: {for: 30d}` in the YAML file")
        found: list[RetentionDecision] = []
        errors: list[tuple[str, str | None]] = []
        for looked in pruner.review():
            gone, error = _pruned(pruner, looked) if delete else (looked.unneeded, None)
            found += gone
            errors.append((looked.repository, looked.error or error))
    _print(found, as_json, say, ruled=True)
    complain(f"kiln: {len(found)} images {'deleted' if delete else 'would be deleted; --delete does it'}")
    return _errors(errors, complain)


def _pruned(pruner: Pruner, looked: ImageReview) -> tuple[Sequence[RetentionDecision], str | None]:
    pruned = pruner.prune(looked)
    gone = {image.digest for image in pruned.deleted}
    return [verdict for verdict in looked.unneeded if verdict.image.digest in gone], pruned.error


@contextmanager
def _opened(environ: Mapping[str, str]) -> Iterator[tuple[Kiln, Pruner]]:
    kiln = wiring.load(environ)
    try:
        records = wiring.records(kiln)
        try:
            yield kiln, wiring.pruner(kiln, records)
        finally:
            records.close()
    except EngineError as error:
        raise CommandError(str(error)) from error


def _more(kiln: Kiln) -> Iterator[str]:
    """Yield image repositories without records: those of listed repositories, and the registry's catalogue if it has
    one.
    """
    for listed in kiln.config.repositories:
        yield kiln.images.own(canonical(listed.url, kiln.config.hosts))
    for prefix in kiln.images.pushed_prefixes:
        name = f"{prefix}catalog"
        try:
            listed_there = wiring.registry(kiln)(name).catalog(name)
        except RegistryError:
            continue
        for repository in listed_there:
            if any(glob_match(pattern, repository) for pattern in kiln.images.patterns):
                yield repository


def _print(verdicts: Sequence[RetentionDecision], as_json: bool, say: Say, *, ruled: bool) -> None:
    if as_json:
        say(json.dumps([_as_json(verdict, ruled=ruled) for verdict in verdicts], indent=2))
        return
    for verdict in verdicts:
        why = [f"kept: {verdict.kept}" if verdict.kept else "not needed"] if ruled else []
        say(clean("  ".join([_reference(verdict.image), *why])))


def _as_json(verdict: RetentionDecision, *, ruled: bool) -> dict[str, Any]:
    image, record = verdict.image, verdict.record
    return {
        "reference": _reference(image),
        "repository": image.repository,
        "digest": image.digest,
        "tags": [*image.tags],
        "build": image.build,
        "refs": sorted(record.refs) if record else [],
        "used_at": record.used_at.isoformat().replace("+00:00", "Z") if record else None,
        "needed": verdict.kept is not None if ruled else None,
        "why": verdict.kept if ruled else None,
    }


def _reference(image: Pushed) -> str:
    tag = f":{image.tags[0]}" if image.tags else ""
    return f"{image.repository}{tag}@{image.digest}"


def _errors(found: Iterable[tuple[str, str | None]], complain: Say) -> int:
    failed = [(repository, error) for repository, error in found if error]
    for repository, error in failed:
        complain(clean(f"kiln: error: {repository}: {error}"))
    return 1 if failed else 0
