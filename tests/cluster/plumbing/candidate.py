"""A candidate for leadership in its own process, which a test can pause and kill.

It takes a kubeconfig, a namespace and its identity. Twenty times a second it prints whether it leads. Each line begins
with the monotonic time before the question, since all processes of a machine share that clock.
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
