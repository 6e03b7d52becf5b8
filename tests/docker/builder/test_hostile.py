"""Repositories that lead elsewhere, or try to. Nothing of them is fetched, and a sentence says why."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import pytest

from builds.build import Reason, Request
from builds.repository import is_public
from tests.docker.builder.conftest import asked
from tests.parts.building import Attempt, Builder, put_busybox
from tests.parts.githost import GitHost, commit, git
from tests.parts.registry import Registry

COMMIT = "1" * 40


def refused(attempt: Attempt) -> str:
    """The message of an attempt that failed by the repository's fault."""
    result = attempt.result
    assert attempt.status == 64, result
    assert result.reason is Reason.REPOSITORY
    assert result.image is None
    assert attempt.members() == []
    assert attempt.left_behind() == []
    return result.message or ""


def named(url: str, registry: Registry, head: str = COMMIT) -> Request:
    return Request(repository=url, clone_url=url, commit=head, image=f"{registry.host}/hostile/image")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("--upload-pack=touch /tmp/kiln-owned", "space"),
        ("--upload-pack=touch${IFS}/tmp/kiln-owned", "must not begin with '-'"),
        ("ext::sh -c touch% /tmp/kiln-owned", "space"),
        ("ext::touch%20/tmp/kiln-owned", "remote helpers"),
        ("file:///etc", "Use https"),
        ("https://ada:canary-pw@example.org/a/b", "must not contain a user name or password"),
        ("http://169.254.169.254/latest/meta-data", "private network"),
        ("https://2130706433/a/b", "private network"),
        ("https://[::ffff:127.0.0.1]/a/b", "private network"),
        ("git@example.org:ada/private.git", "https://example.org/ada/private"),
    ],
)
def test_an_address_is_refused_before_git_sees_it(
    url: str, sentence: str, builder: Builder, host: GitHost, registry: Registry
) -> None:
    attempt = builder.run(named(url, registry))
    assert sentence in refused(attempt)
    assert "canary-pw" not in attempt.everything
    assert not Path("/tmp/kiln-owned").exists()


def test_a_name_that_leads_to_this_machine(builder: Builder, host: GitHost, registry: Registry) -> None:
    url = f"https://{private_name()}:{host.port}/a/b"
    before = len(host.requests)
    attempt = builder.run(named(url, registry), allowed_repositories=("https://**",))
    assert "leads to" in refused(attempt)
    assert len(host.requests) == before


def private_name() -> str:
    """A name that does not look private, and resolves to an address of this machine or its network."""
    for name in (socket.gethostname(), "ip6-localhost", "ip6-loopback"):
        try:
            addresses = {entry[4][0] for entry in socket.getaddrinfo(name, None)}
        except OSError:
            continue
        if not any(is_public(ipaddress.ip_address(str(address).partition("%")[0])) for address in addresses):
            return name
    pytest.skip("no name in /etc/hosts leads to this machine")


@pytest.fixture
def part(path: str, host: GitHost, tmp_path: Path) -> tuple[str, str]:
    """A repository to be used as a submodule: its path and its commit."""
    (tmp_path / "part").mkdir()
    put_busybox(tmp_path / "part")
    return f"{path}-part", host.create(f"{path}-part", tmp_path / "part")


def with_submodule(host: GitHost, path: str, content: Path, address: str, target: str) -> str:
    """A repository whose image is made of the content of its submodule `part`; returns its commit."""
    content.mkdir()
    (content / "Dockerfile").write_text('FROM scratch\nCOPY part/busybox /bin/sh\nRUN echo "from the submodule"\n')
    (content / ".gitmodules").write_text(f'[submodule "part"]\n\tpath = part\n\turl = {address}\n')
    host.create(path)
    return commit(host.bare(path), content, links={"part": target})


@pytest.mark.parametrize("spelling", ["absolute", "relative"])
def test_a_permitted_submodule_is_built(
    spelling: str, path: str, part: tuple[str, str], builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    address = host.url(part[0]) if spelling == "absolute" else f"../{part[0].rpartition('/')[2]}.git"
    head = with_submodule(host, path, tmp_path / "content", address, part[1])
    attempt = builder.run(asked(host, path, head, registry))
    assert attempt.status == 0, attempt.result


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("https://192.168.7.7/a/b", "private network"),
        ("https://elsewhere.example/a/b", "is not allowed here"),
        ("../../../../elsewhere.example/a/b", "Submodule 'part'"),
        ("file:///etc", "Use https"),
        ("/etc", "address is incomplete"),
        ("ext::touch%20/tmp/kiln-owned", "remote helpers"),
        ("--upload-pack=touch${IFS}/tmp/kiln-owned", "Submodule 'part'"),
        ("git@example.org:ada/part.git", "https://example.org/ada/part"),
    ],
)
def test_a_submodule_is_held_to_the_same_policy(
    address: str, sentence: str,
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path,
) -> None:  # fmt: skip
    head = with_submodule(host, path, tmp_path / "content", address, COMMIT)
    attempt = builder.run(asked(host, path, head, registry))
    assert sentence in refused(attempt)
    assert "Cloning" not in attempt.text, "it is known before anything is cloned"
    assert not Path("/tmp/kiln-owned").exists()


