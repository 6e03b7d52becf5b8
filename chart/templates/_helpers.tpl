{{/*
What an object of this release is called, how it is labelled, and where it lies on a host.
*/}}

{{- define "kiln.fullname" -}}
{{- $default := ternary .Release.Name (printf "%s-kiln" .Release.Name) (contains "kiln" .Release.Name) -}}
{{- /* A Service's name has 63 characters, and the longest of ours ends in -metrics. */ -}}
{{- .Values.fullnameOverride | default $default | trunc 55 | trimSuffix "-" -}}
{{- end }}

{{/* The labels by which a component's pods are found: (list root component). */}}
{{- define "kiln.selector" -}}
app.kubernetes.io/name: kiln
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* Labels of a component's pods: (list root component). */}}
{{- define "kiln.podLabels" -}}
{{ include "kiln.selector" . }}
app.kubernetes.io/managed-by: {{ (index . 0).Release.Service }}
{{- end }}

{{/* Metadata of an object: (list root component suffix). */}}
{{- define "kiln.metadata" -}}
{{- $root := index . 0 -}}
name: {{ include "kiln.fullname" $root }}{{ index . 2 }}
namespace: {{ $root.Release.Namespace }}
labels:
  {{- include "kiln.podLabels" . | nindent 2 }}
  app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
  helm.sh/chart: {{ $root.Chart.Name }}-{{ $root.Chart.Version }}
{{- end }}

{{/*
What follows the release in a ConfigMap's name: (list word data). It has a digest of the content, which never changes: web
may patch ConfigMaps, and must not change what runs.
*/}}
{{- define "kiln.digested" -}}
-{{ index . 0 }}-{{ index . 1 | toJson | sha256sum | trunc 10 }}
{{- end }}

{{/*
An immutable ConfigMap: (list root component word data). Web could still have it deleted, by patching in an owner that does
not exist, and create another of that name. Therefore each pod holds what it reads against a digest in its own spec.
*/}}
{{- define "kiln.configMap" -}}
apiVersion: v1
kind: ConfigMap
metadata:
  {{- include "kiln.metadata" (list (index . 0) (index . 1) (include "kiln.digested" (slice . 2))) | nindent 2 }}
immutable: true
data:
  {{- toYaml (index . 3) | nindent 2 }}
{{- end }}

{{/* An image by its values: (list values tag), the tag for where they have none. With a digest the tag is not looked at. */}}
{{- define "kiln.reference" -}}
{{- $values := index . 0 -}}
{{ $values.repository }}{{ with $values.tag | default (index . 1) }}:{{ . }}{{ end }}{{ with $values.digest }}@{{ . }}{{ end }}
{{- end }}

{{- define "kiln.image" -}}
{{ include "kiln.reference" (list .Values.image .Chart.AppVersion) }}
{{- end }}

{{/*
A release's part of a path on the host. Two releases share nodes: neither a namespace nor a release has an underscore in
its name, so no two pairs of them meet as they would at `a-b` and `c`, `a` and `b-c`.
*/}}
{{- define "kiln.hostDirectory" -}}
{{ .Release.Namespace }}_{{ .Release.Name }}
{{- end }}

{{- define "kiln.dataDirectory" -}}
/var/lib/kiln/{{ include "kiln.hostDirectory" . }}
{{- end }}

{{- define "kiln.podmanDirectory" -}}
{{ include "kiln.dataDirectory" . }}_podman
{{- end }}

{{- define "kiln.socketDirectory" -}}
/var/run/kiln/{{ include "kiln.hostDirectory" . }}
{{- end }}

{{- define "kiln.execDirectory" -}}
{{ include "kiln.socketDirectory" . }}_exec
{{- end }}

