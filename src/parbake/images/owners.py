"""Which objects controllers made of which others: by their owner references. Pure.

Source: Kubernetes documentation, "Owners and Dependents"; the ObjectMeta of the API.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from parbake.core.yamltext import as_map

_DEEPEST = 10  # Deployment, ReplicaSet, pod: nobody nests deeper, but references could go round


class Owners:
    """The objects that were read, found by what others say of their owners."""

    def __init__(self, objects: Iterable[Mapping[str, object]]) -> None:
        self._known: dict[object, Mapping[str, object]] = {}
        for each in objects:
            metadata = as_map(each.get("metadata"))
            self._known[each.get("kind"), metadata.get("namespace") or "", metadata.get("name")] = each
            if metadata.get("uid"):
                self._known[metadata["uid"]] = each

    def maker(self, made: Mapping[str, object]) -> Mapping[str, object] | None:
        """Return what made an object, if it is among those that were read."""
        metadata, reference = as_map(made.get("metadata")), _controller(made)
        if reference is None:
            return None
        named = (reference.get("kind"), metadata.get("namespace") or "", reference.get("name"))
        uid = reference.get("uid")
        found = self._known.get(uid) if uid else None
        if found is None:
            found = self._known.get(named)
            there = as_map(as_map(found).get("metadata")).get("uid")
            if uid and there and uid != there:  # of the same name, made anew since
                return None
        return found

    def root(self, made: Mapping[str, object]) -> Mapping[str, object]:
        """Return the object in which what was made can be changed: the last owner that was read."""
        return list(self._chain(made))[-1]

    def named(self, made: Mapping[str, object]) -> tuple[str, str] | None:
        """Return kind and name of the last owner that is named, read or not; None for what nobody made."""
        last = self.root(made)
        reference = _controller(last)
        if reference is not None:
            return str(reference.get("kind") or ""), str(reference.get("name") or "")
        if last is made:
            return None
        return str(last.get("kind") or ""), str(as_map(last.get("metadata")).get("name") or "")

    def _chain(self, made: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
        here: Mapping[str, object] | None = made
        for _ in range(_DEEPEST):
            if here is None:
                return
            yield here
            here = self.maker(here)


def _controller(made: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return the owner that manages an object, else the first one."""
    listed = as_map(made.get("metadata")).get("ownerReferences")
    references = [each for each in listed if isinstance(each, Mapping)] if isinstance(listed, list | tuple) else []
    managing = (each for each in references if each.get("controller") is True)
    return next(managing, references[0] if references else None)
