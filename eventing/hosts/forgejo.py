"""Webhooks of Forgejo: those of Gitea with additional names.

Forgejo sends `X-Forgejo-…` beside `X-Gitea-…`, with the same values. Kiln prefers the former if present; a valid
signature in one header does not replace an invalid one in the other.

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
