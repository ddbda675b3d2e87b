{{- define "dask.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels with which Services, disruption budgets and Deployments select pods: (list root component) */}}
{{- define "dask.selector" -}}
{{- $root := index . 0 -}}
app: {{ default $root.Chart.Name $root.Values.nameOverride }}
release: {{ $root.Release.Name }}
{{- with index . 1 }}
component: {{ . }}
{{- end }}
{{- end -}}

{{/* (list root component) */}}
{{- define "dask.labels" -}}
{{- $root := index . 0 -}}
{{ include "dask.selector" . }}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "dask.scheme" -}}
{{ if .Values.tls.scheduler }}tls{{ else }}tcp{{ end }}
{{- end -}}

{{- define "dask.address" -}}
{{ include "dask.scheme" . }}://{{ include "dask.fullname" . }}-scheduler:{{ .Values.scheduler.servicePort }}
{{- end -}}

{{/* The values of an additional group of workers as JSON, with those that it inherits: (list root group) */}}
{{- define "dask.group" -}}
{{- $group := index . 1 -}}
{{- $values := mustMergeOverwrite (deepCopy (index . 0).Values.worker) $group -}}
{{- range $key := $values.replaces -}}
{{- $_ := set $values $key (index $group $key) -}}
{{- end -}}
{{- toJson $values -}}
{{- end -}}

{{/* Names of the Deployments that the scheduler scales, separated by spaces. The first one is the main one. */}}
{{- define "dask.workers" -}}
{{- $names := list .Values.worker.name -}}
{{- range .Values.additional_worker_groups -}}
{{- if or $.Values.idleTimeout (.bounds | default dict).max -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- end -}}
{{- $full := include "dask.fullname" . -}}
{{- range $number, $name := $names -}}
{{- if $number }} {{ end }}{{ printf "%s-%s" $full $name -}}
{{- end -}}
{{- end -}}

{{/* Whether the scheduler scales the workers. */}}
{{- define "dask.scales" -}}
{{- $scales := or .Values.bounds.max .Values.idleTimeout -}}
{{- range .Values.additional_worker_groups -}}
{{- $scales = or $scales (.bounds | default dict).max -}}
{{- end -}}
{{- if $scales }}yes{{ end -}}
{{- end -}}

{{/* The Dask configuration of all pods of the release. */}}
{{- define "dask.config" -}}
{{- $config := deepCopy .Values.config -}}
{{- if .Values.tls.scheduler -}}
{{- $pair := dict "cert" "/etc/dask-tls/tls.crt" "key" "/etc/dask-tls/tls.key" -}}
{{- $tls := dict "ca-file" "/etc/dask-tls/ca.crt" "scheduler" $pair "worker" $pair "client" $pair -}}
{{- $comm := dict "default-scheme" "tls" "require-encryption" true "tls" $tls -}}
{{- $config = mustMergeOverwrite $config (dict "distributed" (dict "comm" $comm)) -}}
{{- end -}}
{{- toYaml $config -}}
{{- end -}}

{{/* A Service, from a dict: root, name, component, values, ports (list) */}}
{{- define "dask.service" -}}
{{- if and (eq .values.serviceType "LoadBalancer") (not .values.sourceRanges) -}}
{{- fail (printf "%s.serviceType is LoadBalancer, but sourceRanges is empty; list the networks that may reach it" (.name | replace "webui" "webUI")) -}}
{{- end -}}
apiVersion: v1
kind: Service
metadata:
  name: {{ include "dask.fullname" .root }}-{{ .name }}
  labels:
    {{- include "dask.labels" (list .root .component) | nindent 4 }}
  {{- with .values.serviceAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  type: {{ .values.serviceType }}
  selector:
    {{- include "dask.selector" (list .root .component) | nindent 4 }}
  ports:
    {{- toYaml .ports | nindent 4 }}
  {{- if eq .values.serviceType "LoadBalancer" }}
  # This preserves client addresses, which the network policy needs.
  externalTrafficPolicy: Local
  loadBalancerSourceRanges:
    {{- toYaml .values.sourceRanges | nindent 4 }}
  {{- with .values.loadBalancerIP }}
  loadBalancerIP: {{ . }}
  {{- end }}
  {{- end }}
{{- end -}}

{{/* An Ingress, from a dict: root, name, component, values (its Service's) */}}
{{- define "dask.ingress" -}}
{{- $full := include "dask.fullname" .root -}}
{{- with .values.ingress -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {{ $full }}-{{ $.name }}
  labels:
    {{- include "dask.labels" (list $.root $.component) | nindent 4 }}
  {{- with .annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  {{- with .ingressClassName }}
  ingressClassName: {{ . }}
  {{- end }}
  rules:
    - host: {{ .hostname }}
      http:
        paths:
          - path: /
            pathType: {{ .pathType }}
            backend: {service: {name: {{ $full }}-{{ $.name }}, port: {number: {{ $.values.servicePort }}}}}
  {{- if .tls }}
  tls:
    - hosts: [{{ .hostname }}]
      secretName: {{ .secretName | default (printf "%s-%s-tls" $full $.name) }}
  {{- end }}
{{- end -}}
{{- end -}}
