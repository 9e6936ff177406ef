"""The kubelet's configuration that leaves baked images to pods whatever happens to their registry. Pure.

Sources: KubeletConfiguration v1beta1; KEP-2535; kubernetes ``pkg/kubelet/images/pullmanager/image_pull_policies.go``
(an entry is a whole normalised name, without tag and digest, or ends with ``/*``; from 1.36 on the pod's name is
normalised before it is compared). Seen on kubelet 1.36.2: with the list, an image starts although a record of the
kubelet's says that it must be verified.
"""

from __future__ import annotations

from collections.abc import Iterable
from io import StringIO
from typing import Any, Literal

from ruamel.yaml import YAML

from parbake.core.reference import Reference

type Form = Literal["kubelet", "nodeadm"]
POLICY = "NeverVerifyAllowlistedImages"
_HEAD = """\
# Baked images start without their registry, also after a pod has pulled one of them. All other images are verified.
# For kubelets of Kubernetes 1.35 and later; 1.33 and 1.34 refuse it without the gate KubeletEnsureSecretPulledImages.
"""


def settings(references: Iterable[str]) -> dict[str, Any]:
    """Return the settings for the repositories of these images."""
    names = sorted({Reference.parse(each).name for each in references})
    return {"imagePullCredentialsVerificationPolicy": POLICY, "preloadedImagesVerificationAllowlist": names}


def document(references: Iterable[str], form: Form) -> dict[str, Any]:
    """Return the whole object: a KubeletConfiguration, or nodeadm's NodeConfig with it."""
    found = settings(references)
    if form == "nodeadm":
        return {"apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig", "spec": {"kubelet": {"config": found}}}
    return {"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration", **found}


def text(document: dict[str, Any]) -> str:
    """Return an object as YAML, with what to know of it."""
    writer, stream = YAML(), StringIO()
    writer.indent(mapping=2, sequence=4, offset=2)
    writer.dump(document, stream)
    return _HEAD + stream.getvalue().rstrip()
