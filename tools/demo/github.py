"""The post-receive hook of the demo's repository: does what GitHub does after a push.

For each ref it sends one `push` event (https://docs.github.com/webhooks/webhook-events-and-payloads#push), signed with
the webhook's secret. A Git host does not wait for long, and does not repeat: nor does this.

    python -m tools.demo.github HOOK_URL SECRET_FILE REPOSITORY_URL  < "before after ref" lines, in the bare repository
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

MOST_COMMITS = 2048
EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def payload(clone_url: str, before: str, after: str, ref: str) -> dict[str, Any]:
    """Return GitHub's payload for the push of one ref. The current folder must be the bare repository."""
    created, deleted = not before.strip("0"), not after.strip("0")
    forced = not created and not deleted and _git("merge-base", before, after) != before
    new = "" if deleted else _git("rev-list", "--reverse", f"--max-count={MOST_COMMITS}", after, *_known(before))
    commits = [_commit(clone_url, one) for one in new.split()]
    page = clone_url.removesuffix(".git")
    return {
        "ref": ref,
        "before": before,
        "after": after,
        "base_ref": None,
        "created": created,
        "deleted": deleted,
        "forced": forced,
        "compare": f"{page}/compare/{before[:12]}...{after[:12]}",
        "commits": commits,
        "head_commit": None if deleted else _commit(clone_url, _git("rev-parse", f"{after}^{{commit}}")),
        "pusher": {"name": "ada", "email": "ada@example.org"},
        "sender": {"login": "ada", "type": "User"},
        "repository": {
            "id": int(hashlib.sha256(page.encode()).hexdigest()[:8], 16),
            "name": page.rsplit("/", 1)[-1],
            "full_name": "/".join(page.split("/")[-2:]),
            "owner": {"login": page.split("/")[-2], "type": "Organization"},
            "private": False,
            "url": page,
            "html_url": page,
            "clone_url": clone_url,
            "default_branch": _git("symbolic-ref", "--short", "HEAD"),
            "pushed_at": int(time.time()),
        },
    }


def delivery(secret: bytes, event: str, body: bytes) -> dict[str, str]:
    """The headers of one delivery (https://docs.github.com/webhooks/using-webhooks/validating-webhook-deliveries)."""
    return {
        "Content-Type": "application/json",
        "User-Agent": "GitHub-Hookshot/demo",
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": str(uuid.uuid4()),
        "X-Hub-Signature-256": f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}",
    }


def _commit(clone_url: str, commit: str) -> dict[str, Any]:
    tree, when, name, email, message = _git("log", "-1", "--format=%T%n%cI%n%an%n%ae%n%B", commit).split("\n", 4)
    parent = _git("rev-list", "--parents", "-1", commit).split()[1:2] or [EMPTY_TREE]
    changes = _git("diff-tree", "-r", "--no-renames", "--name-status", *parent, commit).splitlines()
    paths = {letter: [line[2:] for line in changes if line.startswith(f"{letter}\t")] for letter in "ADM"}
    return {
        "id": commit,
        "tree_id": tree,
        "distinct": True,
        "message": message.strip(),
        "timestamp": when,
        "url": f"{clone_url.removesuffix('.git')}/commit/{commit}",
        "author": {"name": name, "email": email},
        "committer": {"name": name, "email": email},
        "added": paths["A"],
        "removed": paths["D"],
        "modified": paths["M"],
    }


def _known(before: str) -> list[str]:
    return [f"^{before}"] if before.strip("0") else []


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def main(hook_url: str, secret_file: str, clone_url: str) -> None:
    secret = Path(secret_file).read_bytes().rstrip(b"\n")
    for line in sys.stdin:
        before, after, ref = re.split(r"\s+", line.strip(), maxsplit=2)
        body = json.dumps(payload(clone_url, before, after, ref)).encode()
        request = urllib.request.Request(hook_url, body, delivery(secret, "push", body))
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                print(f"webhook: {answer.status} {answer.read().decode().strip()}")
        except urllib.error.HTTPError as error:
            print(f"webhook: {error.code} {error.read().decode(errors='replace').strip()}")
        except OSError as error:
            print(f"webhook: no answer ({error})")


if __name__ == "__main__":
    main(*sys.argv[1:])
