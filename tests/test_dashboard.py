"""Grafana's schema of dashboards, panels and queries holds for the chart's dashboard.

The models of Grafana's Foundation SDK are generated from that schema. They ignore unknown fields and check no type. So
the tests compare a dashboard with the fields that they have read, and each value with the annotation of its field.
"""

from __future__ import annotations

import copy
import enum
import json
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

DASHBOARD = json.loads((Path(__file__).parents[1] / "chart" / "monitoring" / "dashboard.json").read_text())

register_default_plugins()  # panels and queries of Grafana's own plug-ins


def findings(dashboard: dict[str, Any]) -> list[str]:
    """Where the dashboard differs from the schema."""
    try:
        model = Dashboard.from_json(dashboard)
    except (AttributeError, KeyError, TypeError) as error:
        return [repr(error)]
    return [*differences(dashboard, json.loads(json.dumps(model, cls=JSONEncoder))), *mistyped(model)]


def differences(given: Any, known: Any, path: str = "$") -> Iterator[str]:
    """Fields that the models have not read, and required strings that they have replaced by an empty one."""
    if isinstance(given, dict) and isinstance(known, dict):
        yield from (f"{path}.{name}: unknown" for name in given.keys() - known.keys())
        yield from (f"{path}.{name}: missing" for name in known.keys() - given.keys() if known[name] == "")
        for name in given.keys() & known.keys():
            yield from differences(given[name], known[name], f"{path}.{name}")
    elif isinstance(given, list) and isinstance(known, list) and len(given) == len(known):
        for number, pair in enumerate(zip(given, known, strict=True)):
            yield from differences(*pair, f"{path}[{number}]")
    elif given != known:
        yield f"{path}: {given!r} was read as {known!r}"


def mistyped(value: Any, path: str = "$") -> Iterator[str]:
    """Values that do not fit the annotation of their field, below a model or a container of models."""
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from mistyped(one, f"{path}[{number}]")
    elif isinstance(value, dict):
        for name, one in value.items():
            yield from mistyped(one, f"{path}.{name}")
    elif type(value).__module__.startswith("grafana_foundation_sdk.models."):
        for name, hint in typing.get_type_hints(type(value)).items():
            one = getattr(value, name)
            yield from [] if fits(one, hint) else [f"{path}.{name}: {one!r} is not {hint}"]
            yield from mistyped(one, f"{path}.{name}")


def fits(value: Any, hint: Any) -> bool:
    arguments = typing.get_args(hint)
    kinds: dict[Any, Callable[[], bool]] = {
        typing.Union: lambda: any(fits(value, one) for one in arguments),
        typing.Literal: lambda: value in arguments,
        list: lambda: isinstance(value, list) and all(fits(one, arguments[0]) for one in value),
        dict: lambda: isinstance(value, dict) and all(fits(one, arguments[1]) for one in value.values()),
    }
    if origin := typing.get_origin(hint):
        return kinds[origin]()
    return hint in (object, Any) or fits_class(value, hint)


def fits_class(value: Any, kind: type) -> bool:
    """JSON has one kind of number, and words in place of the members of an enumeration."""
    if issubclass(kind, enum.Enum):
        return value in {member.value for member in kind}
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)


def test_the_dashboard_has_grafana_s_schema() -> None:
    assert findings(DASHBOARD) == []


def changed(*path: str | int, **values: object) -> dict[str, Any]:
    """The dashboard with other values in the object at the path; without those that are `None`."""
    dashboard = copy.deepcopy(DASHBOARD)
    place: Any = dashboard
    for step in path:
        place = place[step]
    for name, value in values.items():
        place.pop(name, None)
        place |= {} if value is None else {name: value}
    return dashboard


STAT, SERIES = (
    next(i for i, one in enumerate(DASHBOARD["panels"]) if one["type"] == kind) for kind in ("stat", "timeseries")
)


@pytest.mark.parametrize(
    ("dashboard", "finding"),
    [
        (changed(panel=[]), "$.panel: unknown"),
        (changed("panels", STAT, "options", colurMode="value"), ".options.colurMode: unknown"),
        (changed("panels", STAT, "options", colorMode="purple"), "'purple' is not"),
        (changed("panels", STAT, "fieldConfig", "defaults", units="s"), ".defaults.units: unknown"),
        (changed("panels", STAT, "gridPos", w="4"), "'4' is not"),
        (changed("panels", STAT, "gridPos", w=True), "True is not"),
        (changed("panels", STAT, title=7), "7 is not"),
        (changed("panels", STAT, type=None), "KeyError('type')"),
        (changed("panels", STAT, "targets", 0, refId=None), ".refId: missing"),
        (changed("panels", STAT, "targets", 0, expr=None), ".expr: missing"),
        (changed("panels", STAT, datasource="prometheus"), "has no attribute"),
        (changed("panels", SERIES, "options", legend=3), "TypeError"),
        (changed("panels", SERIES, "fieldConfig", "defaults", custom={"fillOpacity": "10"}), "'10' is not"),
        (changed("templating", "list", 0, type="data"), "'data' is not"),
        (changed("templating", "list", 0, name=None), ".name: missing"),
    ],
)
def test_a_mistake_in_a_dashboard_is_found(dashboard: dict[str, Any], finding: str) -> None:
    assert finding in " ".join(findings(dashboard))


def test_the_dashboard_has_what_the_schema_cannot_ask_for() -> None:
    """Source: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/"""
    assert {"title", "uid", "schemaVersion", "panels", "templating", "time"} <= {*DASHBOARD}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [panel["gridPos"] for panel in panels]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len({*cells}) == len(cells), "no two panels lie upon each other"
    assert max(x for x, _ in cells) < 24
    for panel in panels:
        assert panel["type"] in ("timeseries", "stat")
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])
