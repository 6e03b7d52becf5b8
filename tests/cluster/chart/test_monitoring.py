"""Check alerts and dashboard with Prometheus' own tool and against the existing metrics.

`tests/test_dashboard.py` holds the dashboard against Grafana's schema.
"""

from __future__ import annotations

import importlib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import yaml

from tests.cluster.chart.helm import CHART, ROOT, VALUES, render
from tests.parts import machine

RULES = CHART / "monitoring/rules.yaml"
DASHBOARD = json.loads((CHART / "monitoring/dashboard.json").read_text())
ALERTS = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str, stdin: bytes = b"") -> str:
    """Run promtool and return its output. Fails unless promtool succeeds."""
    program = machine.program("promtool", package="prometheus")
    done = subprocess.run([str(program), *arguments], input=stdin, capture_output=True, check=False, timeout=60)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    return said


def samples() -> set[str]:
    """Return the sample names of Kiln's metrics."""
    for module in ("builds.metrics", "handlers.metrics"):
        importlib.import_module(module)
    return {
        name
        for metric in prometheus_client.REGISTRY.collect()
        if metric.name.startswith("kiln_")
        for name in _samples(metric.name, metric.type)
    }


def _samples(name: str, kind: str) -> Iterator[str]:
    if kind == "histogram":
        yield from (f"{name}_bucket", f"{name}_count", f"{name}_sum")
    else:
        yield f"{name}_total" if kind == "counter" else name


def used(expression: str) -> set[str]:
    return {*re.findall(r"\bkiln_\w+", expression)}


def queries() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        yield from (target["expr"] for target in panel["targets"])


def test_prometheus_takes_the_rules() -> None:
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(RULES))


def test_prometheus_has_nothing_to_say_about_the_metrics() -> None:
    samples()
    assert promtool("check", "metrics", stdin=prometheus_client.generate_latest()) == ""


def test_alerts_and_dashboard_use_metrics_that_there_are_and_the_dashboard_shows_all() -> None:
    known = samples()
    for alert in ALERTS:
        assert used(alert["expr"]) <= known, alert["alert"]
        assert used(alert["expr"])
    shown = set[str]().union(*(used(query) for query in queries()))
    assert shown <= known
    shown_metrics = {re.sub(r"_(?:bucket|count|sum)$", "", name) for name in shown}
    assert shown_metrics == {re.sub(r"_(?:bucket|count|sum)$", "", name) for name in known}


def test_prometheus_understands_the_dashboard_s_queries(tmp_path: Path) -> None:
    """Promtool checks each query as a recording rule with its variable filled in."""
    rules = [
        {"record": f"dashboard:{number}", "expr": query.replace("$namespace", "kiln")}
        for number, query in enumerate(queries())
    ]
    file = tmp_path / "dashboard.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(file))


ZERO = "0x120"
NORMAL = {
    "kiln_leader": "1x120",
    "kiln_dead_letters_total": "7x120",
    "kiln_queue_age_seconds": "60x120",
    'kiln_slots{state="free"}': "2x120",
    'kiln_builds{state="queued"}': "1x120",
    'kiln_builds_ended_total{reason="infrastructure",state="failed"}': "3x120",
    "kiln_records_put_aside": ZERO,
    "kiln_sync_failing": ZERO,
    'kiln_watch_restarts_total{kind="pods"}': "5x120",
    'kiln_http_request_seconds_count{status="202"}': "0+60x120",
    'kiln_http_request_seconds_count{status="503"}': "0+1x120",
}
"""Two hours of samples, one per minute, of a healthy installation."""

WRONG = {
    "KilnHasNoLeader": ("kiln_leader", ZERO),
    "KilnLosesEvents": ("kiln_dead_letters_total", "7x100 8x20"),
    "KilnQueueIsOld": ("kiln_queue_age_seconds", "1801x120"),
    "KilnHasNoSlots": ('kiln_slots{state="free"}', ZERO),
    "KilnInfrastructureFails": ('kiln_builds_ended_total{reason="infrastructure",state="failed"}', "3x90 9x30"),
    "KilnRecordsPutAside": ("kiln_records_put_aside", "1x120"),
    "KilnSyncFails": ("kiln_sync_failing", "1x120"),
    "KilnWatchesFail": ('kiln_watch_restarts_total{kind="pods"}', "0+1x120"),
    "KilnAnswersWithErrors": ('kiln_http_request_seconds_count{status="503"}', "0+10x120"),
}


def test_each_alert_fires_when_that_is_wrong_and_no_other_does(tmp_path: Path) -> None:
    assert {*WRONG} == {alert["alert"] for alert in ALERTS}
    cases = [*WRONG.items(), ("nothing", ("kiln_leader", "1x120"))]
    tests = [_case(name, {**NORMAL, series: values}) for name, (series, values) in cases]
    file = tmp_path / "test.yaml"
    content = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    file.write_text(yaml.safe_dump(content))
    promtool("test", "rules", str(file))


def _case(wrong: str, series: dict[str, str]) -> dict[str, Any]:
    """Return a case of `promtool test rules` in which only the alert `wrong` fires at the end."""
    given = []
    for name, values in series.items():
        metric, brace, labels = name.partition("{")
        given.append({"series": f'{metric}{{namespace="kiln",{labels if brace else "}"}', "values": values})
    firing = 'count by (alertname) (ALERTS{alertstate="firing"})'
    expected = [{"labels": f'{{alertname="{wrong}"}}', "value": 1}] if wrong in WRONG else []
    return {
        "name": wrong,
        "interval": "1m",
        "input_series": given,
        "promql_expr_test": [{"expr": firing, "eval_time": "119m", "exp_samples": expected}],
    }


@pytest.mark.parametrize("alert", [alert["alert"] for alert in ALERTS])
def test_every_alert_is_documented(alert: str) -> None:
    assert f"| `{alert}` |" in (ROOT / "docs/metrics.md").read_text()


def test_the_chart_installs_both_where_it_is_told_to() -> None:
    release = render(VALUES["everything"])
    [rule] = release.of("PrometheusRule")
    assert rule["spec"] == yaml.safe_load(RULES.read_text())
    assert rule["metadata"]["labels"]["release"] == "prometheus"
    [dashboard] = [one for one in release.of("ConfigMap") if "kiln.json" in one.get("data", {})]
    assert json.loads(dashboard["data"]["kiln.json"]) == DASHBOARD
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    plain = render()
    assert plain.of("PrometheusRule") == []
    assert not [one for one in plain.of("ConfigMap") if "kiln.json" in one.get("data", {})]
