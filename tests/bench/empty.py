"""The least that answers: an empty Flask route in the server of Kiln's web, and a route that also writes."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING

from flask import Flask, request

if TYPE_CHECKING:
    from builds.engines.kubernetes.api import Api

app = Flask("empty")
NAMESPACE = "KILN_BENCH_NAMESPACE"


@app.post("/")
def accept() -> tuple[str, int]:
    return "", 202


@app.post("/configmaps")
def write() -> tuple[str, int]:
    """Create the ConfigMap in the body with web's client."""
    _api().create("configmaps", request.get_json())
    return "", 202


@cache
def _api() -> Api:
    from builds.engines.kubernetes.api import Api  # noqa: PLC0415 (an empty app has nothing of it)

    return Api.connect(namespace=os.environ[NAMESPACE])


@app.get("/")
def ready() -> tuple[str, int]:
    return "", 200


def command(port: int) -> list[str]:
    """Return the command for this app in gunicorn, with web's kind and number of threads."""
    options = ["--worker-class=gthread", "--threads=128", "--keep-alive=65", "--no-control-socket"]
    return [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", *options, f"{__name__}:app"]
