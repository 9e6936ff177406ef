{{/* Names: that of the release, and for what belongs to no namespace that of both. */}}
{{- define "parbake.inCluster" -}}{{ .Release.Namespace }}-{{ .Release.Name }}{{- end -}}

{{- define "parbake.labels" -}}
app.kubernetes.io/name: parbake
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{- define "parbake.selected" -}}
app.kubernetes.io/name: parbake
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* The Bakefile, as JSON, which is YAML that is read in one way only. */}}
{{- define "parbake.bakefile" -}}
{{- toPrettyJson (merge (deepCopy .Values.bakefile) (dict "version" 1 "name" .Release.Name)) -}}
{{- end -}}

{{/* What goes beside the Bakefile, by name: the ConfigMap and the mounts are of one mind. */}}
{{- define "parbake.files" -}}
{{- toJson (merge (dict "parbake.yaml" (include "parbake.bakefile" .)) .Values.files) -}}
{{- end -}}

{{/* The rules of RBAC that the Bakefile takes, as files/rights.yaml says (made from parbake.rollouts.rights): a list
of {apiGroups, resources, verbs, resourceNames?, namespace?}. A target with a context is of another cluster. */}}
{{- define "parbake.rights" -}}
{{- $classes := list -}}
{{- $keys := dict -}}
{{- range $target := .Values.bakefile.rollout -}}
{{- if and .karpenter (not .karpenter.context) -}}
{{- $classes = append $classes .karpenter.nodeclass -}}
{{- range keys $target -}}{{- $_ := set $keys . true -}}{{- end -}}
{{- end -}}
{{- end -}}
{{- $rules := list -}}
{{- $rights := .Files.Get "files/rights.yaml" | fromYaml -}}
{{- range $rights.order -}}
{{- if hasKey $keys . -}}
{{- range get $rights . -}}
{{- $rule := omit . "named" -}}
{{- if .named -}}{{- $_ := set $rule "resourceNames" ($classes | uniq | sortAlpha) -}}{{- end -}}
{{- $rules = append $rules $rule -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- with .Values.bakefile.images_from -}}
{{- if not .cluster.context -}}
{{- range $namespace := .cluster.namespaces | default (list "") | uniq -}}
{{- range $rights.images_from -}}
{{- $rules = append $rules (ternary . (merge (dict "namespace" $namespace) .) (eq $namespace "")) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- toJson $rules -}}
{{- end -}}

{{/* Restricted, as the Pod Security Standards say it: of the pod, and of its containers. */}}
{{- define "parbake.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "parbake.security" -}}
allowPrivilegeEscalation: false
capabilities: {drop: [ALL]}
readOnlyRootFilesystem: true
{{- end -}}

{{/* Of what mounts: only where somebody has said so. */}}
{{- define "parbake.mountingSecurity" -}}
privileged: true
runAsUser: 0
runAsNonRoot: false
readOnlyRootFilesystem: true
{{- end -}}

{{/* The template of a pod that takes turns; `.args` are those of parbake. */}}
{{- define "parbake.pod" -}}
{{- $values := .root.Values -}}
{{- $files := keys (include "parbake.files" .root | fromJson) | sortAlpha -}}
metadata:
  labels:
    {{- include "parbake.labels" .root | nindent 4 }}
    app.kubernetes.io/component: turns
  annotations:
    parbake/bakefile: {{ include "parbake.files" .root | sha256sum }}
spec:
  serviceAccountName: {{ .root.Release.Name }}
  automountServiceAccountToken: {{ ne (include "parbake.rights" .root) "[]" }}
  enableServiceLinks: false
  restartPolicy: {{ .restart }}
  terminationGracePeriodSeconds: 60
  {{- with $values.nodeSelector }}
  nodeSelector: {{ toJson . }}
  {{- end }}
  {{- with $values.tolerations }}
  tolerations: {{ toJson . }}
  {{- end }}
  securityContext:
    {{- include "parbake.podSecurity" .root | nindent 4 }}
  containers:
    - name: parbake
      image: {{ $values.image | quote }}
      args: {{ toJson .args }}
      workingDir: /bakes
      env:
        - {name: HOME, value: /bakes}
        {{- if $values.pullSecrets }}
        - {name: REGISTRY_AUTH_FILE, value: /etc/parbake/logins}
        {{- end }}
        {{- range $values.env }}
        - {{ toJson . }}
        {{- end }}
      securityContext:
        {{- if $values.privileged }}
        {{- include "parbake.mountingSecurity" .root | nindent 8 }}
        {{- else }}
        {{- include "parbake.security" .root | nindent 8 }}
        {{- end }}
      resources: {{ toJson $values.resources }}
      volumeMounts:
        - {name: bakes, mountPath: /bakes}
        {{- range $files }}
        - {name: files, mountPath: {{ printf "/bakes/%s" . | quote }}, subPath: {{ . | quote }}, readOnly: true}
        {{- end }}
        - {name: tmp, mountPath: /tmp}
        {{- if $values.pullSecrets }}
        - {name: logins, mountPath: /etc/parbake/logins, readOnly: true}
        {{- end }}
        {{- range $values.secrets }}
        - {name: {{ printf "secret-%s" .name | quote }}, mountPath: {{ .at | quote }}, readOnly: true}
        {{- end }}
  volumes:
    - name: files
      configMap: {name: {{ .root.Release.Name }}}
    - name: bakes
      {{- if $values.volume.persistent }}
      persistentVolumeClaim: {claimName: {{ .root.Release.Name }}}
      {{- else }}
      emptyDir: {sizeLimit: {{ $values.volume.size }}}
      {{- end }}
    - name: tmp
      emptyDir: {}
    {{- with $values.pullSecrets }}
    - name: logins
      projected:
        defaultMode: 288
        sources:
          {{- range . }}
          - secret: {name: {{ . }}, items: [{key: .dockerconfigjson, path: {{ . }}.json}]}
          {{- end }}
    {{- end }}
    {{- range $values.secrets }}
    - name: {{ printf "secret-%s" .name | quote }}
      secret: {secretName: {{ .name }}, defaultMode: 288}
    {{- end }}
{{- end -}}
