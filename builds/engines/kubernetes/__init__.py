"""The engine of a cluster: records in ConfigMaps, attempts as Jobs beside the Docker daemons of a DaemonSet.

    store                     web's half: create, get, list and patch records
    engine                    the controller's half: watches, Jobs, the Lease
    records, jobs, sightings  a build as a ConfigMap, an attempt as a Job, what pods and Events say: pure
    sessions                  the signed-out sessions of the pages
    logs, archive             the logs of pods, and where they stay
    shared, circuit           single flight, write coalescing and the circuit breaker of web's calls
    api, watch, lease         the Kubernetes API

Web and controller meet only in the records. The holder of the Lease acts on them. Nothing here needs more than a
namespace: no object of the cluster is read or made.
"""

from builds.engines.kubernetes.circuit import Circuit
from builds.engines.kubernetes.engine import KubernetesEngine
from builds.engines.kubernetes.jobs import TemplateError, checked, mounted
from builds.engines.kubernetes.records import Release
from builds.engines.kubernetes.sessions import KubernetesSessions
from builds.engines.kubernetes.store import KubernetesRecords, connect

__all__ = [
    "Circuit",
    "KubernetesEngine",
    "KubernetesRecords",
    "KubernetesSessions",
    "Release",
    "TemplateError",
    "checked",
    "connect",
    "mounted",
]
