#!/usr/bin/env python3
"""A stand-in for Packer: reads templates as Packer does and fails where it would, but makes no AMI.

``init`` takes down the plugins, ``validate`` and ``build`` refuse a template that does not parse, names an attribute,
block or function that is not documented (``tests/unit/builders/cases/documented.json``), a variable that has no value
or is not declared, or a script that is missing. ``build`` writes the manifest as the post-processor does. It evaluates
only the expressions that it needs (names, literals, the conditional for the AMI's name) and knows nothing of AWS:
region and ids are inventions (``real_packer`` is a real one, for what it does there, how it fails and is stopped).
``PACKER_STAND_IN=forget`` makes a build forget its manifest; ``PACKER_STAND_IN_AMIS`` (region:ami, …) are what it says
came out. Everything that it does goes to ``packer.log`` in HOME.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

KNOWN: dict[str, list[str]] = json.loads(
    (Path(__file__).parents[1] / "tests/unit" / "builders" / "cases" / "documented.json").read_text()
)
NESTED = {"source_ami_filter", "metadata_options", "launch_block_device_mappings", "aws_polling"}
HOME = Path(os.environ["HOME"])
PARSED = Path(__file__).parents[1] / ".cache" / "hcl"


@cache
def parse(text: str, path: Path | None = None) -> dict[str, Any]:
    """Parse HCL; equal files are parsed once: the library takes longer than all else that such a process does."""
    library = find_spec("hcl2")
    assert library
    assert library.origin
    key = hashlib.sha256(f"{library.origin} {Path(library.origin).stat().st_mtime_ns} {text}".encode()).hexdigest()
    parsed: dict[str, Any]
    with suppress(FileNotFoundError):
        parsed = json.loads((PARSED / key).read_text())
        return parsed
    import hcl2
    from lark.exceptions import LarkError

    try:
        parsed = hcl2.loads(text)
    except LarkError as error:
        if path is None:
            raise
        fail(f"{path}: {error}")
    PARSED.mkdir(parents=True, exist_ok=True)
    new = PARSED / f"{key}.{os.getpid()}"
    new.write_text(json.dumps(parsed))
    assert json.loads(new.read_text()) == parsed
    new.rename(PARSED / key)
    return parsed


def main() -> None:
    verb, *rest = sys.argv[1:]
    with (HOME / "packer.log").open("a") as log:
        log.write(" ".join(sys.argv[1:]) + "\n")
    given = {}
    folders = []
    words = iter(rest)
    for word in words:
        if word == "-var":
            name, _, value = next(words).partition("=")
            given[name] = value
        elif word.startswith("-"):
            if word not in {"-color=false", "-machine-readable", "-timestamp-ui"}:
                fail(f"flag provided but not defined: {word}")
        else:
            folders.append(Path(word))
    if len(folders) != 1:
        fail("this command takes one argument: the folder")
    template = Template(folders[0], given)
    print("stand-in for packer: no AMI is made", flush=True)
    match verb:
        case "init":
            (HOME / "packer-plugins").write_text("\n".join(template.plugins))
        case "validate":
            template.check()
            print("The configuration is valid.")
        case "build":
            template.check()
            build(template)
        case _:
            fail(f"no such command: {verb}")


def fail(message: str) -> NoReturn:
    print(f"Error: {message}", file=sys.stderr)
    sys.exit(1)


class Template:
    """The .pkr.hcl files of a folder, with the values of their variables."""

    def __init__(self, folder: Path, given: dict[str, str]) -> None:
        self.folder = folder
        self.blocks: dict[str, list[Any]] = {}
        texts = []
        for path in sorted(folder.glob("*.pkr.hcl")):
            texts.append(path.read_text())
            for kind, found in parse(texts[-1], path).items():
                self.blocks.setdefault(kind, []).extend(found if isinstance(found, list) else [])
        if not self.blocks:
            fail(f"no HCL templates in {folder}")
        self.text = "\n".join(texts)
        declared = {unquoted(name): body for block in self.blocks["variable"] for name, body in block.items()}
        self.values: dict[str, Any] = {
            name: plain(body["default"]) for name, body in declared.items() if "default" in body
        }
        for path in sorted(folder.glob("*.auto.pkrvars.json")):
            self.values |= {name: value for name, value in json.loads(path.read_text()).items() if name != "//"}
        self.values |= given
        if undeclared := set(self.values) - set(declared):
            fail(f"a variable with the name {min(undeclared)!r} is not declared")
        if missing := set(declared) - set(self.values):
            fail(f"unset variable {min(missing)!r}")

    @property
    def plugins(self) -> list[str]:
        return [
            plain(plugin["source"])
            for block in self.blocks["packer"]
            for required in block["required_plugins"]
            for name, plugin in required.items()
            if name != "__is_block__"
        ]

    def check(self) -> None:
        installed = (HOME / "packer-plugins").read_text() if (HOME / "packer-plugins").exists() else ""
        if missing := [plugin for plugin in self.plugins if plugin not in installed]:
            fail(f"missing plugins: {missing}. Did you run packer init for this project?")
        for what, name in undocumented(self.blocks):
            fail(f"{what}: unsupported argument {name!r}")
        for function in re.findall(r"\b([a-z0-9_]+)\(", re.sub(r'#.*|"[^"]*"', "", self.text)):
            if function not in {*KNOWN["functions"], "string", "list", "map"}:
                fail(f"there is no function named {function!r}")
        for name in re.findall(r"\bvar\.(\w+)", self.text):
            if name not in self.values:
                fail(f"unsupported attribute: var.{name}")
        for name in re.findall(r"\$\{path\.root\}/([\w./-]+)", self.text):
            if not (self.folder / name).exists():
                fail(f"{name}: no such file or directory")
        if self.values["RUNTIME"] not in {"auto", "containerd", "docker"}:
            fail("Invalid value for variable: The RUNTIME must be auto, containerd or docker.")


def undocumented(blocks: dict[str, list[Any]]) -> Iterator[tuple[str, str]]:
    """Yield what is named and not documented: block and attribute."""
    for kind in ("source", "data"):
        for block in blocks.get(kind, []):
            for what, bodies in block.items():
                yield from (
                    (found for body in bodies.values() for found in strange(unquoted(what), body))
                    if isinstance(bodies, dict)
                    else ()
                )
    for block in blocks["build"]:
        for each in (*block.get("provisioner", []), *block.get("post-processor", [])):
            for what, body in each.items():
                if what != "__is_block__":
                    yield from strange(unquoted(what), body)


def strange(what: str, body: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, value in body.items():
        if name.startswith("__"):
            continue
        if name not in KNOWN[what]:
            yield what, name
        elif name in NESTED:
            for inner in value if isinstance(value, list) else [value]:
                yield from strange(name, inner)


def unquoted(text: str) -> str:
    return text.strip('"')


def plain(value: Any) -> Any:
    """Return what a literal means."""
    if isinstance(value, str):
        return json.loads(value).replace("$${", "${").replace("%%{", "%{") if value.startswith('"') else value
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {unquoted(key): plain(each) for key, each in value.items() if not key.startswith("__")}
    return value


def build(template: Template) -> None:
    mode, values = os.environ.get("PACKER_STAND_IN", ""), template.values
    name = values["AMI_NAME"] or f"{values['NAME']}-20260101-000000"
    print(f"==> amazon-ebs.node: Prevalidating AMI Name: {name}", flush=True)
    print(f"    amazon-ebs.node: parbake: pulling {values['IMAGE']}", flush=True)
    regions = [values["REGION"] or "eu-west-1", *values["COPY_TO"]]
    amis = {region: f"ami-{uuid.uuid5(uuid.NAMESPACE_DNS, region + name).hex[:17]}" for region in regions}
    amis |= dict(pair.split(":") for pair in os.environ.get("PACKER_STAND_IN_AMIS", "").split(",") if pair)
    if mode != "forget":
        write_manifest(Path(values["MANIFEST"]), amis, values)
    print(f"==> Builds finished. AMIs were created: {amis}")


def write_manifest(path: Path, amis: dict[str, str], values: dict[str, Any]) -> None:
    run = str(uuid.uuid4())
    document: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"builds": []}
    document["builds"].append({
        "name": "node",
        "builder_type": "amazon-ebs",
        "build_time": 1767225600,
        "files": None,
        "artifact_id": ",".join(sorted(f"{region}:{ami}" for region, ami in amis.items())),
        "packer_run_uuid": run,
        "custom_data": {"image": values["IMAGE"], "key": values["KEY"], "source_ami": values["SOURCE_AMI"]},
    })  # fmt: skip
    path.write_text(json.dumps({**document, "last_run_uuid": run}, indent=2))


if __name__ == "__main__":
    main()
