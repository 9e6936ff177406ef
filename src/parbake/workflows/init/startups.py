"""How pods start their images: as much of it as a proof on a machine without a network can repeat. Pure.

What manifests say literally becomes keys of a Bakefile's ``startup``. What a Secret holds, or a ConfigMap that was not
read, is named, to be filled in; so is a literal value that looks like a secret, since a startup is in the record.
Sources: Kubernetes API reference, core/v1 (Container, Probe, EnvVar, Volume); kubelet, ``third_party/forked/golang/
expansion`` (``$(NAME)`` in commands and variables).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from pydantic import ValidationError

from parbake.bakefile.sections import MOST_FILES, StartupSection
from parbake.core.printable import word
from parbake.core.yamltext import as_list, as_map
from parbake.images.workloads import ConfigMaps, FoundImage

type Map = Mapping[str, object]
type _Lookup = Callable[[str], Map | None]

_MOST: Final = 32 << 10
"""Characters of what one image starts with: more is nothing that anybody edits."""
_MOST_NOTES: Final = 8
_LONGEST_KEY: Final = 512  # characters; YAML's end at 1024
_LONGEST_TIMEOUT: Final = 3600
_TIMEOUT: Final = 120  # seconds: the default of a Bakefile
_PROBES: Final = ("readinessProbe", "startupProbe", "livenessProbe")  # what serves, before what lives
_SECRET_NAME: Final = re.compile(
    r"(?i)(^|[_.-])(pass|passwd|password|pwd|secret|token|credentials?|(api|access|private|secret)_?key)([_.-]|$)"
)
_PLAIN: Final = re.compile(r"(?i)(/|https?://|[0-9.]*$|true$|false$)")  # a place, a number, a switch: no secret
_SECRET_OPTION: Final = re.compile(r"(?i)^--?(\S*[-_])?(password|passwd|secret|token|api-?key)([= ]|$)")
_LOGIN: Final = re.compile(r"://[^/@\s:]*:[^/@\s]+@")  # in a URL
_EXPANDED: Final = re.compile(r"\$\$|\$\(([^()]*)\)")
# What kubelets mount by themselves, in the pods of a cluster.
_OWN_MOUNTS: Final = "/var/run/secrets/kubernetes.io/"
_EMPTY: Final = ("emptyDir", "persistentVolumeClaim", "ephemeral")
_FIELDS: Final = {"status.podIP": "127.0.0.1", "status.hostIP": "127.0.0.1", "spec.nodeName": "localhost"}
"""What a pod's own fields are in a proof, which has the machine's loopback for a network."""


@dataclass(slots=True)
class PodStart:
    """How one container starts its image.

    ``keys`` are those of a Bakefile's ``startup``, ``fill`` the variables to be filled in, with where their values are
    from, and ``notes`` what else is not repeated.
    """

    keys: dict[str, object] = field(default_factory=dict)
    fill: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Take down what is not repeated; what comes too late is not shown."""
        if len(self.notes) < _MOST_NOTES:
            self.notes.append(text)


def start(image: FoundImage, configs: ConfigMaps) -> PodStart:
    """Return how the container of an image that says most of it starts it."""
    if image.container is None:
        return PodStart()
    found = start_of(image.container.spec, image.container.said, image.container.metadata, configs)
    if image.others_differ:
        found.note("others start it with another command")
    return found


def start_of(spec: Map, container: Map, metadata: Map, configs: ConfigMaps) -> PodStart:
    """Return how a container of a pod spec starts; ``metadata`` is of the object that has it."""
    found = PodStart()
    namespace = str(metadata.get("namespace") or "")
    variables = _variables(found, container, metadata, lambda name: _config(configs, namespace, name))
    for key, said in (("command", container.get("command")), ("args", container.get("args"))):
        words = tuple(expand(str(text), variables) for text in as_list(said))
        if any(map(_is_secret, words)):
            found.note(f"its {key} has what looks like a secret: write it with something that does for a proof")
            continue
        found.keys |= {key: words} if words else {}
        for name in sorted({name for text in words for name in _EXPANDED.findall(text)} & found.fill.keys()):
            found.note(f"its {key} has $({name}): write the value there")
    if variables:
        found.keys["env"] = variables
    _who(found, as_map(spec.get("securityContext")), as_map(container.get("securityContext")))
    if directory := container.get("workingDir"):
        found.keys["workdir"] = str(directory)
    _volumes(found, spec, container, lambda name: _config(configs, namespace, name))
    _probes(found, container)
    _leave_out_what_is_wrong(found)
    return found