{{/* The path under which web answers; ends with a slash. */}}
{{- define "kiln.basePath" -}}
{{- if .Values.jupyterhub.service -}}
{{ trimSuffix "/" .Values.jupyterhub.baseUrl }}/services/{{ .Values.jupyterhub.service }}/
{{- else -}}
{{- $path := trimAll "/" (.Values.settings.base_path | default "") -}}
{{ ternary (printf "/%s/" $path) "/" (ne $path "") }}
{{- end -}}
{{- end }}

{{/* Whether web is a Service of Knative's in place of a Deployment: empty, if not. */}}
{{- define "kiln.serving" -}}
{{- if and .Values.knative.enabled .Values.knative.serving.enabled }}yes{{ end -}}
{{- end }}

{{/* Where web is reached in the cluster, without the base path. */}}
{{- define "kiln.clusterUrl" -}}
{{- if include "kiln.serving" . -}}
http://{{ include "kiln.fullname" . }}-web.{{ .Release.Namespace }}.svc
{{- else -}}
http://{{ include "kiln.fullname" . }}.{{ .Release.Namespace }}.svc:{{ .Values.service.port }}
{{- end -}}
{{- end }}

{{/*
The ops port of a component: (list root component). Beside Serving's own container, which has 9090 and 9091, it is another;
it cannot be declared there, so it has no name by which it could be found, and both components have the same.
*/}}
{{- define "kiln.opsPort" -}}
{{- if include "kiln.serving" (index . 0) }}9092{{ else }}{{ ternary 9090 9091 (eq (index . 1) "web") }}{{ end -}}
{{- end }}

{{/* A setting as text. Helm hands numbers on as floats, which it would print as 1e+06. */}}
{{- define "kiln.text" -}}
{{- if kindIs "slice" . -}}{{ join "," . }}
{{- else if kindIs "float64" . -}}{{ int64 . }}
{{- else -}}{{ . }}
{{- end -}}
{{- end }}

{{/* Settings that `knative.oidc` stands for, by name: those for events, where people have an issuer of their own. */}}
{{- define "kiln.oidcSettings" -}}
{{- if and .Values.knative.enabled .Values.knative.oidc.audience }}
{{- $who := ternary "oidc_events" "oidc" (hasKey .Values.settings "oidc_issuer") }}
{{- with .Values.knative.oidc }}
{{- if not (hasKey $.Values.settings "events_auth") }}
events_auth: oidc
{{- end }}
{{ $who }}_issuer: {{ .issuer | quote }}
{{ $who }}_audience: {{ .audience | quote }}
{{- with .allowedSubjects }}
oidc_subjects: {{ toJson . }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* The environment that web and controller share. */}}
{{- define "kiln.env" -}}
- {name: KILN_ENGINE, value: kubernetes}
- {name: KILN_NAMESPACE, value: {{ .Release.Namespace | quote }}}
- {name: KILN_INSTANCE, value: {{ printf "%s/%s" .Release.Namespace .Release.Name | quote }}}
- {name: KILN_ANCHOR, value: {{ include "kiln.fullname" . | quote }}}
- {name: KILN_HOST, value: 0.0.0.0}
- {name: KILN_CONFIG, value: /etc/kiln/config/config.yaml}
- {name: KILN_CONFIG_SHA256, value: {{ get (include "kiln.configFiles" . | fromJson) "config.yaml" | sha256sum }}}
- {name: KILN_SECRETS_DIR, value: /etc/kiln/secrets}
- {name: KILN_REGISTRY_CONFIG, value: /etc/kiln/registry/config.json}
{{- if include "kiln.privateRegistry" . }}
- {name: KILN_PRIVATE_REGISTRY_CONFIG, value: /etc/kiln/private-registry/config.json}
{{- end }}
- {name: KILN_BUILDER_IMAGE, value: {{ include "kiln.image" . | quote }}}
- {name: KILN_DAEMON, value: {{ .Values.daemon }}}
- {name: KILN_DOCKER_HOST, value: {{ include "kiln.daemonSocket" . | quote }}}
{{- if .Values.jupyterhub.service }}
- {name: KILN_BASE_PATH, value: {{ include "kiln.basePath" . | quote }}}
{{- end }}
{{- range $key, $value := merge (include "kiln.oidcSettings" . | fromYaml) .Values.settings }}
- {name: KILN_{{ upper $key }}, value: {{ include "kiln.text" $value | quote }}}
{{- end }}
{{- end }}