def test_submodules_of_submodules_are_held_to_it_too(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    inner = with_submodule(host, f"{path}-inner", tmp_path / "inner", "https://10.0.0.1/a/b", COMMIT)
    head = with_submodule(host, path, tmp_path / "content", host.url(f"{path}-inner"), inner)
    assert "private network" in refused(builder.run(asked(host, path, head, registry)))


def test_a_chain_of_submodules_has_an_end(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    head = COMMIT
    for depth in range(12):
        address = host.url(f"{path}-{depth - 1}")
        head = with_submodule(host, f"{path}-{depth}", tmp_path / f"content-{depth}", address, head)
    assert "deeper than 10 levels" in refused(builder.run(asked(host, f"{path}-11", head, registry)))


@pytest.mark.parametrize("missing", ["repository", "commit", "submodule's commit"])
def test_what_is_not_there(
    missing: str, path: str, part: tuple[str, str], builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    target = COMMIT if missing.startswith("submodule") else part[1]
    head = with_submodule(host, path, tmp_path / "content", host.url(part[0]), target)
    where = f"{path}-nowhere" if missing == "repository" else path
    message = refused(builder.run(asked(host, where, COMMIT if missing == "commit" else head, registry)))
    assert "no such repository" in message or "no such commit" in message


@pytest.mark.parametrize(("just_pushed", "status"), [(True, 69), (False, 64)])
def test_a_commit_that_its_host_does_not_serve(
    just_pushed: bool,
    status: int,
    path: str,
    part: tuple[str, str],
    builder: Builder,
    host: GitHost,
    registry: Registry,
) -> None:
    """For some minutes after a push that is the host's fault. In both cases, a later request may find the commit."""
    attempt = builder.run(asked(host, part[0], COMMIT, registry), just_pushed=just_pushed)
    assert attempt.status == status, attempt.text
    assert (attempt.result.counted, attempt.result.unserved) == (not just_pushed, True)
    assert "no such commit" in (attempt.result.message or "")


@pytest.mark.parametrize("there", [True, False])
def test_a_host_that_gives_only_what_refs_point_at(
    there: bool, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "content").mkdir()
    (tmp_path / "content/Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    head = host.create(path, tmp_path / "content")
    commit(host.bare(path), tmp_path / "content", message="The next one")
    host.old.add(f"/{path}.git")
    attempt = builder.run(asked(host, path, head if there else COMMIT, registry))
    assert attempt.status == (0 if there else 64), attempt.text


@pytest.mark.parametrize(
    ("link", "subdir"),
    [
        ("Dockerfile", ""),
        ("apt.txt", ""),
        ("environment.yml", ""),
        ("binder/apt.txt", ""),
        (".binder", ""),
        ("course", "course"),
        ("course/apt.txt", "course"),
        ("course", "course/deeper"),
    ],
)
def test_a_link_that_leads_out_of_the_repository(
    link: str, subdir: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    (secret / "deeper").mkdir(parents=True)
    for folder in (secret, secret / "deeper"):
        (folder / "canary").write_text("canary-of-the-machine")
        (folder / "Dockerfile").write_text("FROM scratch\nCOPY canary /\n")
    at = tmp_path / "content" / link
    at.parent.mkdir(parents=True)
    at.symlink_to(secret / "canary" if "." in at.name[1:] or at.name == "Dockerfile" else secret)
    attempt = builder.run(asked(host, path, host.create(path, tmp_path / "content"), registry, subdir=subdir))
    assert "leads out of the repository" in refused(attempt)
    assert "canary" not in attempt.text


def test_a_link_that_stays_inside_or_leads_nowhere(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    content = tmp_path / "content"
    (content / "docker").mkdir(parents=True)
    (content / "docker/Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    (content / "binder").symlink_to("docker")
    (content / "Dockerfile").symlink_to("docker/Dockerfile")
    (content / "data").symlink_to("/home/jovyan/data")
    for folder in (content, content / "docker"):  # and out of it, where no tool follows the link
        (folder / "shared").symlink_to("/usr")
        (folder / "hosts.txt").symlink_to("/etc/hosts")
    attempt = builder.run(asked(host, path, host.create(path, content), registry))
    assert attempt.status == 0, attempt.text


@pytest.mark.parametrize("flag", ["--network=host", "--security=insecure", "--device=/dev/null"])
def test_a_step_takes_no_right_that_nobody_gave(
    flag: str, path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    """With the host's network, a step would reach what listens on loopback."""
    (tmp_path / "content").mkdir()
    put_busybox(tmp_path / "content")
    ask = f"/busybox wget -T 3 -qO- http://127.0.0.1:{host.port}/reached-{path}"
    dockerfile = f'FROM scratch\nCOPY busybox /busybox\nRUN {flag} ["/busybox", "sh", "-c", "{ask}"]\n'
    (tmp_path / "content/Dockerfile").write_text(dockerfile)
    attempt = builder.run(asked(host, path, host.create(path, tmp_path / "content"), registry))
    assert refused(attempt)
    assert not any("reached-" in target for target in host.requests)


@pytest.mark.slow
def test_a_tree_of_a_thousand_levels(
    path: str, builder: Builder, host: GitHost, registry: Registry, tmp_path: Path
) -> None:
    """Git accepts it. Every outcome has a result, and nothing is left."""
    host.create(path)
    bare = host.bare(path)
    (tmp_path / "entry").write_text("FROM scratch\nCOPY Dockerfile /\n")
    blob = git("hash-object", "-w", str(tmp_path / "entry"), cwd=bare)
    levels = "".join(f"M 100644 {blob} {'a/' * level}Dockerfile\n" for level in range(1501))
    deep = "commit refs/heads/main\ncommitter Ada <ada@example.org> 0 +0000\ndata 4\nDeep\n"
    git("fast-import", "--quiet", cwd=bare, stdin=f"{deep}{levels}")
    head = git("rev-parse", "refs/heads/main", cwd=bare)
    attempt = builder.run(asked(host, path, head, registry))
    assert attempt.result.state.ended
    assert attempt.left_behind() == []
    assert attempt.members() == []