def expand(text: str, known: Mapping[str, str]) -> str:
    """Put variables in the place of ``$(NAME)``, as a kubelet does; ``$$`` is a dollar, unknown names stay.

    What grows beyond all that is written is left out: variables could double each other.
    """
    size = 0

    def put(found: re.Match[str]) -> str:
        nonlocal size
        value = "$" if found[1] is None else known.get(found[1], found[0])
        size += len(value)
        return value if size <= _MOST else ""

    return _EXPANDED.sub(put, text)


def _config(configs: ConfigMaps, namespace: str, name: str) -> Map | None:
    """Find a ConfigMap: in the namespace, or where a manifest leaves the namespace to whoever applies it."""
    for where in dict.fromkeys((namespace, "")):
        if (where, name) in configs:
            return configs[where, name]
    others = [data for (_, other), data in configs.items() if other == name] if not namespace else []
    return others[0] if len(others) == 1 else None


# ---- variables


def _variables(found: PodStart, container: Map, metadata: Map, config: _Lookup) -> dict[str, str]:
    known: dict[str, str] = {}
    for each in map(as_map, as_list(container.get("envFrom"))):
        prefix = str(each.get("prefix") or "")
        for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
            source = as_map(each.get(key))
            data = config(str(source.get("name"))) if kind == "ConfigMap" else None
            for name, value in (data or {}).items():
                _take(found, known, f"{prefix}{name}", str(value))
            if source and data is None and source.get("optional") is not True:
                begins = f" (as {prefix}…)" if prefix else ""
                found.note(
                    f"its environment has all of {kind} {source.get('name')}{begins}: write what it needs in env"
                )
    for each in map(as_map, as_list(container.get("env"))):
        name, source = str(each.get("name") or ""), as_map(each.get("valueFrom"))
        if source:
            value, whence = _value_from(source, metadata, config)
        else:
            value = expand("" if each.get("value") is None else str(each["value"]), known)
            waits = sorted(found.fill.keys() & set(_EXPANDED.findall(value)))
            whence = f"made of {waits[0]}: {value}" if waits else ""
        known.pop(name, None)
        found.fill.pop(name, None)
        if whence:
            found.fill[name] = whence
        elif value is not None:
            _take(found, known, name, value)
    return known


def _take(found: PodStart, known: dict[str, str], name: str, value: str) -> None:
    if _LOGIN.search(value) or (_SECRET_NAME.search(name) and not _PLAIN.match(value)):
        known.pop(name, None)
        found.fill[name] = "its value in the manifest looks like a secret"
    else:
        known[name] = value


def _value_from(source: Map, metadata: Map, config: _Lookup) -> tuple[str | None, str]:
    """Return a value, or where it is from; neither for what may be missing."""
    for kind, key in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
        if named := as_map(source.get(key)):
            data = config(str(named.get("name"))) if kind == "ConfigMap" else None
            if data is not None and named.get("key") in data:
                return str(data[str(named.get("key"))]), ""
            optional = named.get("optional") is True
            return None, "" if optional else f"{kind} {named.get('name')}, key {named.get('key')}"
    path = str(as_map(source.get("fieldRef")).get("fieldPath") or "")
    if path in {"metadata.name", "metadata.namespace"}:
        return str(metadata.get(path.partition(".")[2]) or "default"), ""
    return _FIELDS.get(path.removesuffix("s")), path or "the pod's resources"


# ---- users, folders, files


