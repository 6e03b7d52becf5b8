"""The folder of secrets: valid files, refused files, and rotations that take effect immediately."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from builds.clients.git import credentials
from kiln.errors import SecretsError
from kiln.secrets import Secrets

WORDS, SINKS, HOSTS = ("github",), ("hub",), ("git.example",)


def put(root: Path, name: str, content: bytes | str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def problems(root: Path) -> str:
    with pytest.raises(SecretsError) as caught:
        Secrets(root).check(words=WORDS, sinks=SINKS, hosts=HOSTS)
    return str(caught.value)


def test_without_a_folder_there_are_no_secrets() -> None:
    secrets = Secrets(None)
    secrets.check(words=WORDS, sinks=SINKS, hosts=HOSTS)
    assert (secrets.webhooks("github"), secrets.api_tokens(), secrets.headers("hub")) == ((), {}, {})
    assert credentials(secrets.git_credentials) == ()


def test_a_file_is_the_secret_without_one_trailing_newline(tmp_path: Path) -> None:
    put(tmp_path, "webhooks/github/a", "two words\n")
    put(tmp_path, "webhooks/github/raw", b"\xff\x00")
    assert Secrets(tmp_path).webhooks("github") == (b"two words", b"\xff\x00")


@pytest.mark.parametrize("name", ["git-credentials", "git-credentials/host"])
def test_git_credentials_are_a_file_or_a_folder_of_files(tmp_path: Path, name: str) -> None:
    path = put(tmp_path, name, "https://ada:canary-0b1e@git.example.edu/team\n")
    secrets = Secrets(tmp_path)
    secrets.check(words=WORDS, sinks=SINKS, hosts=HOSTS)
    (found,) = credentials(secrets.git_credentials)
    assert (found.user, found.password) == ("ada", "canary-0b1e")
    path.write_text("\n")
    assert problems(tmp_path) == f"{path}: is empty"


def test_every_file_of_a_route_is_valid(tmp_path: Path) -> None:
    put(tmp_path, "webhooks/github/new", "b")
    put(tmp_path, "webhooks/github/old", "a")
    assert sorted(Secrets(tmp_path).webhooks("github")) == [b"a", b"b"]


def test_a_file_that_changes_holds_at_once(tmp_path: Path) -> None:
    path = put(tmp_path, "api-tokens/ci", "one")
    secrets = Secrets(tmp_path)
    assert secrets.api_tokens() == {"ci": b"one"}
    path.write_text("two!")
    assert secrets.api_tokens() == {"ci": b"two!"}
    put(tmp_path, "api-tokens/other", "three")
    assert secrets.api_tokens() == {"ci": b"two!", "other": b"three"}
    path.unlink()
    assert secrets.api_tokens() == {"other": b"three"}


def test_a_rotation_as_kubernetes_does_it(tmp_path: Path) -> None:
    """The files are symlinks through `..data`; a rename swaps it for another folder."""
    mount = tmp_path / "webhooks" / "github"
    put(mount, "..2026_1/secret", "old")
    (mount / "..data").symlink_to("..2026_1")
    (mount / "secret").symlink_to("..data/secret")
    secrets = Secrets(tmp_path)
    secrets.check(words=WORDS, sinks=SINKS, hosts=HOSTS)
    assert secrets.webhooks("github") == (b"old",)
    put(mount, "..2026_2/secret", "new")
    (mount / "..tmp").symlink_to("..2026_2")
    (mount / "..tmp").replace(mount / "..data")
    assert secrets.webhooks("github") == (b"new",)


def test_headers_are_lines(tmp_path: Path) -> None:
    put(tmp_path, "headers/hub", "Authorization: Bearer a:b\r\nX-Kiln:  1 \n")
    assert Secrets(tmp_path).headers("hub") == {"Authorization": "Bearer a:b", "X-Kiln": "1"}
    assert Secrets(tmp_path).headers("other") == {}


def test_what_is_wrong_is_told_together_and_never_what_a_file_holds(tmp_path: Path) -> None:
    put(tmp_path, "api-tokens/ci", "\n")
    put(tmp_path, "headers/hub", "canary-7c1e without a colon")
    put(tmp_path, "headers/hubb", "A: b")
    put(tmp_path, "webhooks/github", "canary-91ff")
    put(tmp_path, "webhooks/gitlap/x", "s")
    put(tmp_path, "api-token/ci", "s")
    told = problems(tmp_path)
    assert f"{tmp_path}/api-tokens/ci: is empty" in told
    assert f"{tmp_path}/headers/hub: line 1 is not of the form `Name: value`" in told
    assert f"{tmp_path}/headers/hubb: nothing reads this; known here: hub" in told
    assert f"{tmp_path}/webhooks/github: must be a folder of secrets" in told
    assert f"{tmp_path}/webhooks/gitlap: nothing reads this" in told
    assert f"{tmp_path}/api-token: nothing reads this" in told
    assert "canary" not in told


def test_what_lets_in_at_a_host_is_a_token_or_lines_of_gits_store(tmp_path: Path) -> None:
    """The keys of a Secret in Kubernetes cannot contain a colon, so `_` may precede the port in a file name."""
    put(tmp_path, "statuses/git.example", "a-token\n")
    put(tmp_path, "statuses/other.example_8443", "https://kiln:token@other.example:8443/lab\n")
    put(tmp_path, "statuses/spare.example:8443", "another")
    secrets = Secrets(tmp_path)
    secrets.check(words=WORDS, sinks=SINKS, hosts=("git.example", "other.example:8443", "spare.example:8443"))
    assert secrets.statuses("git.example") == "a-token"
    assert secrets.statuses("other.example:8443") == "https://kiln:token@other.example:8443/lab"
    assert secrets.statuses("spare.example:8443") == "another"
    assert secrets.statuses("absent.example") is None


def test_what_lets_in_nowhere_is_told(tmp_path: Path) -> None:
    put(tmp_path, "statuses/git.exampel", "canary")
    put(tmp_path, "statuses/git.example", "https://nobody-canary.example/lab")
    told = problems(tmp_path)
    assert f"{tmp_path}/statuses/git.exampel: nothing reads this; known here: git.example" in told
    assert f"{tmp_path}/statuses/git.example: line 1 is no credential" in told
    put(tmp_path, "statuses/git.example", "two canary\nlines")
    assert f"{tmp_path}/statuses/git.example: holds several lines" in problems(tmp_path)
    assert "canary" not in told


def test_the_folder_must_be_there(tmp_path: Path) -> None:
    assert "is not a folder" in problems(tmp_path / "absent")


def test_a_file_that_becomes_empty_counts_for_nothing_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = put(tmp_path, "api-tokens/ci", "one")
    put(tmp_path, "api-tokens/other", "two")
    secrets = Secrets(tmp_path)
    assert len(secrets.api_tokens()) == 2
    path.write_text("")
    with caplog.at_level(logging.ERROR):
        assert secrets.api_tokens() == secrets.api_tokens() == {"other": b"two"}
    assert [record.getMessage() for record in caplog.records] == [f"The secret {path} is ignored: is empty"]


def test_it_never_shows_a_value(tmp_path: Path) -> None:
    put(tmp_path, "api-tokens/ci", "canary-55aa")
    secrets = Secrets(tmp_path)
    secrets.api_tokens()
    assert "canary" not in f"{secrets!r} {secrets}"
