{{/*
A pod template, from a dict:
  root, component, values (the component's), tls (name of its Secret), container (command, ports and so on, YAML),
  env, volumes, mounts (lists), jupyter (if set, Jupyter's lock is installed as well),
  account (a ServiceAccount with permissions, unless the values name another)
*/}}
{{- define "dask.pod" -}}
{{- $root := .root -}}
{{- $values := .values -}}
{{- $environment := $root.Values.environment -}}
{{- $full := include "dask.fullname" $root -}}
{{- $account := $values.serviceAccountName | default .account -}}
{{- $image := printf "%s:%s" $values.image.repository (toString $values.image.tag) -}}
{{- $variables := list
  (dict "name" "DASK_CONFIG" "value" "/etc/dask")
  (dict "name" "DASK_SCHEDULER_ADDRESS" "value" (include "dask.address" $root))
  (dict "name" "HOME" "value" "/home/dask")
  (dict "name" "PATH" "value" "/opt/dask/environment/bin:/opt/conda/bin:/usr/local/bin:/usr/bin:/bin")
-}}
metadata:
  labels:
    {{- include "dask.selector" (list $root .component) | nindent 4 }}
  annotations:
    checksum/environment: {{ list $environment (ternary $root.Values.jupyter.lock "" (hasKey . "jupyter")) ($root.Files.Get "files/install.sh") | toJson | sha256sum }}
    checksum/config: {{ list (include "dask.config" $root) ($root.Files.Get "files/drain.py") (ternary ($root.Files.Get "files/scale_to_zero.py") "" (eq .component "scheduler")) | toJson | sha256sum }}
    checksum/restart: {{ $root.Values.restart | sha256sum }}
    {{- with $values.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ $account | default $full }}
  automountServiceAccountToken: {{ not (empty $account) }}
  enableServiceLinks: false
  {{- with $root.Values.podSecurityContext }}
  securityContext:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.image.pullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.gracePeriod }}
  terminationGracePeriodSeconds: {{ . }}
  {{- end }}
  {{- if $environment.lock }}
  initContainers:
    - name: environment
      image: {{ $image | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      command: [sh, /etc/dask-environment/install.sh]
      env:
        - {name: HOME, value: /home/dask}
        - {name: EXTRA, value: {{ $environment.extra | join "\n" | quote }}}
        - {name: JUPYTER, value: {{ ternary "yes" "" (hasKey . "jupyter") | quote }}}
      securityContext:
        {{- include "dask.security" $values | nindent 8 }}
      volumeMounts:
        - {name: environment, mountPath: /opt/dask}
        - {name: environment-files, mountPath: /etc/dask-environment, readOnly: true}
        - {name: home, mountPath: /home/dask}
        - {name: tmp, mountPath: /tmp}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ $image | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      {{- .container | trim | nindent 6 }}
      env:
        {{- concat $variables .env (default list $values.env) | toYaml | nindent 8 }}
      {{- with $root.Values.secretEnv }}
      envFrom:
        - secretRef: {name: {{ . }}}
      {{- end }}
      {{- with $values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        {{- include "dask.security" $values | nindent 8 }}
      {{- range $key := list "startupProbe" "readinessProbe" "livenessProbe" }}
      {{- with index $values $key }}
      {{ $key }}: {{ toJson . }}
      {{- end }}
      {{- end }}
      volumeMounts:
        - {name: config, mountPath: /etc/dask, readOnly: true}
        {{- if .tls }}
        - {name: tls, mountPath: /etc/dask-tls, readOnly: true}
        {{- end }}
        {{- if $environment.lock }}
        - {name: environment, mountPath: /opt/dask, readOnly: true}
        {{- end }}
        - {name: home, mountPath: /home/dask}
        - {name: tmp, mountPath: /tmp}
        {{- with concat .mounts (default list (default dict $values.mounts).volumeMounts) }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: config
      configMap: {name: {{ $full }}-config}
    {{- if .tls }}
    - name: tls
      secret: {secretName: {{ .tls }}, defaultMode: 0440}
    {{- end }}
    {{- if $environment.lock }}
    - name: environment
      emptyDir: {sizeLimit: {{ $environment.size }}}
    - name: environment-files
      configMap: {name: {{ $full }}-environment}
    {{- end }}
    - name: tmp
      emptyDir: {{ include "dask.emptyDir" $root.Values.scratch.tmp }}
    {{- with concat .volumes (default list (default dict $values.mounts).volumes) }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- range $key := list "nodeSelector" "tolerations" "affinity" }}
  {{- with index $values $key }}
  {{ $key }}: {{ toJson . }}
  {{- end }}
  {{- end }}
{{- end -}}

{{/* The emptyDir of a volume as JSON, from its size limit, which may be empty. */}}
{{- define "dask.emptyDir" -}}
{{- ternary (dict "sizeLimit" .) dict (not (empty .)) | toJson -}}
{{- end -}}

{{/*
A NetworkPolicy that lets pods with their own ServiceAccount reach the cloud's credentials, from a dict: root, component,
values. GKE serves them at 169.254.169.254, without Dataplane V2 at 169.254.169.252; EKS at 169.254.170.23.
*/}}
{{- define "dask.account" -}}
{{- $policy := .root.Values.networkPolicy -}}
{{- if and $policy.enabled $policy.egress.enabled .values.serviceAccountName -}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "dask.fullname" .root }}-{{ .component }}-account
  labels:
    {{- include "dask.labels" (list .root .component) | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "dask.selector" (list .root .component) | nindent 6 }}
  policyTypes: [Egress]
  egress:
    - to:
        - ipBlock: {cidr: 169.254.169.254/32}
        - ipBlock: {cidr: 169.254.170.23/32}
      ports:
        - {port: 80}
    - to:
        - ipBlock: {cidr: 169.254.169.252/32}
      ports:
        - {port: 988}
{{- end -}}
{{- end -}}

{{/* A container's securityContext: the restricted Pod Security Standard, merged with the component's values. */}}
{{- define "dask.security" -}}
{{- $restricted := dict "allowPrivilegeEscalation" false "readOnlyRootFilesystem" true "capabilities" (dict "drop" (list "ALL")) -}}
{{- mustMergeOverwrite $restricted (default dict .securityContext) | toYaml -}}
{{- end -}}
