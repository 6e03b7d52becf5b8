"""The least that answers: one empty Flask route, in the server that Kiln's web runs in."""

from __future__ import annotations

import sys

from flask import Flask

app = Flask("empty")


@app.post("/")
def accept() -> tuple[str, int]:
    return "", 202


@app.get("/")
def ready() -> tuple[str, int]:
    return "", 200


def command(port: int) -> list[str]:
    """Starts it in gunicorn with web's kind and number of threads."""
    options = ["--worker-class=gthread", "--threads=128", "--keep-alive=65", "--no-control-socket"]
    return [sys.executable, "-m", "gunicorn", f"--bind=127.0.0.1:{port}", *options, f"{__name__}:app"]
