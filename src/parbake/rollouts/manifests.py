"""Manifests in files: node classes, Helm values, InstanceGroups of kOps, machine templates of Cluster API.

The text is edited in place (comments, order and quoting stay), in the work tree or as a commit on a branch; no cluster
is touched. What was there before is written down in the manifest's annotation ``parbake/rollout``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, override

from parbake.bakefile.targets import FileTarget, GitopsTarget
from parbake.core.errors import InputError, TargetMoved
from parbake.rollouts import gitops, nodeclass, userdata, variants
from parbake.rollouts.nodeclass import ANNOTATION, NodeClass
from parbake.rollouts.protocol import (
    Change,
    History,
    Offer,
    Rollout,
    RolloutProgress,
    TargetState,
    TargetStatus,
    already_back,
    history_text,
    read_history,
)

_NODE_CLASSES = ("EC2NodeClass", "AWSNodeTemplate")
_MOST_FILES = 200  # of a folder that are searched for NodePools
_FOLLOWED_ELSEWHERE = RolloutProgress(0, 0, done=True)


class _Text:
    """A manifest file: read and written whole, in the work tree or on a branch."""

    def __init__(self, path: Path, branch: str = "") -> None:
        self.path, self.branch = path, branch
        self.where = f"{path.name}, branch {branch}" if branch else path.name

    def read(self) -> str:
        """Return the text; raises InputError."""
        if self.branch:
            repository, path = self._repository()
            return repository.read(path, self.branch)
        try:
            return _read(self.path)
        except FileNotFoundError:
            raise InputError(f"there is no file {self.path}", hint="correct the target's path") from None
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path} is not UTF-8 at byte {error.start}", hint="save it as UTF-8") from error

    def beside(self) -> list[str]:
        """Return the texts of the YAML files in its folder, as far as they can be read; its own among them."""
        repository = self._repository()[0] if self.branch else None
        if repository:
            others = [Path(each) for each in repository.beside(self._repository()[1], self.branch)]
        else:
            others = sorted(self.path.absolute().parent.iterdir())
        found = list[str]()
        for other in [each for each in others if each.suffix in {".yaml", ".yml"}][:_MOST_FILES]:
            with suppress(InputError, OSError, UnicodeDecodeError):
                found.append(repository.read(str(other), self.branch) if repository else _read(other))
        return found

    def write(self, before: str, after: str, message: str) -> None:
        """Write the text, if the file is still what it was."""
        if self.branch:
            repository, path = self._repository()
            repository.commit(gitops.Edit(path, before, after), message=message, branch=self.branch)
            return
        if self.read() != before:
            raise TargetMoved(f"{self.path} was changed in the meantime")
        gitops.write(self.path.parent, gitops.Edit(self.path.name, before, after))

    def diff(self, before: str, after: str) -> str:
        """Return a patch."""
        path = self._repository()[1] if self.branch else self.path.name
        return gitops.Edit(path, before, after).diff

    def _repository(self) -> tuple[gitops.Repository, str]:
        repository = gitops.Repository.open(self.path)
        top, path = gitops.inside(self.path)
        return repository, str(path.relative_to(top))


def _read(path: Path) -> str:
    return gitops.inside(path)[1].read_bytes().decode()


class _Manifest(Rollout):
    """What all kinds of manifests share; a kind says what it finds and how it changes."""

    def __init__(self, path: Path, branch: str = "") -> None:
        self.file = _Text(path, branch)
        self.where = self.file.where

    @override
    def plan(self, offer: Offer) -> Change:
        text = self.file.read()
        change, after = self.decided(text, offer)
        return self._with_texts(change, text, after, f"Roll out {offer.name}\n\n{change.before} -> {change.after}\n")

    @override
    def plan_rollback(self) -> Change:
        text = self.file.read()
        change, after = self.decided_back(text)
        return self._with_texts(change, text, after, f"Roll back\n\n{change.before} -> {change.after}\n")

    @override
    def write(self, change: Change) -> None:
        self.file.write(change.payload["before"], change.payload["after"], change.payload["message"])

    @override
    def follow(self, wanted: TargetState) -> RolloutProgress:
        """Say that it is done: who reads the file is not asked."""
        del wanted
        return _FOLLOWED_ELSEWHERE

    @override
    def status(self) -> TargetStatus:
        raise NotImplementedError

    def decided(self, text: str, offer: Offer) -> tuple[Change, str]:
        """Return the change, and the text that it makes."""
        raise NotImplementedError

    def decided_back(self, text: str) -> tuple[Change, str]:
        """Return the change back, and the text that it makes."""
        raise NotImplementedError

    def _with_texts(self, change: Change, before: str, after: str, message: str) -> Change:
        diff = self.file.diff(before, after) if before != after else ""
        payload = {"before": before, "after": after, "message": message}
        return replace(change, where=f"{change.where} in {self.where}", diff=diff, payload=payload)


class NodeClassFile(_Manifest):
    """A node class of Karpenter in a manifest, or a kustomize patch of one."""

    def __init__(self, target: GitopsTarget) -> None:
        super().__init__(target.file, target.branch)
        self.target = target

    @override
    def decided(self, text: str, offer: Offer) -> tuple[Change, str]:
        place, found = self._found(text)
        change = nodeclass.decide(found, offer, **nodeclass.options_of(self.target))
        objections = variants.objections(found, self._pools(place.name), (), offer)
        change = replace(
            change,
            refusals=(*change.refusals, *objections.refusals),
            cautions=(*change.cautions, *objections.cautions),
        )
        return change, gitops.change(text, place, change.payload) if change.payload else text

    @override
    def decided_back(self, text: str) -> tuple[Change, str]:
        place, found = self._found(text)
        change = nodeclass.decide_rollback(found, device=self.target.device)
        return change, gitops.change(text, place, change.payload) if change.payload else text

    @override
    def status(self) -> TargetStatus:
        _, found = self._found(self.file.read())
        return TargetStatus(f"{found} in {self.where}", found.held(self.target.device), found.history)

    def _pools(self, name: str) -> list[Mapping[str, Any]]:
        """Return the NodePools of a node class, as far as they lie in the folder of its file."""
        named = ("spec", "template", "spec", "nodeClassRef", "name")
        places = [place for text in self.file.beside() for place in gitops.find(text, "", kinds=("NodePool",))]
        return [each.data for each in places if gitops.value_at(each.data, named) == name]

    def _found(self, text: str) -> tuple[gitops.ManifestPlace, NodeClass]:
        source, name = self.target.file.name, self.target.nodeclass
        gitops.read(text, source=self.where)  # `find` passes over what is not YAML; here it is the only file
        places = gitops.find(text, source, kinds=_NODE_CLASSES, name=name)
        place = gitops.the_one(places, f"the node class {name}" if name else "a node class")
        if isinstance(place.data, Mapping):
            return place, NodeClass(place.data)
        described = {"kind": place.kind, "metadata": {"name": place.name}, "spec": {}}
        return place, NodeClass(gitops.merged(described, gitops.patched_values(place.data)))


class ValuesFile(_Manifest):
    """Values of a Helm chart, by their paths. The way back is the repository's history."""

    def __init__(self, target: GitopsTarget) -> None:
        super().__init__(target.file, target.branch)
        self.target = target

    @override
    def decided(self, text: str, offer: Offer) -> tuple[Change, str]:
        pairs = ((self.target.image_at, offer.image), (self.target.snapshot_at, offer.snapshot))
        if not any(path and value for path, value in pairs):
            raise InputError(f"{self.where}: no path for what is rolled out", hint="write image_at or snapshot_at")
        before, after = self._held(text), text
        for path, value in pairs:
            if path and value:
                after = gitops.set_value(after, path, value, source=self.where)
        after, cautions = self._with_user_data(after, offer)
        held = self._held(after).model_copy(update={"artefacts": offer.artefacts})
        return Change("values", before, held, cautions=cautions), after

    def _with_user_data(self, text: str, offer: Offer) -> tuple[str, tuple[str, ...]]:
        """Put parbake's parts into the user data among the values; return also what to know of it."""
        target = self.target
        parts = {"hydrate": offer.hydrate, "store": userdata.KEEP_STORE if target.keep_store else ""}
        if offer.snapshot:  # a machine image alone leaves the volume that there is
            parts["mount"] = offer.mount
        if not target.user_data_at:
            names = " and ".join(sorted(name for name, part in parts.items() if part))
            if not names:
                return text, ()
            return text, (
                f"the values have no place for the user data with the parts for {names}: name `user_data_at`",
            )
        now = self._at(text, target.user_data_at)
        new = userdata.with_parts(now, parts)
        if new != now:
            text = gitops.set_value(text, target.user_data_at, new, source=self.where)
        return text, (*userdata.too_large(new, userdata.ROOM), *userdata.unreadable(new))

    @override
    def decided_back(self, text: str) -> tuple[Change, str]:
        """Refuse: values have no place for a note."""
        del text
        raise InputError(
            f"{self.where}: a chart's values do not record what was there before", hint="git revert the commit"
        )

    @override
    def status(self) -> TargetStatus:
        return TargetStatus(f"values in {self.where}", self._held(self.file.read()))

    def _held(self, text: str) -> TargetState:
        target = self.target
        return TargetState(images=[self._at(text, target.image_at)], snapshot=self._at(text, target.snapshot_at))

    def _at(self, text: str, path: str) -> str:
        data = gitops.read(text, source=self.where)
        return str(gitops.value_at(data, gitops.parse_path(path)) or "") if path else ""


