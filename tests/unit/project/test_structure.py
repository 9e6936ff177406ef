"""The shape of the project: floors, cycles, one door to subprocesses, small files."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from parbake.programs import PROGRAMS

SOURCE = Path(__file__).parents[2] / "src" / "parbake"
LONGEST_FILE = 500

# A room is a module or a package directly below parbake. A room imports only from floors below its own.
FLOORS: dict[int, set[str]] = {
    0: {"access", "model", "errors", "reference", "interrupts", "printable"},
    1: {"atomic", "run", "events", "workspace", "yamltext", "nodes", "signing", "cgroups", "diskformats", "netns"},
    2: {
        "aws",
        "bakefile",
        "gitops",
        "manifests",
        "starter",
        "economics",
        "trace",
        "registry",
        "layercache",
        "layers",
        "containerd",
        "disk",
        "ext4",
        "vm",
        "context",
        "buildtools",
        "programs",
        "kube",
    },
    3: {"base", "build", "clouds", "ebs", "fill", "nodefiles", "packer", "pause", "sample", "seal"},
    4: {
        "plan",
        "genuine",
        "statements",
        "verify",
        "rehearse",
        "records",
        "doctor",
        "builders",
        "retention",
        "rollouts",
    },
    5: {
        "ancestry",
        "beginnings",
        "coldstart",
        "flow",
        "planning",
        "handover",
        "iam",
        "keeping",
        "lint",
        "proof",
        "upkeep",
    },
    6: {"demo", "exports", "render", "watching"},
    7: {"tables", "rollout_tables", "coldtables", "report"},
    8: {"cli"},
    9: {"__main__"},
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# Words may use words: the nouns are made of references and raise the errors.
SAME_FLOOR = {
    ("flow", "ancestry"),
    ("flow", "proof"),
    ("genuine", "records"),
    ("genuine", "statements"),
    ("records", "statements"),
    ("statements", "records"),
    ("model", "errors"),
    ("model", "reference"),
    ("reference", "errors"),
    ("workspace", "atomic"),
    ("workspace", "run"),
    ("cgroups", "run"),
    ("diskformats", "run"),
    ("rehearse", "verify"),
    ("flow", "coldstart"),
    ("flow", "planning"),
    ("retention", "rollouts"),
    ("rollout_tables", "tables"),
    ("coldtables", "tables"),
}


def _room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _files() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if not path.name.endswith("_pb2.py"))


def _imports(path: Path) -> set[str]:
    """Return the rooms that a file imports, also inside functions."""
    found: set[str] = set()
    package = ("parbake", *path.relative_to(SOURCE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            prefix = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (prefix, node.module or "") if part)
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "parbake" else [module]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("parbake.")}
    return found - {"__version__"}


def test_every_room_has_a_floor() -> None:
    rooms = {_room(path) for path in _files()} - {"__init__"}
    assert rooms <= set(FLOOR_OF), f"give these a floor: {sorted(rooms - set(FLOOR_OF))}"


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path) -> None:
    room = _room(path)
    if room == "__init__":
        assert not _imports(path), "importing parbake must cost nothing"
        return
    for other in _imports(path) - {room}:
        allowed = FLOOR_OF[other] < FLOOR_OF[room] or (room, other) in SAME_FLOOR
        assert allowed, f"{room} (floor {FLOOR_OF[room]}) imports {other} (floor {FLOOR_OF[other]})"


def test_no_import_cycles_between_files() -> None:
    def module(path: Path) -> str:
        parts = ("parbake", *path.relative_to(SOURCE).with_suffix("").parts)
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    names = {module(path): path for path in _files()}
    edges: dict[str, set[str]] = {}
    for name, path in names.items():
        targets: set[str] = set()
        for node in ast.parse(path.read_text()).body:  # top level only: a lazy import is no cycle
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("parbake"):
                # `from package import module` needs the module, not what the package itself imports.
                found = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= found if found <= set(names) else {node.module, *found}
        edges[name] = {target for target in targets if target in names and target != name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"cycle: {' -> '.join((*trail, name))}"
        if name not in done:
            for target in edges[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


DOORS = {"subprocess": {"run"}, "os.system": set(), "os.popen": set(), "time.sleep": {"run"}}


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_one_door_to_subprocesses_and_sleep(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {f"{node.value.id}.{node.attr}"}
        else:
            continue
        for door, rooms in DOORS.items():
            assert door not in names or _room(path) in rooms, f"line {node.lineno}: {door} belongs to run.py"


@pytest.mark.parametrize("path", _files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST_FILE


# Parts of every Debian, subcommands that look like programs, and what runs in a guest.
NO_PROGRAMS_TO_INSTALL = {"sh", "sync", "true", "apt-get", "ip", "mmd", "systemctl", "packer"}


def _programs_that_are_run(path: Path) -> set[str]:
    """Return literal program names that a file hands to the door."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not node.args:
            continue
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        argument: ast.expr = node.args[0]
        if isinstance(argument, ast.List) and argument.elts:
            argument = argument.elts[0]
        if function in {"run", "Process", "isolated", "need"} and isinstance(argument, ast.Constant):
            found.add(str(argument.value))
    return found


def test_every_program_is_in_the_one_list() -> None:
    listed = {program.name for program in PROGRAMS} | NO_PROGRAMS_TO_INSTALL
    for path in _files():
        assert _programs_that_are_run(path) <= listed, f"{path.name}: add it to programs.py"
