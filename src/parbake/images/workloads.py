"""Which images do Kubernetes manifests use: from files, from what helm and kustomize print, from a cluster.

A pod spec is recognised by its shape (``spec`` with a list of ``containers``) wherever it stands, so workloads of
custom resources (Argo Rollouts, Knative Services, JobSets, …) count as well as Kubernetes' own.
Source: the PodSpec of the Kubernetes API, core/v1.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from parbake.core import run
from parbake.core.errors import BadReference, InputError
from parbake.core.printable import word
from parbake.core.reference import Reference
from parbake.core.yamltext import ODD_KEY, Document, Where, as_list, as_map, dotted, parse
from parbake.images.owners import Owners

_SUFFIXES = {".yaml", ".yml", ".json"}
_LARGEST_FILE = 64 << 20
_MOST_NODES = 5_000_000
_CLUSTER_KINDS = "pods,deployments,statefulsets,daemonsets,replicasets,replicationcontrollers,jobs,cronjobs"
_CLUSTER_SECONDS = 180.0
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")
_MOST_NAMED = 10
_HOOKS = ("helm.sh/hook", "argocd.argoproj.io/hook")
VOLUME = "volume "
"""How the names of image volumes begin, in the place of a container's."""
_RENDER = "render it first: helm template CHART | parbake init --from-manifests -"

type Documents = tuple[tuple[str, str], ...]
"""Pairs of where a text is from (a path, or a name for people) and the text."""
type ConfigMaps = Mapping[tuple[str, str], Mapping[str, object]]
"""What the ConfigMaps hold that were read, by namespace and name."""


