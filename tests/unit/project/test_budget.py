"""The size of the project: what each wing may have, so that a new capability pays for its room."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict

from tests.unit.project.test_structure import _files, _module, _name, _nodes, _wing

LINES = {
    "aws": 4560,
    "bakefile": 3220,
    "builders": 5010,
    "cli": 6000,
    "coldstart": 1550,
    "containerd": 2300,
    "core": 5150,
    "fleet": 6265,
    "images": 8860,
    "machine": 6150,
    "node": 1920,
    "records": 2725,
    "rollouts": 5390,
    "verify": 1735,
    "workflows": 9640,
}
"""The most lines of each wing's modules, without those that the protobuf compiler writes."""
SLACK = 0.94
"""A wing has at least this share of its budget: a bound that is far away bounds nothing."""
SMALL, MOST_SMALL = 60, 6
"""A file of fewer lines that only one other file imports could be a part of that file. There are at most so many."""
MOST_NAMED_TWICE = 17
"""Names that public classes of several modules share: a reader of the second thinks of the first."""
MOST_LATE_IMPORTS = 329
"""Imports inside functions, for what most runs never need: ``make bench-startup`` shows what that saves."""
MOST_BUILDER_NAMES = 3
"""Places where the name of a builder is compared, instead of its traits."""
MOST_PARSED_REFERENCES = 14
"""Places where a text becomes a ``Reference``: the doors. Behind them a name of an image is one."""
MOST_RAW_NODE_CLASSES = 1
"""Places besides ``NodeClass`` that read the words of a Karpenter node class from its document."""
MOST_PARAMETERS = 6
"""A function in ``workflows`` with more parameters hides a noun that nobody has named yet."""
RAISE = (
    "First look for what can go. Where nothing can, raise the figure, in a commit that says what a user gets for it."
)


def test_no_wing_outgrows_its_budget() -> None:
    sizes = Counter(dict.fromkeys(LINES, 0))
    for path in _files():
        sizes[_wing(path)] += len(path.read_text().splitlines())
    assert {wing for wing in sizes if not wing.startswith("__")} == set(LINES), "give the new wing a budget"
    over = {wing: f"{sizes[wing]} lines, {most} allowed" for wing, most in LINES.items() if sizes[wing] > most}
    assert not over, RAISE
    under = {wing: sizes[wing] for wing, most in LINES.items() if sizes[wing] < SLACK * most}
    assert not under, "these wings are smaller now: lower their budgets"


def test_few_small_files_have_one_importer() -> None:
    names = {_module(path): path for path in _files()}
    importers = defaultdict[str, set[str]](set)
    for name, path in names.items():
        for node in (each for each in _nodes(path) if isinstance(each, ast.ImportFrom)):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                importers[whole if whole in names else str(node.module)].add(name)
    small = [
        f"{_name(path)}, imported by {next(iter(others))}"
        for name, path in names.items()
        if len(others := importers[name] - {name}) == 1
        and path.name != "__init__.py"
        and len(path.read_text().splitlines()) < SMALL
    ]
    assert len(small) <= MOST_SMALL, f"Move them into the files that import them. {RAISE}\n" + "\n".join(small)


def test_few_public_classes_share_a_name() -> None:
    found = defaultdict[str, list[str]](list)
    for path in _files():
        for node in _nodes(path):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(_name(path))
    twice = {name: paths for name, paths in found.items() if len(paths) > 1}
    assert len(twice) <= MOST_NAMED_TWICE, f"Find another name. {RAISE}"


def test_few_imports_are_late() -> None:
    late = []
    for path in _files():
        in_functions = {
            line
            for node in _nodes(path)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        imports = (node for node in _nodes(path) if isinstance(node, ast.Import | ast.ImportFrom))
        late += [f"{_name(path)}:{node.lineno}" for node in imports if node.lineno in in_functions]
    assert len(late) <= MOST_LATE_IMPORTS, RAISE


def test_references_are_parsed_at_the_doors() -> None:
    calls = [
        f"{_name(path)}:{node.lineno}"
        for path in _files()
        for node in _nodes(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Reference.parse"
    ]
    assert len(calls) <= MOST_PARSED_REFERENCES, f"Pass the Reference, or make a model's field one. {RAISE}"


def test_functions_of_workflows_take_few_parameters() -> None:
    long = []
    for path in (each for each in _files() if _wing(each) == "workflows"):
        for node in (each for each in _nodes(path) if isinstance(each, ast.FunctionDef)):
            given = {each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
            if len(given - {"self", "cls"}) > MOST_PARAMETERS:
                long.append(f"{_name(path)}:{node.lineno} {node.name}")
    assert long == [], "what belongs together is a noun: give it a type"


def test_builders_are_asked_for_their_traits() -> None:
    compared = [
        f"{_name(path)}:{node.lineno}"
        for path in _files()
        for node in _nodes(path)
        if isinstance(node, ast.Compare | ast.Match)
        and getattr(node.left if isinstance(node, ast.Compare) else node.subject, "attr", "") == "builder"
    ]
    assert len(compared) <= MOST_BUILDER_NAMES, f"Give BUILDERS a trait, and ask for it. {RAISE}"


def test_node_classes_are_asked() -> None:
    words = {"amiFamily", "amiSelector", "amiSelectorTerms", "blockDeviceMappings"}
    read = [
        f"{_name(path)}:{node.lineno}"
        for path in _files()
        for node in _nodes(path)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get"
        if node.args and isinstance(node.args[0], ast.Constant) and node.args[0].value in words
    ]
    outside = [each for each in read if not each.startswith(("rollouts/nodeclass.py", "core/families.py"))]
    assert len(read) > len(outside), "they are read in another way now"
    assert len(outside) <= MOST_RAW_NODE_CLASSES, f"Give NodeClass a property, and ask for it. {RAISE}\n{outside}"