class _ImageFile(_Manifest):
    """A manifest that names one machine image; ``kinds`` and ``patched_values`` tell how."""

    kinds: tuple[str, ...] = ()

    def __init__(self, target: FileTarget) -> None:
        super().__init__(target.path)
        self.target = target

    @override
    def decided(self, text: str, offer: Offer) -> tuple[Change, str]:
        if not offer.images or offer.snapshot:
            raise InputError(
                f"{self.where} takes only machine images: further disks are empty there, and name no snapshot",
                hint="give the record of a machine image",
            )
        place = self._place(text)
        now = self.held(place)
        wanted = offer.held
        if now.image == offer.image:
            return Change(f"{place.kind} {place.name}", now, wanted), text
        history = History(offer.way_back(now, now, _history(place).previous), current=wanted)
        return self._changed(text, place, now, wanted, self.spec(place, offer), history)

    @override
    def decided_back(self, text: str) -> tuple[Change, str]:
        place = self._place(text)
        before, now = _history(place).way_back(self.where), self.held(place)
        if before is None:
            return already_back(f"{place.kind} {place.name}", now), text
        return self._changed(text, place, now, before, before.spec, History(left=now, current=before))

    @override
    def status(self) -> TargetStatus:
        place = self._place(self.file.read())
        return TargetStatus(f"{place.kind} {place.name} in {self.where}", self.held(place), _history(place))

    def spec(self, place: gitops.ManifestPlace, offer: Offer) -> dict[str, Any]:
        """Return the merge patch that names the image."""
        raise NotImplementedError

    def now(self, place: gitops.ManifestPlace) -> tuple[str, dict[str, Any]]:
        """Return the image that is named, and the merge patch that names it again."""
        raise NotImplementedError

    def follow_up(self, text: str, place: gitops.ManifestPlace, patch: Mapping[str, Any]) -> str:
        """Change what refers to the manifest."""
        del place, patch
        return text

    def held(self, place: gitops.ManifestPlace) -> TargetState:
        """Return what is named; the artefact where the note still fits."""
        image, spec = self.now(place)
        current = _history(place).current
        known = current if current and image and current.images == (image,) else TargetState()
        by_id = image.startswith("ami-")
        return TargetState(
            images=[image] if by_id else (),
            label="" if by_id else image or "no image by id",
            artefacts=known.artefacts,
            keys=known.keys,
            spec=spec,
        )

    def _changed(
        self,
        text: str,
        place: gitops.ManifestPlace,
        now: TargetState,
        wanted: TargetState,
        spec: Mapping[str, Any],
        history: History[TargetState],
    ) -> tuple[Change, str]:
        metadata = {**spec.get("metadata", {}), "annotations": {ANNOTATION: history_text(history)}}
        patch = {**spec, "metadata": metadata}
        after = self.follow_up(gitops.change(text, place, patch), place, patch)
        return Change(f"{place.kind} {place.name}", now, wanted), after

    def _place(self, text: str) -> gitops.ManifestPlace:
        places = gitops.find(text, self.file.path.name, kinds=self.kinds, name=self.target.object)
        return gitops.the_one(places, f"{' or '.join(self.kinds)} {self.target.object}".rstrip())


