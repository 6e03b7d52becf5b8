"""A candidate in a process of its own, which can be paused and killed.

It takes a kubeconfig, a namespace and its identity, and says twenty times a second whether it leads, with the moment
before it asked itself by the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import sys
import time

from kubernetes import config
from kubernetes.client.configuration import Configuration

from builds.engines.kubernetes.api import Api
from builds.engines.kubernetes.lease import Lease


def main(kubeconfig: str, namespace: str, identity: str) -> None:
    configuration = Configuration()
    config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
    lease = Lease(Api(configuration, namespace), "kiln", identity, duration=4.0, stop_after=3.0, retry=0.5)
    lease.start()
    while True:
        now = time.monotonic()
        print(now, int(lease.leading), flush=True)
        time.sleep(0.05)


main(*sys.argv[1:])