def _who(found: PodStart, pod: Map, container: Map) -> None:
    user, group = (_number(container.get(key, pod.get(key))) for key in ("runAsUser", "runAsGroup"))
    if user is not None:
        found.keys["user"] = f"{user}" + (f":{group}" if group is not None else "")
    elif group is not None:
        found.note(f"runAsGroup {group} without runAsUser is not repeated: write user: NAME:{group}")
    if container.get("readOnlyRootFilesystem") is True:
        found.keys["read_only"] = True


def _volumes(found: PodStart, spec: Map, container: Map, config: _Lookup) -> None:
    volumes = {str(volume.get("name")): volume for volume in map(as_map, as_list(spec.get("volumes")))}
    writable: list[str] = []
    files: dict[str, object] = {}
    for mount in map(as_map, as_list(container.get("volumeMounts"))):
        at, name = str(mount.get("mountPath") or "").rstrip("/"), str(mount.get("name"))
        volume = volumes.get(name)
        if at.startswith(_OWN_MOUNTS):
            continue
        if volume is None or any(kind in volume for kind in _EMPTY):  # without: of a StatefulSet's claims
            writable.append(at)
            continue
        projected = as_list(as_map(volume.get("projected")).get("sources"))
        for source in map(as_map, [volume, *projected]):
            if said := as_map(source.get("configMap")):
                _files(found, files, at, str(mount.get("subPath") or ""), said, config)
            elif said := as_map(source.get("secret")):
                found.note(f"{at} is of Secret {said.get('secretName') or said.get('name')}: write its files")
        known = {"configMap", "secret", "projected", "downwardAPI", "image", "name"}
        if others := sorted(map(str, volume.keys() - known)):
            found.note(f"{at} ({others[0]}) is not there")
    if writable:
        found.keys["writable"] = tuple(dict.fromkeys(writable))
    if files:
        found.keys["files"] = files


def _files(found: PodStart, files: dict[str, object], at: str, below: str, said: Map, config: _Lookup) -> None:
    """Take the files of a ConfigMap that is mounted at a place; ``below`` is the one that is mounted alone."""
    data = config(str(said.get("name")))
    if data is None:
        if said.get("optional") is not True:
            found.note(f"{at} is of ConfigMap {said.get('name')}, which was not read: write its files")
        return
    items = [
        (str(each.get("key")), str(each.get("path")), each.get("mode"))
        for each in map(as_map, as_list(said.get("items")))
    ]
    for key, path, mode in items or [(key, key, None) for key in data]:
        if key not in data or (below and below != path):
            continue
        place = at if below else f"{at}/{path}"
        if len(files) == MOST_FILES:
            found.note(f"{place} of ConfigMap {said.get('name')} is one file too many")
            break
        text = str(data[key])
        runs = _runs(mode if mode is not None else said.get("defaultMode"))
        files[place] = {"content": text, "mode": "0755"} if runs else text


def _runs(mode: object) -> bool:
    """Whether a file can be executed: JSON says its mode in decimal, YAML as it is written."""
    number = _number(mode) or 0
    return bool((int(str(number), 8) if number > 0o777 and set(str(number)) <= set("01234567") else number) & 0o111)


# ---- probes


def _probes(found: PodStart, container: Map) -> None:
    ports = {str(port.get("name")): port.get("containerPort") for port in map(as_map, as_list(container.get("ports")))}
    said: dict[str, tuple[Map, str]] = {}
    for kind in _PROBES:
        probe = as_map(container.get(kind))
        found_up = _up(probe, ports)
        if found_up is not None:
            said[kind] = found_up
        elif probe:
            found.note(f"its {_word(kind)} probe cannot be repeated")
    for kind, (up, why) in [*said.items()][:1]:
        found.keys["up"] = up
        if why:
            found.note(f"its {_word(kind)} probe {why}")
        others = [(other, instead) for other, (instead, _) in said.items() if instead != up]
        for other, instead in others[:1]:
            found.note(f"its {_word(other)} probe is {_short(instead)}: take that if this one needs a network")
    start = as_map(container.get("startupProbe"))
    wait = (_number(start.get("failureThreshold")) or 3) * (_number(start.get("periodSeconds")) or 10)
    if start and _TIMEOUT < wait <= _LONGEST_TIMEOUT:
        found.keys["timeout"] = f"{wait}s"