class InstanceGroupFile(_ImageFile):
    """An InstanceGroup of kOps: ``spec.image``. `kops replace`, `kops update cluster` and a rolling update follow."""

    kinds = ("InstanceGroup",)

    @override
    def spec(self, place: gitops.ManifestPlace, offer: Offer) -> dict[str, Any]:
        del place
        return {"spec": {"image": offer.image}}

    @override
    def now(self, place: gitops.ManifestPlace) -> tuple[str, dict[str, Any]]:
        image = (place.data.get("spec") or {}).get("image")
        return str(image or ""), {"spec": {"image": image}}


class MachineTemplateFile(_ImageFile):
    """An AWSMachineTemplate of Cluster API: it cannot be changed, so it gets a new name, and its users follow."""

    kinds = ("AWSMachineTemplate",)

    @override
    def spec(self, place: gitops.ManifestPlace, offer: Offer) -> dict[str, Any]:
        """Name the image, under a name that follows from it."""
        stem = place.name.partition("-parbake-")[0]
        name = f"{stem}-parbake-{offer.image.removeprefix('ami-')}"
        return {"metadata": {"name": name}, "spec": {"template": {"spec": {"ami": {"id": offer.image}}}}}

    @override
    def now(self, place: gitops.ManifestPlace) -> tuple[str, dict[str, Any]]:
        ami = gitops.value_at(place.data, ("spec", "template", "spec", "ami"))
        image = ami.get("id") if isinstance(ami, Mapping) else None
        again = {"metadata": {"name": place.name}, "spec": {"template": {"spec": {"ami": ami}}}}
        return str(image or ""), again

    @override
    def follow_up(self, text: str, place: gitops.ManifestPlace, patch: Mapping[str, Any]) -> str:
        """Let MachineDeployments and MachinePools in the file refer to the new name."""
        for user in self._users(text, place.name):
            reference = {"infrastructureRef": {"name": patch["metadata"]["name"]}}
            text = gitops.change(text, user, {"spec": {"template": {"spec": reference}}})
        return text

    def _users(self, text: str, name: str) -> Iterator[gitops.ManifestPlace]:
        kinds = ("MachineDeployment", "MachinePool", "MachineSet")
        for user in gitops.find(text, self.file.path.name, kinds=kinds):
            if gitops.value_at(user.data, ("spec", "template", "spec", "infrastructureRef", "name")) == name:
                yield user


def _history(place: gitops.ManifestPlace) -> History[TargetState]:
    return read_history(gitops.value_at(place.data, ("metadata", "annotations", ANNOTATION)))
