"""What a namespace with Pod Security admission at the level `restricted` refuses of a pod.

Source: Kubernetes documentation, "Pod Security Standards" (1.37), each control of Baseline and Restricted for Linux, by
its fields. It does not play exemptions, warnings and Windows, nor what user namespaces (``hostUsers``) relax.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

type Map = Mapping[str, Any]

_VOLUMES = {
    "configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "image", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_SECCOMP = {"RuntimeDefault", "Localhost"}
_SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
_SYSCTLS = {
    "kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
}  # fmt: skip


def templates(document: Map) -> Iterator[Map]:
    """Yield the specifications of the pods that an object makes."""
    spec = document.get("spec") or {}
    if document["kind"] == "Pod":
        yield spec
    elif document["kind"] == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]["spec"]
    elif "template" in spec and "containers" in spec["template"].get("spec", {}):
        yield spec["template"]["spec"]


def refused(spec: Map) -> list[str]:
    """Return what `restricted` refuses of a pod's specification, by the names of its fields."""
    pod = spec.get("securityContext") or {}
    found = [f"spec.{each}" for each in ("hostNetwork", "hostPID", "hostIPC") if spec.get(each)]
    found += [
        f"spec.volumes[{each['name']}]" for each in spec.get("volumes", ()) if not _VOLUMES.intersection(each.keys())
    ]
    found += [f"spec.securityContext.sysctls[{each['name']}]" for each in pod.get("sysctls", ())
              if each["name"] not in _SYSCTLS]  # fmt: skip
    found += [f"spec.securityContext.{field}" for field in _of_both(pod)]
    for kind in ("initContainers", "containers", "ephemeralContainers"):
        for container in spec.get(kind, ()):
            found += [f"spec.{kind}[{container['name']}].{field}" for field in _of_container(container, pod)]
    return found


def _of_both(context: Map) -> Iterator[str]:
    if context.get("runAsUser") == 0:
        yield "runAsUser"
    if context.get("windowsOptions", {}).get("hostProcess"):
        yield "windowsOptions.hostProcess"
    options = context.get("seLinuxOptions", {})
    if options.get("type", "") not in _SELINUX or options.get("user") or options.get("role"):
        yield "seLinuxOptions"
    if context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in _SECCOMP:
        yield "appArmorProfile"


def _of_container(container: Map, pod: Map) -> Iterator[str]:
    context = container.get("securityContext") or {}
    yield from (f"securityContext.{field}" for field in _of_both(context))
    if context.get("privileged"):
        yield "securityContext.privileged"
    if context.get("allowPrivilegeEscalation") is not False:
        yield "securityContext.allowPrivilegeEscalation"
    if not context.get("runAsNonRoot", pod.get("runAsNonRoot")):
        yield "securityContext.runAsNonRoot"
    if (context.get("seccompProfile") or pod.get("seccompProfile") or {}).get("type") not in _SECCOMP:
        yield "securityContext.seccompProfile"
    capabilities = context.get("capabilities", {})
    if "ALL" not in capabilities.get("drop", ()):
        yield "securityContext.capabilities.drop"
    if set(capabilities.get("add", ())) - {"NET_BIND_SERVICE"}:
        yield "securityContext.capabilities.add"
    if context.get("procMount", "Default") != "Default":
        yield "securityContext.procMount"
    yield from _of_ports(container)


def _of_ports(container: Map) -> Iterator[str]:
    if any(port.get("hostPort") for port in container.get("ports", ())):
        yield "ports.hostPort"
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if any(container.get(name, {}).get(way, {}).get("host") for way in ("httpGet", "tcpSocket")):
            yield f"{name}.host"