@dataclass(frozen=True, slots=True, order=True)
class Use:
    """Who uses an image: a container (or an image volume) of an object. Empty where a manifest does not say."""

    kind: str
    namespace: str
    name: str
    container: str

    @property
    def is_volume(self) -> bool:
        """Whether it is an image volume, which no container is named like."""
        return self.container.startswith(VOLUME)

    def __str__(self) -> str:
        place = "/".join(part for part in (self.namespace, self.name) if part)
        return f"{self.kind} {place or '(unnamed)'}, {self.container}"


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs an image: who it is, its pod's specification, and the object that has it."""

    use: Use
    group: str
    said: Mapping[str, object]
    spec: Mapping[str, object]
    metadata: Mapping[str, object]

    @property
    def command(self) -> tuple[object, object]:
        """What it runs in the place of the image's own."""
        return self.said.get("command"), self.said.get("args")

    @property
    def rank(self) -> tuple[object, ...]:
        """Its place among others that run the image: what goes on running and says how it is looked at comes first."""
        runs_on = self.group == _CONTAINERS[1] and self.use.kind not in {"Job", "CronJob"}
        return not runs_on, not any(key.endswith("Probe") for key in self.said), self.use


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image, by its normalised reference, and all who use it."""

    reference: Reference
    uses: tuple[Use, ...]
    container: Container | None = None
    """The container that says most of how it starts; None where none runs it."""
    others_differ: bool = False
    """Whether other containers run it with another command."""

    @property
    def on_every_node(self) -> bool:
        """Whether a DaemonSet runs it: each node pulls it before it is of use."""
        return any(use.kind == "DaemonSet" for use in self.uses)

    @property
    def only_mounted(self) -> bool:
        """Whether no container runs it: pods have it as a volume."""
        return all(use.is_volume for use in self.uses)


@dataclass(frozen=True, slots=True)
class FoundImages:
    """The images that manifests use, sorted by reference, and what to know before baking them."""

    images: tuple[FoundImage, ...]
    warnings: tuple[str, ...]
    configs: ConfigMaps


@dataclass(slots=True)
class _Search:
    """What was found so far."""

    uses: dict[Reference, set[Use]] = field(default_factory=dict)
    always: dict[Reference, set[Use]] = field(default_factory=dict)
    direct: set[Use] = field(default_factory=set)
    """Uses by objects that no controller made of another."""
    containers: dict[Reference, list[Container]] = field(default_factory=dict)
    owners: Owners = field(default_factory=lambda: Owners(()))
    warnings: dict[str, None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    template: bool = False

    def note(self, place: str, use: Use, image: object, policy: object) -> Reference | None:
        """Take down who uses which image, or what is wrong with its name; return its reference."""
        if image is None or image == "":
            # The API allows it: something else (an operator, an admission webhook) fills it in.
            self.warnings[f"{place}: {use} has no image: it is set elsewhere; add it by hand"] = None
        elif isinstance(image, Mapping) or "{{" in str(image):
            self.unrendered(place)
        elif "$" in str(image):
            self.problems.append(
                f"{place}: {image} contains a variable that has not been substituted (by envsubst, kustomize, …)"
            )
        else:
            try:
                reference = Reference.parse(str(image).strip())
            except BadReference as error:
                self.problems.append(f"{place}: {error.message}")
                return None
            self.uses.setdefault(reference, set()).add(use)
            # Without a policy, Kubernetes takes Always for `latest` and IfNotPresent for the rest.
            if policy == "Always" or (policy is None and reference.tag == "latest" and not reference.digest):
                self.always.setdefault(reference, set()).add(use)
            return reference
        return None

    def found(self, name: Reference) -> FoundImage:
        """Put together what is known of an image."""
        lasting, known = self.lasting(self.uses[name]), set(self.lasting(self.uses[name]))
        containers = [each for each in self.containers.get(name, ()) if each.use in known]
        if not containers:
            return FoundImage(name, lasting)
        first = min(containers, key=lambda each: each.rank)
        return FoundImage(name, lasting, first, any(each.command != first.command for each in containers))

    def lasting(self, uses: set[Use]) -> tuple[Use, ...]:
        """Leave out what a controller made, unless only that uses the image (an injected sidecar)."""
        return tuple(sorted(uses & self.direct or uses))

    def unrendered(self, place: str) -> None:
        """Take down a template where a manifest belongs."""
        self.template = True
        self.problems.append(f"{place}: a template ({{{{ … }}}}), not a manifest")


def images_in(documents: Iterable[tuple[str, str]]) -> FoundImages:
    """Find the images in manifests; documents that are not Kubernetes objects are passed over.

    Raises InputError that names file and line where a text is not YAML or JSON, is an unrendered template, or names an
    image that is not a reference: all of them at once.
    """
    search = _Search()
    read = []
    for source, text in documents:
        things = [thing for each in _documents(source, text, search) for thing in _things(source, each)]
        read.append((things, tuple(search.problems)))
        search.problems.clear()
    every = [thing.data for things, _ in read for thing in things]
    search.owners = Owners(every)
    for things, problems in read:
        search.problems += problems
        for thing in things:
            _object(thing, search)
    if search.problems:
        listed = "\n".join(f"  {word(problem)}" for problem in search.problems)
        hint = _RENDER if search.template else "correct the manifests, or leave them out"
        raise InputError(f"the manifests have {len(search.problems)} problem(s)\n{listed}", hint=hint)
    images = tuple(search.found(name) for name in sorted(search.uses, key=str))
    return FoundImages(images, tuple(map(word, (*search.warnings, *_advice(images, search)))), config_maps(every))


@dataclass(frozen=True, slots=True)
class Thing:
    """One Kubernetes object: where it is from, its document, its place in that (an item of a list), and its data."""

    source: str
    document: Document
    where: Where
    data: Mapping[str, object]

    def line(self, where: Where = ()) -> int:
        """Return the line of a place in the object, as far as the text goes; 0 where there are no lines."""
        return self.document.find((*self.where, *where))[1]

    @property
    def kind(self) -> str:
        """Its kind."""
        return str(self.data["kind"])

    def use(self, container: str = "") -> Use:
        """Name the object, and a container in it."""
        metadata = as_map(self.data.get("metadata"))
        return Use(self.kind, str(metadata.get("namespace") or ""), str(metadata.get("name") or ""), container)


def things_in(documents: Iterable[tuple[str, str]]) -> tuple[tuple[Thing, ...], tuple[str, ...]]:
    """Return every Kubernetes object, and in words what could not be read (templates, no YAML)."""
    search, found = _Search(), list[Thing]()
    for source, text in documents:
        for document in _documents(source, text, search):
            found += _things(source, document)
    return tuple(found), tuple(search.problems)


def _things(source: str, document: Document) -> Iterator[Thing]:
    pending: list[tuple[Where, object]] = [((), document.data)]
    while pending:
        where, data = pending.pop()
        if not isinstance(data, Mapping) or not isinstance(data.get("kind"), str) or "apiVersion" not in data:
            continue
        items = data.get("items")
        if data["kind"].endswith("List") and isinstance(items, list | tuple):
            typed = {"kind": data["kind"].removesuffix("List"), "apiVersion": data["apiVersion"]}  # items may lack both
            listed = [((*where, "items", index), {**typed, **as_map(item)}) for index, item in enumerate(items)]
            pending += reversed(listed)
            continue
        yield Thing(source, document, where, data)


def config_maps(objects: Iterable[Mapping[str, object]]) -> ConfigMaps:
    """Return what the ConfigMaps among objects hold."""
    found: dict[tuple[str, str], Mapping[str, object]] = {}
    for each in (one for one in objects if one.get("kind") == "ConfigMap"):
        metadata = as_map(each.get("metadata"))
        found[str(metadata.get("namespace") or ""), str(metadata.get("name"))] = as_map(each.get("data"))
    return found


def collect(names: Iterable[str], *, cluster: bool = False, context: str = "") -> Documents:
    """Read what a command was given: files or folders (``read_folder``), standard input for ``-``, a ``cluster``'s."""
    found: list[tuple[str, str]] = []
    for name in names:
        found += [("standard input", sys.stdin.read())] if name == "-" else read_folder(Path(name))
    return (*found, *(from_cluster(context) if cluster else ()))


