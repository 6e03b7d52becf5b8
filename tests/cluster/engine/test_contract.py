"""The promises that every engine makes of its records, put to the one in a cluster."""
from __future__ import annotations

import os, uuid, subprocess
from collections.abc import Iterator
import pytest
import yaml

from builds.builder.spec import Surroundings
from builds.engines.kubernetes import KubernetesEngine, Release
from builds.engines.kubernetes.api import Api
from tests.builds.engine_contract import RecordsContract
from tests.builds.kubernetes.things import TEMPLATE
from tests.parts.kiln import until

os.environ["KUBECONFIG"] = "/tmp/plumbing.kubeconfig"

@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    name = f"engine-{uuid.uuid4().hex[:6]}"
    subprocess.run(["kubectl","create","namespace",name],check=True,capture_output=True)
    yield name
    subprocess.run(["kubectl","delete","namespace",name,"--wait=false"],check=True,capture_output=True)


class TestContract(RecordsContract):
    @pytest.fixture
    def records(self, namespace: str) -> Iterator[KubernetesEngine]:
        api = Api.connect(namespace=namespace)
        name = f"r-{uuid.uuid4().hex[:8]}"
        subprocess.run(["kubectl","-n",namespace,"create","configmap",name],check=True,capture_output=True)
        subprocess.run(["kubectl","-n",namespace,"apply","-f","-"],input=yaml.safe_dump({"apiVersion":"coordination.k8s.io/v1","kind":"Lease","metadata":{"name":name}}).encode(),check=True,capture_output=True)
        engine = KubernetesEngine(api, Release(name=name), template=TEMPLATE, image="busybox:1.37", surroundings=Surroundings(), lease=name, identity="x", anchor=name, max_queued=5, max_queued_per_user=2)
        engine.begin()
        import threading
        stop = threading.Event()
        with engine.leading(stop):
            yield engine
            stop.set()
        engine.close()
        for b in list(api.list("configmaps")):
            if b["metadata"]["name"] not in ("kube-root-ca.crt", ): api.delete("configmaps", b["metadata"]["name"])
