"""Single pods of a release: a command in one, and requests to each replica of web.

The API server's proxy for pods reaches a chosen replica, because it balances nothing. Through the Service, any replica
could answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing

import requests

from kiln.client import Message, messages
from tests.parts.cluster import Cluster, Object, Release

PATIENCE = 120
"""Seconds of silence after which a stream counts as broken; there is a comment every ten."""


def within(cluster: Cluster, pod: Object, *command: str, container: str = "") -> str:
    """The output of a command in the pod. Raises MachineError where it fails."""
    metadata = pod["metadata"]
    chosen = [f"--container={container}"] if container else []
    return cluster.kubectl("exec", f"--namespace={metadata['namespace']}", metadata["name"], *chosen, "--", *command)


class Pod:
    """A pod's port over HTTP, past the Services and proxies in front of it."""

    def __init__(self, cluster: Cluster, pod: Object, port: int) -> None:
        metadata = pod["metadata"]
        self.name = str(metadata["name"])
        self._cluster = cluster
        self._base = f"/api/v1/namespaces/{metadata['namespace']}/pods/{self.name}:{port}/proxy"

    def get(self, path: str, *, stream: bool = False, **headers: str) -> requests.Response:
        return self._cluster.api("GET", f"{self._base}/{path}", headers=headers, stream=stream, timeout=PATIENCE)


class Replica(Pod):
    """One of web's pods."""

    def text(self, build: str) -> str:
        """The log as it is now."""
        answer = self.get(f"api/v1/builds/{build}/log")
        assert answer.headers["Content-Type"].startswith("text/plain"), answer.text
        return answer.text

    def follow(self, build: str, last: str | None = None) -> Iterator[Message]:
        """The log and the states to the end of the stream; `last` is the id to go on after."""
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
        with closing(self.get(f"api/v1/builds/{build}/log", stream=True, **headers)) as answer:
            assert answer.status_code == 200, answer.text
            yield from messages(answer.iter_lines(chunk_size=None))


def replicas(release: Release) -> list[Replica]:
    return [Replica(release.cluster, pod, 8000) for pod in release.objects("pods", "web")]


def lines(seen: Iterable[Message]) -> Iterator[tuple[str, str]]:
    """Id and text of each line of a log."""
    for message in seen:
        if message.kind == "log":
            assert message.id
            yield message.id, str(message.data["line"])
