"""Which images the pods of a cluster run now: how many pods, and on which nodes.

What a cluster answers is its tenants' text: names that are none are counted and left out, and so is what has no node.
Source: Kubernetes API reference, Pod v1 (``status.phase``: of Succeeded and Failed nothing runs any more).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Final

from parbake.core.errors import BadReference
from parbake.core.printable import word
from parbake.core.reference import Reference
from parbake.core.yamltext import as_list, as_map

_KINDS: Final = ("initContainers", "containers")
_OVER: Final = frozenset({"Succeeded", "Failed"})


@dataclass(slots=True)
class LiveImages:
    """What pods run; ``of_pods`` counts them by image."""

    of_pods: Counter[Reference] = field(default_factory=Counter)
    no_names: set[str] = field(default_factory=set)
    _nodes: defaultdict[str, set[Reference]] = field(default_factory=lambda: defaultdict(set))

    def take(self, pod: Mapping[str, Any]) -> None:
        """Take in a pod, as the API has it."""
        spec, status = (as_map(pod.get(key)) for key in ("spec", "status"))
        if status.get("phase") in _OVER or not spec.get("nodeName"):
            return
        found = set()
        for each in (one for kind in _KINDS for one in as_list(spec.get(kind))):
            name = str(as_map(each).get("image") or "")
            try:
                found.add(Reference.parse(name))
            except BadReference:
                self.no_names.add(word(name))
        self.of_pods.update(found)
        self._nodes[str(spec["nodeName"])] |= found

    def together(self, wanted: set[Reference]) -> Counter[frozenset[Reference]]:
        """Return which of the images run together, and on how many nodes."""
        return Counter(group for images in self._nodes.values() if (group := frozenset(images & wanted)))

    def nodes(self) -> Counter[Reference]:
        """Return on how many nodes each image runs."""
        return Counter(image for images in self._nodes.values() for image in images)


def excluded(image: Reference, patterns: tuple[str, ...]) -> bool:
    """Whether a pattern fits an image's whole name, as it is written or normalised."""
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in (str(image), image.written))
