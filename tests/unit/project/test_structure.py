"""The shape of the project: wings in rows, no cycles, one door to subprocesses, small files."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from parbake.core.programs import PROGRAMS

SOURCE = Path(__file__).parents[3] / "src" / "parbake"
LONGEST_FILE = 500

# A wing is a package directly below parbake. A wing imports only from rows below its own; there are no exceptions.
ROWS: list[set[str]] = [
    {"core"},
    {"bakefile", "containerd", "images", "machine"},
    {"aws", "verify"},
    {"coldstart"},
    {"builders", "records", "rollouts"},
    {"workflows"},
    {"fleet"},
    {"cli"},
    {"__main__"},
]
ROW_OF = {wing: row for row, wings in enumerate(ROWS) for wing in wings}
# At the top, beside the wings; and `node`, whose programs run on nodes and in guests, where there is no parbake.
LOOSE = {"__init__.py", "__main__.py", "py.typed"}
NODE = "node"


@cache
def _files() -> list[Path]:
    return sorted(path for path in SOURCE.rglob("*.py") if not path.name.endswith("_pb2.py"))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def _nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(_tree(path)))


def _name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def _wing(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def _module(path: Path) -> str:
    parts = ("parbake", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """Return the dotted names that code imports, also inside functions: of modules and of what is in them."""
    found: set[str] = set()
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _wings_imported(path: Path) -> set[str]:
    names = _imports(path) - {"parbake.__version__"}
    return {name.split(".")[1] for name in names if name.startswith("parbake.")}


def test_nothing_is_loose_at_the_top() -> None:
    files = {path.name for path in SOURCE.iterdir() if path.is_file()}
    assert files == LOOSE, "a module belongs into a wing"


def test_every_wing_has_a_row() -> None:
    wings = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert wings == set(ROW_OF) - {"__main__"} | {NODE}


# One test for all files, which are four hundred: each is looked at for less time than a test of its own would take.


def test_imports_go_down_only() -> None:
    upwards = {_name(path): wrong for path in _files() if (wrong := _imported_upwards(path))}
    assert not upwards, "importing parbake costs nothing, there is none on a node, and wings import what is below them"


def _imported_upwards(path: Path) -> set[str]:
    wing, imported = _wing(path), _wings_imported(path)
    if wing in {"__init__", NODE}:
        return imported
    return {other for other in imported - {wing} if ROW_OF[other] >= ROW_OF[wing]}


def test_no_import_cycles_between_files() -> None:
    names = {_module(path): path for path in _files()}
    edges: dict[str, set[str]] = {}
    for name, path in names.items():
        targets: set[str] = set()
        for node in _nodes(path):  # also what is imported late, or for the type checker alone
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


def test_a_helper_of_one_command_lies_in_its_folder() -> None:
    users: dict[str, set[str]] = {}
    for path in _files():
        unit = ".".join(_module(path).split(".")[1:3]) if _wing(path) == "workflows" else _wing(path)
        for name in _imports(path):
            if name.startswith("parbake.workflows."):
                users.setdefault(name.split(".")[2], set()).add(unit)
    loose = {path.stem for path in (SOURCE / "workflows").glob("*.py")} - {"__init__"}
    alone = {name: users.get(name, set()) - {f"workflows.{name}"} for name in loose}
    wrong = {name: its for name, its in alone.items() if len(its) < 2 and not its & {"cli", "fleet"}}
    assert not wrong, "move it into the folder of the command that it serves"


RUN = "core/run.py"
DOORS = {"subprocess": {RUN}, "os.system": set(), "os.popen": set(), "time.sleep": {RUN}}


def test_one_door_to_subprocesses_and_sleep() -> None:
    found = {_name(path): doors for path in _files() if _wing(path) != NODE and (doors := _other_doors(path))}
    assert not found, f"they belong to {RUN}"  # programs of nodes stand alone


def _other_doors(path: Path) -> list[str]:
    used = []
    for node in _nodes(path):
        if isinstance(node, ast.Import):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names = {f"{node.value.id}.{node.attr}"}
        else:
            continue
        used += [f"line {node.lineno}: {door}" for door in names & set(DOORS) if _name(path) not in DOORS[door]]
    return used


@pytest.mark.parametrize("folder", ["src", "bench", "tests", "standins", "tools"])
def test_files_are_small(folder: str) -> None:
    root = SOURCE.parents[1]
    found = [path for path in (root / folder).rglob("*.py") if not path.name.endswith("_pb2.py")]
    long = {path: len(path.read_text().splitlines()) for path in found}
    assert {str(path.relative_to(root)): lines for path, lines in long.items() if lines > LONGEST_FILE} == {}


# Parts of every Debian, subcommands that look like programs, and what runs in a guest.
NO_PROGRAMS_TO_INSTALL = {"sh", "sync", "true", "apt-get", "ip", "mmd", "systemctl", "packer"}


def _programs_that_are_run(path: Path) -> set[str]:
    """Return literal program names that a file hands to the door."""
    found = set()
    for node in _nodes(path):
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


# Words of the kernel, of Go, of AWS's library, and programs, which docstrings name and no line of code does.
OF_OTHERS = {
    "Normalize", "__posix_acl_chmod", "diskboot", "du", "generate_presigned_url", "mkparent", "nohup", "pax",
    "posix_acl_create",
    "posix_acl_update_mode", "posix_acl_valid", "pyproject", "restorecon", "sha256sum", "tar_opts_linux",
    "use_attribute_docstrings",
}  # fmt: skip
NO_MODULES = ("go", "io", "json", "log", "raw", "toml", "yaml")
"""What stands behind the point of a name of a file or of a host."""


def _docstrings(path: Path) -> Iterator[ast.Constant]:
    for node in _nodes(path):
        body = getattr(node, "body", None)
        for each in body if isinstance(body, list) else ():
            if (
                isinstance(each, ast.Expr)
                and isinstance(each.value, ast.Constant)
                and isinstance(each.value.value, str)
            ):
                yield each.value


@cache
def _words_of(path: Path) -> set[str]:
    """Return the words of a file's code and of its texts, without its docstrings."""
    left_out, found = {id(each) for each in _docstrings(path)}, set(_module(path).split("."))
    for node in _nodes(path):
        for _, value in ast.iter_fields(node) if id(node) not in left_out else ():
            for each in value if isinstance(value, list) else [value]:
                text = each.decode("latin-1") if isinstance(each, bytes) else each
                found |= set(re.findall(r"\w+", text)) if isinstance(text, str) else set()
    return found


