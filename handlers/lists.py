"""The pages that list builds: all builds with the queue, and the history of one repository with its badge.

Both use the API's list (`handlers.builds.list_builds`), so they show no more than the API does. For the same reason,
positions in the queue count only builds that the user may see.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from urllib.parse import urlencode

from flask import Response, request, url_for

from builds import plan
from builds.build import Build, State
from builds.repository import Repository, short_name
from eventing.hosts import DIALECTS
from handlers import badges, html
from handlers.auth import Identity
from handlers.builds import build_view, list_builds, may_see
from handlers.problems import Problem
from handlers.services import services

QUEUE_READ = 2000
"""Builds of each state that are read for the order of the queue; KILN_MAX_QUEUED is 1000 by default."""
QUEUE_SHOWN = 20
BATCH = 500
"""Builds per read."""
MAX_GROUPED = 200
"""Newest builds that the page groups by repository."""
GROUP_SIZE = 3
"""Builds shown of each repository."""

FILTERS = ("search", "state", "repository", "ref")
"""Query parameters that select builds."""


def index() -> Response:
    identity = services().auth.admit(request)
    grouped = request.args.get("group") == "repository"
    page = list_builds(identity, limit=MAX_GROUPED if grouped else 50)
    filters = {name: request.args.get(name, "") for name in FILTERS}
    builds = [row(build) for build in page.builds]
    is_first = "continue" not in request.args
    unfiltered = is_first and not any(filters.values())
    return html.page(
        "index.html",
        identity,
        builds=builds,
        groups=_groups(builds) if grouped else [],
        queue=_queue(identity) if unfiltered else [],
        queue_limit=QUEUE_SHOWN,
        grouped=grouped,
        states=[state.value for state in State],
        filters=filters,
        is_first=is_first,
        **_paging("pages.index", page.cursor),
        **(_first_steps() if unfiltered and not builds else {}),
    )


def repository() -> Response:
    identity = services().auth.admit(request)
    if not request.args.get("repository"):
        raise Problem(400, "Name the repository by its URL: ?repository=https://…")
    wanted = services().intake.repository(request.args["repository"])
    ref = request.args.get("ref", "")
    page = list_builds(identity)
    builds = [row(build) for build in page.builds]
    return html.page(
        "repository.html",
        identity,
        repository=wanted,
        repo=repository_name(wanted.url),
        ref=ref,
        refs=[*dict.fromkeys(build["ref"] for build in builds if build["ref"])],
        builds=builds,
        images=[*_images(builds)],
        badge=_badge(wanted, ref) if any(map(badges.is_public, page.builds)) else None,
        is_first="continue" not in request.args,
        **_paging("pages.repository", page.cursor),
    )


def repository_name(url: str) -> dict[str, str]:
    """Split a repository's URL into its path, which is the short name on the pages, and its host."""
    scheme, _, rest = url.partition("://")
    host, _, path = rest.partition("/")
    return {"path": path or rest, "host": host if scheme == "https" else f"{scheme}://{host}"}


def row(build: Build) -> dict[str, Any]:
    """Return the build as the API shows it, with short names of its repository and its requesters."""
    requesters = dict.fromkeys(cause.by.removeprefix("user:") for cause in build.causes if cause.by)
    repo = repository_name(build.request.repository)
    return {**build_view(build, tail=False), "repo": repo, "requesters": [*requesters]}


def _groups(builds: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Group builds by repository; the repository with the newest build comes first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for build in builds:
        groups.setdefault(build["repository"], []).append(build)
    return [
        {"repository": url, "repo": repository_name(url), "builds": found[:GROUP_SIZE], "number": len(found)}
        for url, found in groups.items()
    ]


def _queue(identity: Identity) -> dict[str, Any]:
    """Return the first builds of the queue in their order, and the length of the queue."""
    active = [build for build in (*builds_in(State.RUNNING), *builds_in(State.QUEUED)) if may_see(build, identity)]
    queued = sum(build.state is State.QUEUED for build in active)
    order = plan.queue(active, services().now())
    return {"first": [row(build) for build in islice(order, QUEUE_SHOWN)], "number": queued}


def builds_in(state: State) -> Iterator[Build]:
    """Yield up to QUEUE_READ builds in a state, including those that the user may not see. Raises Unavailable."""
    cursor, left = None, QUEUE_READ
    while left > 0:
        page = services().records.list(state=state, limit=BATCH, cursor=cursor)
        yield from page.builds
        cursor, left = page.cursor, left - BATCH
        if cursor is None:
            return


def _images(builds: Sequence[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the build with the newest image of each ref."""
    seen = set()
    for build in builds:
        if build["image"]["reference"] and build["ref"] not in seen:
            seen.add(build["ref"])
            yield build


def _badge(named: Repository, ref: str) -> dict[str, str]:
    """Return the badge's path, and the Markdown that shows it in a README."""
    query: dict[str, Any] = {"repository": named.url, **({"ref": ref} if ref else {})}
    image, page = url_for("badges.badge", **query), url_for("pages.repository", **query)
    name = f"Image of {short_name(ref)}" if ref else "Image"
    base = services().base_path
    return {"url": image, "markdown": f"[![{name}]({_absolute(image, base)})]({_absolute(page, base)})"}


def root() -> str:
    """Return the URL of the pages without a trailing slash: the configured one, or that of the request."""
    public = services().public_url
    return public.rstrip("/") if public else request.host_url.rstrip("/") + services().base_path.rstrip("/")


def _absolute(path: str, base: str) -> str:
    return f"{root()}/{path.removeprefix(base)}"


def _paging(endpoint: str, cursor: str | None) -> dict[str, Any]:
    """Return links to the newest and the next page that keep all other parameters, and the function for other links."""
    kept = {name: request.args[name] for name in (*FILTERS, "group", "limit") if request.args.get(name)}
    path = url_for(endpoint)

    def link(**changes: str | None) -> str:
        query = {name: value for name, value in {**kept, **changes}.items() if value}
        return path + (f"?{urlencode(query)}" if query else "")

    return {"newest": link(), "older": link(**{"continue": cursor}) if cursor else None, "link_to": link}


def _first_steps() -> Mapping[str, Any]:
    """Return the values for the instructions on an empty list."""
    return {"root": root(), "hosts": [word for word in DIALECTS if services().webhook_secrets(word)]}
