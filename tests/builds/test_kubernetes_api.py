"""The API client without a cluster: the meaning of answers, the address of the API server, the cost of the import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from builds.engines.kubernetes.api import (
    EXCERPT,
    Absent,
    AccessDenied,
    AlreadyExists,
    ApiError,
    Busy,
    Conflict409,
    Gone,
    Invalid,
    failure,
)

ROOT = Path(__file__).resolve().parents[2]


def status(code: int, reason: str, message: str, **more: object) -> bytes:
    said = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason}
    return msgspec.json.encode({**said, "message": message, **more})


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", Invalid),
        (403, "Forbidden", AccessDenied),
        (404, "NotFound", Absent),
        (405, "MethodNotAllowed", ApiError),
        (409, "AlreadyExists", AlreadyExists),
        (409, "Conflict", Conflict409),
        (410, "Expired", Gone),
        (413, "RequestEntityTooLarge", Invalid),
        (422, "Invalid", Invalid),
        (429, "TooManyRequests", Busy),
        (500, "InternalError", Busy),
        (504, "Timeout", Busy),
    ],
)
def test_an_error_is_told_by_status_and_reason_in_the_api_servers_words(
    code: int, reason: str, kind: type[ApiError]
) -> None:
    error = failure(code, status(code, reason, "It says so."))
    assert type(error) is kind
    assert str(error) == "It says so."
    assert error.status == code


def test_credentials_that_are_not_accepted_are_named() -> None:
    error = failure(401, status(401, "Unauthorized", "Unauthorized"))
    assert isinstance(error, AccessDenied)
    assert str(error) == "The Kubernetes API server rejected the credentials: Unauthorized"


@pytest.mark.parametrize(
    ("details", "header", "seconds"), [({"retryAfterSeconds": 7}, "3", 7), ({}, "3", 3), ({}, "soon", None)]
)
def test_it_says_when_to_come_back(details: dict[str, int], header: str, seconds: float | None) -> None:
    error = failure(429, status(429, "TooManyRequests", "Later.", details=details), header)
    assert isinstance(error, Busy)
    assert error.retry_after == seconds


def test_a_list_that_is_too_old_says_how_to_go_on() -> None:
    error = failure(410, status(410, "Expired", "Too old.", metadata={"continue": "here", "resourceVersion": "7"}))
    assert isinstance(error, Gone)
    assert error.token == "here"


def test_a_page_from_something_in_between_is_told_in_short() -> None:
    error = failure(503, b"<html>\n<h1>Bad\tday</h1>" + b"x" * 10_000)
    assert isinstance(error, Busy)
    assert str(error).startswith("The Kubernetes API server answered 503: <html> <h1>Bad day</h1>xxx")
    assert len(str(error)) < EXCERPT + 60


@given(code=st.integers(300, 599), body=st.binary(max_size=300), after=st.none() | st.text(max_size=5))
def test_any_answer_that_is_no_success_is_an_error_with_a_sentence(code: int, body: bytes, after: str | None) -> None:
    error = failure(code, body, after)
    assert str(error)
    assert error.status == code
    assert isinstance(error, Busy) == (code == 429 or code >= 500)


# Connecting, each time in a separate process: the client reads the environment on import. -----------------------------


def python(code: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("KUBE") and "proxy" not in name}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={**clean, **environment},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CONNECT = (
    "from builds.engines.kubernetes.api import Api; api = Api.connect(); print(api.host, api.path('jobs', 'a', 'b'))"
)


@pytest.mark.parametrize(
    ("named", "path"),
    [
        ({"namespace": "mine"}, "/apis/batch/v1/namespaces/mine/jobs/a/b"),
        ({}, "/apis/batch/v1/namespaces/default/jobs/a/b"),
    ],
)
def test_it_connects_as_kubectl_would(tmp_path: Path, named: dict[str, str], path: str) -> None:
    kubeconfig = tmp_path / "config"
    content = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "one", "user": "me", **named}}],
        "clusters": [{"name": "one", "cluster": {"server": "http://127.0.0.1:1/"}}],
        "users": [{"name": "me", "user": {"token": "secret"}}],
    }
    kubeconfig.write_text(yaml.safe_dump(content))
    assert python(CONNECT, KUBECONFIG=str(kubeconfig)) == f"http://127.0.0.1:1 {path}"


def test_where_there_is_no_cluster_it_says_where_it_looked(tmp_path: Path) -> None:
    code = (
        "from builds.engines.kubernetes.api import Api, ApiError\n"
        "try: Api.connect()\n"
        "except ApiError as error: print(error)"
    )
    told = python(code, KUBECONFIG=str(tmp_path / "none"))
    assert told.startswith("No Kubernetes API server found, neither by a service account (")
    assert "nor by a kubeconfig (" in told


def test_the_client_is_imported_when_it_connects_and_its_models_never(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from builds.engines.kubernetes import api, lease, watch\n"
        "assert 'kubernetes' not in sys.modules\n"
        "try: api.Api.connect()\n"
        "except api.ApiError: pass\n"
        "from kubernetes.client.configuration import Configuration\n"
        "api.Api(Configuration(host='http://127.0.0.1:1'), 'x')\n"
        "print([name for name in sys.modules if name.startswith('kubernetes.client.models.')][:3])"
    )
    assert python(code, KUBECONFIG=str(tmp_path / "none")) == "[]"
