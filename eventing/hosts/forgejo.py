"""Forgejo's webhooks: Gitea's under names of its own.

Forgejo sends `X-Forgejo-…` beside `X-Gitea-…`, with the same values. Its own are read where they are there; a wrong
signature in one is not made good by a right one in the other.

https://forgejo.org/docs/latest/user/webhooks/
"""

from __future__ import annotations

from eventing.hosts.gitea import Gitea


class Forgejo(Gitea):
    word = "forgejo"
    own_header = "x-forgejo-event"
    pushes = frozenset({"com.forgejo.push"})
    requests: tuple[str, ...] = (
        "com.forgejo.pull_request",
        "com.forgejo.pull_request_sync",
        "com.forgejo.pull_request_label",
    )
    prefixes = ("X-Forgejo", "X-Gitea")
