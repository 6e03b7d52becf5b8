"""A person sees what a saved delivery would build, sends it, and gets just that."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.parts.installation import SMALL, Webhook
from tests.parts.system import System


def saved(folder: Path, webhook: Webhook) -> Path:
    """The request as it goes over the wire."""
    head = "".join(f"{name}: {value}\r\n" for name, value in webhook.headers.items())
    file = folder / "delivery.http"
    file.write_bytes(f"POST /webhooks/github HTTP/1.1\r\n{head}\r\n".encode() + webhook.body)
    return file


def told(text: str, name: str) -> str:
    found = re.search(rf"^ *{name}: (.*)$", text, re.MULTILINE)
    assert found, text
    return found[1]


def test_a_saved_webhook(system: System, tmp_path: Path) -> None:
    commit = system.commit("ada/saved", {"Dockerfile": SMALL})
    file = saved(tmp_path, system.push("ada/saved", commit))
    before = system.listed()
    checked = system.run("check", "--event", str(file))
    assert checked.returncode == 0, checked.stderr
    assert system.listed() == before
    sent = system.run("send", str(file), "--to", f"{system.url}webhooks/github")
    assert sent.returncode == 0, sent.stderr
    assert sent.stdout.startswith("202 ")
    name = told(checked.stdout, "build")
    assert name in sent.stdout
    build = system.ended(name)
    assert build["state"] == "succeeded"
    assert told(checked.stdout, "image") == f"{build['image']['repository']}:{build['image']['tag']}"
    assert told(checked.stdout, "tags") == "main"


@pytest.mark.parametrize("number", [1, 2])
def test_saved_events(system: System, tmp_path: Path, number: int) -> None:
    """One, or a batch."""
    path = f"ada/saved-{number}"
    data = {"repository": system.host.url(path), "commit": system.commit(path, {"Dockerfile": SMALL})}
    kind = "dev.kiln.build.requested.v1"
    events = [
        {"specversion": "1.0", "id": f"{n}", "source": "/hand", "type": kind, "data": data} for n in range(number)
    ]
    file = tmp_path / "event.json"
    file.write_text(json.dumps(events if number > 1 else events[0]))
    name = told(system.run("check", "--event", str(file)).stdout, "build")
    sent = system.run("send", str(file), "--to", f"{system.url}events")
    assert sent.stdout.lower() == f"202 accepted\nlocation: /api/v1/builds/{name}\n"
    assert len(system.ended(name)["causes"]) == number