def test_what_docstrings_name_is_there() -> None:
    known = {*keyword.kwlist, *OF_OTHERS}.union(*map(_words_of, _files()))
    for path in SOURCE.rglob("*"):
        if path.is_file() and path.suffix not in {".py", ".pyc"}:
            known |= set(re.findall(r"\w+", path.read_text(errors="replace")))
    of_module: dict[str, set[str]] = {}
    for path in _files():
        of_module.setdefault(_module(path).rpartition(".")[2], set()).update(_words_of(path), _below(path))
    wrong = []
    for path in _files():
        for text in (str(each.value) for each in _docstrings(path)):
            for name in re.findall(r"``([a-z_]\w*(?:\.\w+)*)``", text):
                first, *rest = name.split(".")
                if not rest and name.islower() and name not in known:
                    wrong.append(f"{_name(path)}: ``{name}``")
                elif (
                    rest
                    and rest[-1] not in NO_MODULES
                    and rest[0] not in {"py", *OF_OTHERS, *of_module.get(first, rest)}
                ):
                    wrong.append(f"{_name(path)}: ``{name}`` is not in {first}")
    assert not wrong, "correct the name; a word of another project's belongs into OF_OTHERS"


def _below(path: Path) -> set[str]:
    return {each.stem for each in path.parent.iterdir()} if path.name == "__init__.py" else set()


def test_files_that_docstrings_name_are_there() -> None:
    files = {path.name for path in _files()}
    named = {name for path in _files() for name in re.findall(r"``(\w+\.py)``", path.read_text())}
    assert named <= files


RIDDLE = re.compile(r"(Return|Do|Print|Yield|Show) (it|them|that|the same)\b")


def test_docstrings_are_understood_alone() -> None:
    first = [(_name(path), str(text.value).strip().splitlines()[0]) for path in _files() for text in _docstrings(path)]
    assert not [each for each in first if RIDDLE.match(each[1])], "say what it is: `Return the plan, for people.`"
