"""An image that the rule `keep` has deleted is built again when a client requests it."""

from __future__ import annotations

from pathlib import Path

from tests.parts.githost import GitHost
from tests.parts.installation import SMALL
from tests.parts.kiln import until
from tests.parts.registry import Registry
from tests.parts.system import System


def test_a_deleted_image_is_built_again(tmp_path: Path, registry: Registry, host: GitHost) -> None:
    with System(tmp_path, registry=registry, host=host, sinks=(), config={"keep": {"for": "0s"}}) as system:
        system.start("web")
        system.start("controller")
        commit = system.commit("ada/pruned", {"Dockerfile": SMALL})
        request = {"repository": host.url("ada/pruned"), "commit": commit}
        first = system.ended(system.ask(**request).json()["name"])
        assert first["image"]["reference"] in system.run("images").stdout
        until(lambda: first["image"]["digest"] in system.run("images", "prune", "--delete").stdout)
        assert system.run("images").stdout == ""
        system.ask(**request)
        until(lambda: system.one(first["name"])["attempt"] == 2)
        again = system.ended(first["name"])
        assert again["state"] == "succeeded"
        assert again["image"]["digest"] in system.run("images").stdout