{{/* What web's container has beside the settings that it shares: root. */}}
{{- define "kiln.webEnv" -}}
{{- include "kiln.env" . }}
{{- with .Values.jupyterhub }}
{{- if .service }}
- {name: JUPYTERHUB_SERVICE_NAME, value: {{ .service | quote }}}
- {name: JUPYTERHUB_SERVICE_PREFIX, value: {{ include "kiln.basePath" $ | quote }}}
- {name: JUPYTERHUB_BASE_URL, value: {{ .baseUrl | quote }}}
- {name: JUPYTERHUB_API_URL, value: {{ .apiUrl | quote }}}
- name: JUPYTERHUB_API_TOKEN
  valueFrom:
    secretKeyRef: {name: {{ .secret | quote }}, key: {{ printf "hub.services.%s.apiToken" .service | quote }}}
{{- end }}
{{- end }}
{{- with .Values.web.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "kiln.webMounts" -}}
- {name: config, mountPath: /etc/kiln/config, readOnly: true}
- {name: registry, mountPath: /etc/kiln/registry, readOnly: true}
{{- if include "kiln.privateRegistry" . }}
- {name: private-registry, mountPath: /etc/kiln/private-registry, readOnly: true}
{{- end }}
- {name: api-tokens, mountPath: /etc/kiln/secrets/api-tokens, readOnly: true}
{{- if .Values.settings.oidc_client_id }}
- {name: oidc, mountPath: /etc/kiln/secrets/oidc, readOnly: true}
{{- end }}
- {name: git-credentials, mountPath: /etc/kiln/secrets/git-credentials, readOnly: true}
{{- range $word, $_ := .Values.webhooks }}
- {name: webhooks-{{ $word }}, mountPath: /etc/kiln/secrets/webhooks/{{ $word }}, readOnly: true}
{{- end }}
- {name: tmp, mountPath: /tmp}
{{- with .Values.web.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Web's volumes: (list root mode), the mode of the files of Secrets. */}}
{{- define "kiln.webVolumes" -}}
{{- $root := index . 0 -}}
{{- $mode := index . 1 -}}
{{- with $root.Values -}}
- name: config
  configMap: {name: {{ include "kiln.fullname" $root }}{{ include "kiln.digested" (list "config" (include "kiln.configFiles" $root | fromJson)) }}}
- {{- include "kiln.registryVolume" (list $root (ternary .web.registry .registry (not (empty .web.registry.existingSecret))) "registry" $mode) | nindent 2 }}
{{- if include "kiln.privateRegistry" $root }}
- {{- include "kiln.registryVolume" (list $root (ternary .web.privateRegistry .privateRegistry (not (empty .web.privateRegistry.existingSecret))) "private-registry" $mode) | nindent 2 }}
{{- end }}
- {{- include "kiln.secretVolume" (list $root .apiTokens "api-tokens" $mode) | nindent 2 }}
{{- if .settings.oidc_client_id }}
- {{- include "kiln.secretVolume" (list $root .oidcClient "oidc" $mode) | nindent 2 }}
{{- end }}
- {{- include "kiln.secretVolume" (list $root .gitCredentials "git-credentials" $mode) | nindent 2 }}
{{- range $word, $values := .webhooks }}
- {{- include "kiln.secretVolume" (list $root $values (printf "webhooks-%s" $word) $mode) | nindent 2 }}
{{- end }}
- name: tmp
  emptyDir: {}
{{- with .web.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}
{{- end }}

{{/* Labels of web's pods. */}}
{{- define "kiln.webLabels" -}}
{{ include "kiln.podLabels" (list . "web") }}
kiln.dev/metrics: "true"
{{- if .Values.jupyterhub.service }}
hub.jupyter.org/network-access-hub: "true"
{{- end }}
{{- with .Values.web.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Where pods may run, and what comes before others: the values of a component. */}}
{{- define "kiln.placement" -}}
{{- with .nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end }}

{{/* Spreads a component's pods where that is possible: (list root component). */}}
{{- define "kiln.spread" -}}
{{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
- topologyKey: {{ $key }}
  maxSkew: 1
  whenUnsatisfiable: ScheduleAnyway
  labelSelector:
    matchLabels:
      {{- include "kiln.selector" $ | nindent 6 }}
{{- end }}
{{- end }}

{{- define "kiln.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* What the profile `restricted` asks of a pod, and of its containers. */}}
{{- define "kiln.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "kiln.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/*
Probes of web and controller, on the ops port. The first looks every second, so that a pod is ready as soon as it can be;
from then on there is no hurry: a process that is slow must not be made slower by being killed.
*/}}
{{- define "kiln.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 1
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /readyz, port: ops}
  periodSeconds: 5
  timeoutSeconds: 5
livenessProbe:
  httpGet: {path: /livez, port: ops}
  periodSeconds: 10
  timeoutSeconds: 10
  failureThreshold: 6
{{- end }}

{{/* The name of a Secret: (list root values suffix). */}}
{{- define "kiln.secretName" -}}
{{ (index . 1).existingSecret | default (printf "%s-%s" (include "kiln.fullname" (index . 0)) (index . 2)) }}
{{- end }}

{{/* The mode of its files: (list root values suffix mode), the last where the pod has no group of its own. */}}
{{- define "kiln.secretMode" -}}
{{ index (append . "0440") 3 }}
{{- end }}

{{/*
A volume with all keys of a Secret: (list root values suffix), and a mode. It may come later: it is there within a minute
then, and a webhook without a secret is refused until it is.
*/}}
{{- define "kiln.secretVolume" -}}
name: {{ index . 2 }}
secret: {secretName: {{ include "kiln.secretName" . }}, optional: true, defaultMode: {{ include "kiln.secretMode" . }}}
{{- end }}

{{/*
A registry's credentials: (list root values name), and a mode. Without them nothing could be pushed: a pod that lacks their Secret waits
and says so.
*/}}
{{- define "kiln.registryVolume" -}}
{{- $values := index . 1 -}}
name: {{ index . 2 }}
secret:
  secretName: {{ include "kiln.secretName" . }}
  defaultMode: {{ include "kiln.secretMode" . }}
  items: [{key: {{ ternary ".dockerconfigjson" $values.existingSecretKey (empty $values.existingSecret) }}, path: config.json}]
{{- end }}

{{/* Whether there are credentials for the images of private repositories: empty, if not. */}}
{{- define "kiln.privateRegistry" -}}
{{- with .Values.privateRegistry }}{{ or .existingSecret .server }}{{ end -}}
{{- end }}

{{/* Where the daemon listens, in its own pod and in those of builds. */}}
{{- define "kiln.daemonSocket" -}}
unix:///run/kiln/{{ .Values.daemon }}.sock
{{- end }}

{{/* A size such as 30GB or 1.5 GiB in bytes. */}}
{{- define "kiln.bytes" -}}
{{- $factors := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 }}
{{- $unit := regexFind "[kKMGT]i?" . | replace "K" "k" }}
{{- mulf (regexFind "^[0-9.]+" . | float64) (get $factors $unit) | int64 }}
{{- end }}

{{/* Major version of the daemon. */}}
{{- define "kiln.dockerdVersion" -}}
{{- $version := .Values.dockerd.version | default (regexFind "^[0-9]+" .Values.dockerd.image.tag) -}}
{{- required "dockerd.version must be set: the tag of dockerd.image does not start with a version" $version -}}
{{- end }}
