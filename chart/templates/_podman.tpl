{{/* A registry in Podman's words: whether it speaks plain HTTP, and by which others it is asked for. */}}
{{- define "kiln.podmanRegistry" -}}
location = {{ index . 1 | toJson }}
{{- if has (index . 1) ((index . 0).Values.config.insecure_registries | default list) }}
insecure = true
{{- end }}
{{- end }}

{{/* registries.conf: https://github.com/containers/image/blob/main/docs/containers-registries.conf.5.md */}}
{{- define "kiln.podmanRegistries" -}}
unqualified-search-registries = ["docker.io"]
short-name-mode = "disabled"
{{- range $name := concat (.Values.config.insecure_registries | default list) (keys .Values.podman.mirrors) | uniq | sortAlpha }}

[[registry]]
{{ include "kiln.podmanRegistry" (list $ $name) }}
{{- range index $.Values.podman.mirrors $name }}
[[registry.mirror]]
{{ include "kiln.podmanRegistry" (list $ .) }}
{{- end }}
{{- end }}
{{- end }}

{{/* containers.conf, which the start script adds to. */}}
{{- define "kiln.podmanContainers" -}}
[engine]
cgroup_manager = "cgroupfs"
events_logger = "none"
[network]
network_config_dir = "/tmp/kiln/networks"
[containers]
{{- end }}

{{/* The network of steps, in netavark's words; the start script fills the MTU in. Name and id are those of Podman's default. */}}
{{- define "kiln.podmanNetwork" -}}
{
  "name": "podman",
  "id": "2f259bab93aaaaa2542ba43ef33eb990d0999ee1b9924b557b7be53c0b7a1bb9",
  "driver": "bridge",
  "network_interface": "podman0",
  "created": "2020-01-01T00:00:00Z",
  "subnets": [{"subnet": {{ .Values.podman.subnet | toJson }}, "gateway": {{ regexReplaceAll "0/[0-9]+$" .Values.podman.subnet "1" | toJson }}}],
  "ipv6_enabled": false,
  "internal": false,
  "dns_enabled": false,
  "ipam_options": {"driver": "host-local"},
  "options": {"mtu": "MTU"}
}
{{- end }}

{{- define "kiln.podmanStorage" -}}
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
runroot = "/run/containers/storage"
{{- end }}

{{- define "kiln.daemon.podman" -}}
{{- with .Values.dockerd.extraArgs }}
{{- fail "dockerd.extraArgs: these are flags of dockerd, and daemon is podman (see podman.subnet, podman.mirrors)" }}
{{- end }}
name: podman
suffix: podman-api
# Beside the labels that both kinds have: while one takes the other's place, both are there.
labels: {kiln.dev/daemon: podman}
image: {{ toJson .Values.podman.image }}
ask: [podman, --url, {{ include "kiln.daemonSocket" . | quote }}, version]
scripts: [daemon, podman, podman-prune]
made:
  containers.conf: {{ include "kiln.podmanContainers" . | printf "%s\n" | toJson }}
  storage.conf: {{ include "kiln.podmanStorage" . | printf "%s\n" | toJson }}
  network.json: {{ include "kiln.podmanNetwork" . | printf "%s\n" | toJson }}
  registries.conf: {{ include "kiln.podmanRegistries" . | printf "%s\n" | toJson }}
start: podman
env:
  - {name: PODMAN_IGNORE_CGROUPSV1_WARNING, value: "1"}
mounts:
  - {name: data, mountPath: /var/lib/containers}
  - {name: contexts, mountPath: /var/tmp}
volumes:
  - name: data
    hostPath: {path: {{ include "kiln.podmanDirectory" . }}, type: DirectoryOrCreate}
  - name: ballast
    hostPath: {path: {{ include "kiln.podmanDirectory" . }}/ballast, type: DirectoryOrCreate}
  - name: contexts
    emptyDir: {}
{{- with .Values.dockerd }}
prune: podman-prune
pruneArgs: {{ list (.prune.interval | toString) (include "kiln.bytes" .gc.maxUsedSpace) (.prune.diskHigh | toString) | toJson }}
pruneEnv:
  - {name: CONTAINER_HOST, value: {{ include "kiln.daemonSocket" $ | quote }}}
  - {name: PODMAN_IGNORE_CGROUPSV1_WARNING, value: "1"}
pruneMounts:
  - {name: ballast, mountPath: /ballast}
{{- end }}
{{- end }}
