{{/*
A pod template, from a dict:
  root, component, values (the component's), tls (name of its Secret), container (command, ports and so on, YAML),
  env, volumes, mounts (lists), jupyter (if set, Jupyter's lock is installed as well),
  account (a ServiceAccount with permissions, unless the values name another), restartPolicy
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
  (dict "name" "PATH" "value" "/opt/dask/environment/bin:/opt/conda/bin:/usr/local/bin:/usr/bin:/bin:/opt/dask/system/usr/bin")
-}}
{{- if $environment.lock -}}
{{- /* GPU drivers are in the other two folders, which are also what the images of NVIDIA set. */}}
{{- $variables = append $variables
  (dict "name" "LD_LIBRARY_PATH" "value" "/opt/dask/libraries:/usr/local/nvidia/lib:/usr/local/nvidia/lib64") -}}
{{- if $environment.authority -}}
{{- range list "SSL_CERT_FILE" "REQUESTS_CA_BUNDLE" -}}
{{- $variables = append $variables (dict "name" . "value" "/opt/dask/certificates.crt") -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with $root.Values.data -}}
{{- if .size -}}
{{- $variables = concat $variables (list
  (dict "name" "DASKSTACK_DATA" "value" .path)
  (dict "name" "PYTHONPATH" "value" "/etc/dask-modules")) -}}
{{- end -}}
{{- end -}}
{{- $files := list ($root.Files.Get "files/install.sh") ($root.Files.Get "files/share.py") -}}
{{- /* The server sends its packages to pods with the same key, which verify that it is the scheduler's. */}}
{{- $key := list $environment $image $files | toJson | sha256sum -}}
{{- $shared := and $environment.lock $environment.server.enabled $root.Values.tls.scheduler .tls (not (hasKey . "jupyter")) -}}
metadata:
  labels:
    {{- include "dask.selector" (list $root .component) | nindent 4 }}
  annotations:
    checksum/environment: {{ list $environment (ternary $root.Values.jupyter.lock "" (hasKey . "jupyter")) $files | toJson | sha256sum }}
    checksum/config: {{ list (include "dask.config" $root) $root.Values.data.module ($root.Files.Get "files/drain.py") (ternary (list ($root.Files.Get "files/scaling.py") ($root.Files.Get "files/scale_pods.py") ($root.Files.Get "files/people.py")) list (eq .component "scheduler")) | toJson | sha256sum }}
    checksum/restart: {{ $root.Values.restart | sha256sum }}
    {{- with $values.annotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ $account | default $full }}
  automountServiceAccountToken: {{ not (empty $account) }}
  enableServiceLinks: false
  {{- with .restartPolicy }}
  restartPolicy: {{ . }}
  {{- end }}
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
        {{- with $values.env }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        - {name: HOME, value: /home/dask}
        - {name: EXTRA, value: {{ $environment.extra | join "\n" | quote }}}
        - {name: JUPYTER, value: {{ ternary "yes" "" (hasKey . "jupyter") | quote }}}
        {{- /* Programs outside of the cluster reach the shared directory through the scheduler's pod. */}}
        {{- $sftp := and (eq .component "scheduler") (not (empty $root.Values.data.size)) }}
        - {name: SYSTEM, value: {{ ternary (list "openssh-sftp-server") list $sftp | concat $environment.system | join " " | quote }}}
        {{- if and $shared (ne .component "scheduler") }}
        - {name: SERVER, value: {{ $full }}-packages}
        - {name: KEY, value: {{ $key }}}
        {{- end }}
      {{- with $root.Values.secretEnv }}
      envFrom:
        - secretRef: {name: {{ . }}}
      {{- end }}
      {{- with $environment.resources | default $values.resources }}
      resources:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      terminationMessagePolicy: FallbackToLogsOnError
      securityContext:
        {{- include "dask.security" $values | nindent 8 }}
      volumeMounts:
        {{- if $shared }}
        - {name: tls, mountPath: /etc/dask-tls, readOnly: true}
        {{- end }}
        - {name: environment, mountPath: /opt/dask}
        - {name: environment-files, mountPath: /etc/dask-environment, readOnly: true}
        {{- if $environment.wheels }}
        - {name: wheels, mountPath: /etc/dask-wheels, readOnly: true}
        {{- end }}
        - {name: home, mountPath: /home/dask}
        - {name: tmp, mountPath: /tmp}
  {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ $image | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      {{- .container | trim | nindent 6 }}
      terminationMessagePolicy: FallbackToLogsOnError
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
        {{- if $root.Values.data.size }}
        - {name: dask-data, mountPath: {{ $root.Values.data.path }}}
        - {name: dask-modules, mountPath: /etc/dask-modules, readOnly: true}
        {{- end }}
        {{- with concat .mounts (default list (default dict $values.mounts).volumeMounts) }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    {{- if and $shared (eq .component "scheduler") }}
    - name: packages
      image: {{ $image | quote }}
      imagePullPolicy: {{ $values.image.pullPolicy }}
      command: [python3, /etc/dask-environment/share.py, serve]
      env:
        - {name: KEY, value: {{ $key }}}
      ports:
        - {name: packages, containerPort: 8789}
      resources:
        {{- toYaml $environment.server.resources | nindent 8 }}
      securityContext:
        {{- include "dask.security" $values | nindent 8 }}
      volumeMounts:
        - {name: tls, mountPath: /etc/dask-tls, readOnly: true}
        - {name: environment, mountPath: /opt/dask, readOnly: true}
        - {name: environment-files, mountPath: /etc/dask-environment, readOnly: true}
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
    {{- with $environment.wheels }}
    - name: wheels
      configMap: {name: {{ . }}}
    {{- end }}
    {{- end }}
    - name: tmp
      emptyDir: {{ include "dask.emptyDir" $root.Values.scratch.tmp }}
    {{- if $root.Values.data.size }}
    - name: dask-data
      persistentVolumeClaim: {claimName: {{ $full }}-data}
    - name: dask-modules
      configMap:
        name: {{ $full }}-config
        items:
          - {key: daskdata.py, path: daskdata.py}
          - {key: metadata, path: daskdata-1.dist-info/METADATA}
          - {key: entry_points, path: daskdata-1.dist-info/entry_points.txt}
    {{- end }}
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
A NetworkPolicy that lets pods reach the cloud's credentials if they have their own ServiceAccount or
networkPolicy.metadata is set, from a dict: root, component, values. GKE serves them at 169.254.169.254, without Dataplane V2 at 169.254.169.252; EKS at 169.254.170.23.
*/}}
{{- define "dask.account" -}}
{{- $policy := .root.Values.networkPolicy -}}
{{- if and $policy.enabled $policy.egress.enabled (or .values.serviceAccountName $policy.metadata) -}}
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
