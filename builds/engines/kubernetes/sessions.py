"""The signed-out sessions of the pages, for all replicas: one ConfigMap, `<release>-signed-out`.

Its keys are digests, which cannot be used to sign in; its values are the sessions' expiry times (Unix time). Each
addition removes the expired ones, so its size is the number of sign-outs in half a day.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from builds.engines.kubernetes.api import Absent, AlreadyExists, Api
from builds.engines.kubernetes.records import Release, owner_reference
from builds.engines.kubernetes.shared import SingleFlight
from builds.engines.kubernetes.store import translated

FRESH = 2.0
"""Seconds for which another replica may not know of a sign-out."""


class KubernetesSessions:
    """`anchor` names the ConfigMap that owns the whole release."""

    def __init__(self, api: Api, release: Release, *, anchor: str | None) -> None:
        self._api, self._release, self._anchor = api, release, anchor
        self._name = f"{release.name}-signed-out"
        self._seen: SingleFlight[frozenset[str]] = SingleFlight(FRESH, api.missed)

    def ended(self, id: str) -> bool:  # noqa: A002
        """Raises Unavailable."""
        with translated():
            return id in self._seen.get(self._name, lambda: frozenset(self._read()))

    def end(self, id: str, expiry: float) -> None:  # noqa: A002
        """Raises Unavailable."""
        with translated():
            known, now = self._read(), time.time()
            old: dict[str, str | None] = {key: None for key, until in known.items() if float(until) < now}
            self._write(old | {id: str(math.ceil(expiry))})
        self._seen.clear()

    def _read(self) -> dict[str, str]:
        try:
            return dict(self._api.read("configmaps", self._name).get("data") or {})
        except Absent:
            return {}

    def _write(self, data: Mapping[str, str | None]) -> None:
        try:
            self._api.patch("configmaps", self._name, {"data": data})
        except Absent:
            self._create({key: value for key, value in data.items() if value is not None})

    def _create(self, data: Mapping[str, str]) -> None:
        anchor = self._anchor and self._api.read("configmaps", self._anchor, metadata_only=True)
        metadata = {
            "name": self._name,
            "labels": self._release.labels("sessions"),
            "ownerReferences": [owner_reference(anchor, "v1", "ConfigMap")] if anchor else [],
        }
        try:
            self._api.create(
                "configmaps", {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
            )
        except AlreadyExists:
            self._api.patch("configmaps", self._name, {"data": data})