def _up(probe: Map, ports: Map) -> tuple[Map, str] | None:
    """Return how a probe looks as a startup's ``up``, and what is different; None where it cannot be said."""
    if command := tuple(str(word) for word in as_list(as_map(probe.get("exec")).get("command"))):
        return {"exec": command}, ""
    for kind in ("httpGet", "tcpSocket", "grpc"):
        asked = as_map(probe.get(kind))
        port = _number(ports.get(str(asked.get("port")), asked.get("port")))
        if (
            port is None
            or not 0 < port < 1 << 16
            or str(asked.get("host") or "127.0.0.1") not in {"127.0.0.1", "localhost"}
        ):
            continue
        if kind == "httpGet" and str(asked.get("scheme") or "HTTP").upper() == "HTTP":
            headers = "sends headers, and this one none" if asked.get("httpHeaders") else ""
            return {"http": f"{port}/{str(asked.get('path') or '').removeprefix('/')}"}, headers
        what = {
            "httpGet": "asks by HTTPS: here its port has to accept",
            "grpc": "is of gRPC: here its port has to accept",
        }
        return {"tcp": port}, what.get(kind, "")
    return None


def _word(kind: str) -> str:
    return kind.removesuffix("Probe")


def _short(up: Map) -> str:
    return ", ".join(f"{key}: {' '.join(value) if isinstance(value, tuple) else value}" for key, value in up.items())


# ---- what a Bakefile takes


def _leave_out_what_is_wrong(found: PodStart) -> None:
    """Leave out what is too much, or no Bakefile's value, with a note; what stays loads."""
    if _length(found.keys) > _MOST:
        found.note("what it starts with is too much to write here")
        found.keys = {key: value for key, value in found.keys.items() if _length(value) <= _MOST // 8}
    while found.keys:
        try:
            _readable(found.keys)
            StartupSection.model_validate(found.keys, strict=True).startup()
        except ValidationError as error:
            for place in {each["loc"][:2] for each in error.errors()}:
                _drop(found, place)
        except _Unreadable as error:
            _drop(found, error.args)
        except ValueError:  # keys that contradict each other
            _drop(found, ("files",) if "files" in found.keys else (next(iter(found.keys)),))
        else:
            return


class _Unreadable(Exception):
    """A text that no YAML file holds; the arguments are where it is."""


def _readable(value: object, *where: str) -> None:
    """Raise _Unreadable for a name that is too long for a key of YAML, and a text that is no UTF-8 or has a NUL."""
    if isinstance(value, Mapping):
        for key, each in value.items():
            if len(str(key)) > _LONGEST_KEY:
                raise _Unreadable(*where, key)
            _readable(each, *where, str(key))
    elif isinstance(value, tuple):
        for each in value:
            _readable(each, *where)
    elif "\0" in (text := str(value)) or text.encode(errors="replace").decode() != text:
        raise _Unreadable(*where)


def _drop(found: PodStart, place: tuple[str | int, ...]) -> None:
    """Leave out one key, or of a mapping one entry."""
    key, entry = str(place[0]), place[1] if len(place) > 1 else None
    value = found.keys.get(key)
    if isinstance(value, Mapping) and entry in value and len(value) > 1:
        found.keys[key] = {name: each for name, each in value.items() if name != entry}
        found.note(f"its {key} {word(str(entry))} cannot be written here")
    elif found.keys.pop(key, None) is not None:
        found.note(f"its {key} cannot be written here")


def _length(value: object) -> int:
    if isinstance(value, Mapping):
        return sum(_length(key) + _length(each) for key, each in value.items())
    return sum(map(_length, value)) if isinstance(value, tuple) else len(str(value)) + 8


def _is_secret(text: str) -> bool:
    return bool(_SECRET_OPTION.search(text) or _LOGIN.search(text))


def _number(value: object) -> int | None:
    """Return a whole number, which a text may hold as well."""
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 12:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40 else None