def read_folder(path: Path) -> Documents:
    """Read every .yaml, .yml and .json file below a folder, or the one file that ``path`` is.

    Hidden folders (``.git``) are passed over. Raises InputError when there is nothing to read.
    """
    if path.is_file():
        return ((str(path), _read(path)),)
    if not path.is_dir():
        raise InputError(f"there is no folder or file {path}", hint="name the folder that holds the manifests, or -")
    found = []
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(folder, name) for name in sorted(names) if Path(name).suffix in _SUFFIXES]
    if not found:
        raise InputError(f"there is no .yaml, .yml or .json file below {path}", hint="name the folder of the manifests")
    return tuple((str(each), _read(each)) for each in found)


def from_cluster(context: str = "", kinds: str = _CLUSTER_KINDS) -> Documents:
    """Ask the cluster of ``kubectl``'s context (empty: the current one) for its workloads and pods, or other ``kinds``.

    Raises EnvironmentProblem without kubectl, CommandFailed with what kubectl said, DeadlineExceeded after 3 minutes.
    """
    command = ["kubectl", "get", kinds, "-A", "-o", "json", *(["--context", context] if context else [])]
    # Login plugins of kubeconfig files (aws, gcloud, kubelogin) read variables of their own: kubectl gets ours.
    result = run.run(command, timeout=_CLUSTER_SECONDS, env={**os.environ, "LC_ALL": "C.UTF-8"}, may_ask=True)
    return ((f"the cluster{f' {context}' if context else ''}", result.stdout.decode(errors="replace")),)


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path} is larger than {_LARGEST_FILE >> 20} MiB: not a manifest", hint="take it out")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 at byte {error.start}", hint="save it as UTF-8, or take it out"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _documents(source: str, text: str, search: _Search) -> tuple[Document, ...]:
    if text.lstrip().startswith("{"):
        try:  # a hundred times faster than YAML, and what kubectl prints is large
            return (Document(json.loads(text), 0),)
        except (ValueError, RecursionError):
            pass  # YAML in braces, a template, or an error that YAML's parser explains with its line
    parsed = parse(text, most=_MOST_NODES)
    odd = next((problem for problem in parsed.problems if problem.message == ODD_KEY), parsed.syntax_error)
    if odd and "{{" in text:
        lines = text.splitlines()
        exact = "{{" in lines[odd.line - 1] if odd.line else False
        line = odd.line if exact else next(number for number, each in enumerate(lines, 1) if "{{" in each)
        search.unrendered(f"{source}, line {line}")
        return ()
    if parsed.syntax_error:
        search.problems.append(f"{source}, line {parsed.syntax_error.line}: {parsed.syntax_error.message}")
    return parsed.documents


