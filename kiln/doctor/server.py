"""Probes of a server: it is reachable, accepts the token, has a suitable version, and is ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from http import HTTPStatus
from importlib import metadata
from typing import Any

import msgspec

from kiln.client import Server
from kiln.doctor import clock, cures
from kiln.doctor.cures import Cure
from kiln.doctor.findings import Finding, FindingState, Probe, Symptom, examine
from kiln.errors import CommandError
from kiln.target import Target


def findings(target: Target) -> Iterator[Finding]:
    """Yields the findings; only that about the server if no Kiln answers."""
    server = Server(target.server, target.token)
    (first,) = examine([Probe("server", partial(_reachable, server))])
    yield first
    if first.state is not FindingState.FAILED:
        yield from examine(_others(server, target))


def _others(server: Server, target: Target) -> list[Probe]:
    return [
        Probe("token", partial(_token, server, target.token)),
        Probe("version", partial(_version, server)),
        Probe("readiness", partial(_readiness, server)),
        clock.probe([target.server]),
    ]


def _reachable(server: Server) -> str:
    status, found = _asked(server, "versions")
    if status != HTTPStatus.OK or "+kiln." not in str(found.get("binderhub")):
        raise Symptom(cures.NOT_KILN, f"{server.page(None)} answers with status {status}, and not as a Kiln.")
    return f"{server.page(None)} answers"


def _token(server: Server, token: str | None) -> str:
    status, found = _asked(server, "api/v1/builds?limit=1")
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        cure = cures.TOKEN_REFUSED if token else cures.TOKEN_MISSING
        raise Symptom(cure, found.get("detail") or f"The server answers with status {status}.")
    if status != HTTPStatus.OK:
        raise Symptom(cures.NOT_READY, found.get("detail") or f"The server answers with status {status}.")
    return "is accepted" if token else "is not needed"


def _version(server: Server) -> str:
    _, found = _asked(server, "versions")
    there, here = str(found.get("binderhub")).partition("+kiln.")[2], metadata.version("kiln-images")
    if there != here:
        raise Symptom(cures.VERSIONS_DIFFER, f"The server runs Kiln {there}, and this is {here}.", version=there)
    return f"{there}, as here"


def _readiness(server: Server) -> str:
    status, found = _asked(server, "health")
    checks = [check for check in found.get("checks") or [] if isinstance(check, dict)]
    away = [str(check.get("service")) for check in checks if not check.get("ok")]
    if status != HTTPStatus.OK or away:
        raise Symptom(cures.NOT_READY, f"Does not answer: {', '.join(away) or f'the server (status {status})'}.")
    return f"{', '.join(str(check.get('service')) for check in checks)} answer"


def _asked(server: Server, path: str) -> tuple[int, dict[str, Any]]:
    """Returns the status and the body; an empty body if it is not a JSON object."""
    try:
        answer = server.get(path)
    except CommandError as error:
        raise Symptom(_silent(error.__cause__), error) from None
    decode: Callable[[bytes], dict[str, Any]] = partial(msgspec.json.decode, type=dict[str, Any])
    try:
        return answer.status_code, decode(answer.content)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return answer.status_code, {}


def _silent(cause: BaseException | None) -> Cure:
    return cures.SERVER_CERTIFICATE if type(cause).__name__ == "SSLError" else cures.SERVER_DOWN
