"""The fault points of a release, armed by files that all of its pods see."""

from __future__ import annotations

import secrets

from builds.faults import Fault
from tests.parts.cluster import run

MOUNTED = "/faults"


class FaultPoints:
    """The fault points of a release, as files in a folder on a worker."""

    def __init__(self, node: str) -> None:
        self.node, self.folder = node, f"/var/lib/kiln-faults-{secrets.token_hex(4)}"
        self._run(f"mkdir -m 0777 {self.folder}")

    def __enter__(self) -> FaultPoints:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(f"rm -rf {self.folder}")

    def arm(self, point: Fault) -> None:
        self._run(f"touch {self.folder}/{point}")

    @property
    def armed(self) -> list[str]:
        """The points that no process has reached yet."""
        return self._run(f"ls {self.folder}").split()

    @property
    def values(self) -> dict[str, dict[str, object]]:
        """The chart's values that place the whole release on the worker and make it crash at armed points."""
        here = {"nodeSelector": {"kubernetes.io/hostname": self.node}}
        dies = {
            "extraEnv": [{"name": "KILN_FAULT", "value": MOUNTED}],
            "extraVolumes": [{"name": "faults", "hostPath": {"path": self.folder, "type": "Directory"}}],
            "extraVolumeMounts": [{"name": "faults", "mountPath": MOUNTED}],
        }
        return {"web": here | dies, "controller": here | dies, "builds": dies, "dockerd": here}

    def _run(self, script: str) -> str:
        return run("docker", "exec", self.node, "sh", "-c", script)