def _object(thing: Thing, search: _Search) -> None:
    """Look at one Kubernetes object."""
    if thing.kind == "Kustomization" and thing.data.get("images"):
        search.warnings[
            f"{thing.source} replaces images: the names found here may differ from those that run; "
            "`kustomize build FOLDER | parbake init --from-manifests -` finds the right ones"
        ] = None
    annotations = as_map(as_map(thing.data.get("metadata")).get("annotations"))
    if hook := next(filter(None, map(annotations.get, _HOOKS)), None):
        _leave_out(thing, str(hook), search)
    else:
        _pods(thing, search)


def _leave_out(thing: Thing, hook: str, search: _Search) -> None:
    """Say which images are left out with an object that runs once, when something is installed or tested."""
    name = str(as_map(thing.data.get("metadata")).get("name") or "(unnamed)")
    images = {str(image) for _, spec in pod_specs(thing.data, ()) for _, _, image, _ in images_of(spec)}
    if images:
        search.warnings[
            f"{thing.source}: {thing.kind} {name} is a hook ({hook}), nothing that new nodes run: what only it has is "
            f"left out ({', '.join(sorted(images)[:_MOST_NAMED])})"
        ] = None


def _pods(thing: Thing, search: _Search) -> None:
    """Look at every pod that an object describes."""
    metadata = as_map(thing.data.get("metadata"))
    made_by = search.owners.named(thing.data)
    kind, name = made_by or (thing.kind, str(metadata.get("name") or ""))
    names = Use(kind, str(metadata.get("namespace") or ""), name, "")
    for place, spec in pod_specs(thing.data, ()):
        for position, container, image, policy in images_of(spec):
            where, line = dotted((*thing.where, *place, *position)), thing.line((*place, *position))
            use = replace(names, container=container)
            if made_by is None:
                search.direct.add(use)
            named = search.note(f"{thing.source}{f', line {line}' if line else ''}: {where}", use, image, policy)
            if named and not use.is_volume:
                group, index = str(position[0]), int(position[1])
                found = Container(use, group, as_map(as_list(spec.get(group))[index]), spec, metadata)
                search.containers.setdefault(named, []).append(found)


def pod_specs(data: object, where: Where) -> Iterator[tuple[Where, Mapping[str, object]]]:
    """Find every ``spec`` that has a list of containers; iterative, since documents nest as deep as they like."""
    pending: list[tuple[Where, object]] = [(where, data)]
    while pending:
        place, value = pending.pop()
        if isinstance(value, Mapping):
            if place[-1:] == ("spec",) and isinstance(value.get("containers"), list | tuple):
                yield place, value
            else:
                pending += [((*place, str(key)), each) for key, each in value.items()]
        elif isinstance(value, list | tuple):
            pending += [((*place, index), each) for index, each in enumerate(value)]


def images_of(spec: Mapping[str, object]) -> Iterator[tuple[Where, str, object, object]]:
    """Yield place, container, image and pull policy of each container and image volume of a pod spec."""
    for group in _CONTAINERS:
        for index, container in enumerate(as_list(spec.get(group))):
            entry = as_map(container)
            name = str(entry.get("name") or f"{group}[{index}]")
            yield (group, index, "image"), name, entry.get("image"), entry.get("imagePullPolicy")
    for index, volume in enumerate(as_list(spec.get("volumes"))):
        image = as_map(volume).get("image")
        if image is not None:
            name = f"{VOLUME}{as_map(volume).get('name') or index}"
            yield (
                ("volumes", index, "image", "reference"),
                name,
                as_map(image).get("reference"),
                as_map(image).get("pullPolicy"),
            )


def _advice(images: tuple[FoundImage, ...], search: _Search) -> Iterator[str]:
    for image in images:
        reference = image.reference
        if reference.tag == "latest" and not reference.digest:
            yield f"{image.reference}: `latest` moves: what is baked today may not be what runs tomorrow"
        if always := search.lasting(search.always.get(image.reference, set())):
            named = "; ".join(str(use) for use in always[:_MOST_NAMED])
            more = f"; and {len(always) - _MOST_NAMED} more" if len(always) > _MOST_NAMED else ""
            yield (
                f"{image.reference}: imagePullPolicy is Always in {named}{more}: a start still asks the registry for "
                "the manifest; set IfNotPresent"
            )
