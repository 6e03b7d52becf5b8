"""The triggers for the Hub's events in docs/jupyterhub.md build exactly the intended servers."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import msgspec
import pytest
import yaml

from builds.triggers import TriggerRule, requested_builds
from eventing.event import Event
from eventing.http import decode
from integrations.jupyterhub.kiln_hub import cloud_event
from tests.builds.rules import load

PAGE = (Path(__file__).parents[2] / "docs/jupyterhub.md").read_text()
PLUGIN = (Path(__file__).parents[2] / "docs/jupyterhub-plugin.md").read_text()
SHOWN = next(block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL) if block.startswith("triggers:"))
TRIGGERS = load(msgspec.convert(yaml.safe_load(SHOWN)["triggers"], tuple[TriggerRule, ...]))


def told(user: str, server: str, action: str = "start") -> Event:
    """Return the event that the plug-in sends."""
    schema = "https://schema.jupyter.org/jupyterhub/events/server-action"
    entry = {"__schema__": schema, "action": action, "username": user, "servername": server}
    sent = cloud_event(logging.LogRecord("hub", logging.INFO, "", 0, entry, None, None), "https://hub.example/")
    assert sent is not None
    (event,) = decode(sent.headers, sent.body)
    return event


@pytest.mark.parametrize(("user", "server"), [("ada", "stats"), ("grace", ""), ("grace", "other")])
def test_a_named_server_or_user_has_the_course_built(user: str, server: str) -> None:
    (found,) = requested_builds(TRIGGERS, told(user, server))
    assert (found.trigger, found.repository, found.ref) == ("courses", "https://github.com/our-org/stats", "main")
    assert [tag.text() for tag in found.tags] == ["current"]
    assert found.push is None


@pytest.mark.parametrize(
    ("user", "server", "action"),
    [("ada", "", "start"), ("ada", "statistics", "start"), ("graces", "", "start"), ("grace", "stats", "stop")],
)
def test_others_build_nothing(user: str, server: str, action: str) -> None:
    assert requested_builds(TRIGGERS, told(user, server, action)) == []


def test_the_data_can_name_the_course() -> None:
    rule = {
        "name": "each",
        "filters": [{"prefix": {"type": "org.jupyterhub.server."}}],
        "build": {"repository": "https://github.com/our-org/{data.servername}"},
    }
    (found,) = requested_builds(load([msgspec.convert(rule, TriggerRule)]), told("ada", "algebra"))
    assert (found.repository, found.ref) == ("https://github.com/our-org/algebra", None)


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE + PLUGIN, re.DOTALL))
def test_the_page_shows_python(block: str) -> None:
    compile(block, "docs/jupyterhub.md", "exec")


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_the_page_shows_yaml(block: str) -> None:
    assert isinstance(yaml.safe_load(block), dict)
