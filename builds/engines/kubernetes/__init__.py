"""The engine of a cluster: records in ConfigMaps, attempts as Jobs beside the Docker daemons of a DaemonSet.

- `store`: web's half, which creates, gets, lists and patches records
- `engine`: the controller's half with its watches, the Jobs and the Lease
- `records`, `jobs`, `sightings`: a build as a ConfigMap, an attempt as a Job, and the state of pods and Events; pure
- `sessions`: the signed-out sessions of the pages
- `logs`, `archive`: the logs of pods, and their storage
- `shared`, `circuit`: single flight, write coalescing and the circuit breaker of web's calls
- `api`, `watch`, `lease`: the Kubernetes API

Web and controller share only the records. The holder of the Lease acts on them. The engine needs access to one
namespace only: it neither reads nor creates cluster-scoped objects.
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
