"""The documents: true to the program, whole, and free of what does not belong there."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
from ruamel.yaml import YAML

from parbake.bakefile import load, schema
from parbake.core.programs import PROGRAMS
from parbake.fleet.file import load as load_fleet
from standins.documents import DOCUMENTS, NOT_RUN, ROOT, anchors, read, shape, without_blocks
from standins.keys import key_pair
from tests.system.project.test_docs import CASES
from tools import chart
from tools.reference import BY_HAND, ENVIRONMENT, EXAMPLES, FOLDER, pages

README = (ROOT / "README.md").read_text()
MOST_NOT_RUN = 6
WIDEST = 135
# Spelt so that this file does not name them either.
HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("deb", "debian", "org"), ("npmjs",))]


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


def test_the_reference_is_fresh() -> None:
    made = pages()
    assert {path.name for path in FOLDER.iterdir()} == set(made) | BY_HAND
    stale = [file for file, text in made.items() if (FOLDER / file).read_text() != text]
    assert not stale, "run `make docs`"


def test_what_the_chart_takes_from_the_program_is_up_to_date() -> None:
    stale = [path.name for path, text in chart.made().items() if path.read_text() != text]
    assert stale == [], "run `make docs`"


def test_every_command_has_an_example_that_calls_it() -> None:
    commands = re.findall(r"^## `parbake ([\w -]+)`$", pages()["cli.md"], re.MULTILINE)
    assert set(EXAMPLES) == set(commands)
    for command, example in EXAMPLES.items():
        assert re.search(rf"^parbake {command}\b", example, re.MULTILINE)


def test_every_key_of_the_bakefile_is_described() -> None:
    page = pages()["bakefile.md"]
    document = schema()
    for part in (document, *document["$defs"].values()):
        for key, value in part["properties"].items():
            assert f"| `{key}` |" in page
            assert value["description"]


def test_every_variable_that_is_read_is_described() -> None:
    read_ = set()
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        if "sample/context" not in str(path) and path.parent.name != "node":  # what runs elsewhere
            read_ |= set(re.findall(r"environ(?:\.get\(|\[)\"(\w+)\"", text))
            read_ |= set(re.findall(r"(?m)^[A-Z]+(?:: Final)? = \"(PARBAKE_[A-Z_]+)\"", text))
    assert read_ - {"PATH"} == set(ENVIRONMENT)


def links(document: Path) -> list[tuple[Path, str]]:
    """Return what a document links to in the project: paths and anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", without_blocks(document))
    inside = [target.partition("#") for target in targets if not target.startswith("https://")]
    return [((document.parent / path).resolve() if path else document, anchor) for path, _, anchor in inside]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path) -> None:
    for path, anchor in links(document):
        assert path.exists(), path
        assert path.is_relative_to(ROOT), path
        assert not anchor or anchor in anchors(path), anchor


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_what_does_not_belong_there(document: Path) -> None:
    text = document.read_text().lower()
    assert not re.search(r"\bsessions?\b|\bissues?\b|\btodo\b", text)
    assert not [host for host in HOSTS if host in text]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_lines_are_wrapped(document: Path) -> None:
    for number, line in enumerate(without_blocks(document).splitlines(), 1):
        assert len(line) <= WIDEST or line.startswith("|"), f"line {number} of the prose: {line}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_shell_blocks_run_in_a_test_or_say_why_not(document: Path) -> None:
    followed = {case.document for case in CASES} | {case.after for case in CASES}
    blocks = read(document)
    assert {block.language for block in blocks} <= {"", "sh", "text", "yaml", "json"}
    assert not any(block.runs for block in blocks) or name(document) in followed


def test_few_blocks_are_not_run_and_each_says_why() -> None:
    left_out = [block for document in DOCUMENTS for block in read(document) if block.text.startswith(NOT_RUN)]
    assert 0 < len(left_out) <= MOST_NOT_RUN
    for block in left_out:
        assert re.match(re.escape(NOT_RUN) + r"(needs|ends) .*\.\n", block.text), block.text


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_bakefiles_are_good(document: Path, tmp_path: Path) -> None:
    for file in ("node.qcow2", "company-ca.pem"):
        (tmp_path / file).touch()
    for file in ("parbake", "team"):
        key_pair(tmp_path, file)
    (tmp_path / "api").mkdir()
    (tmp_path / "api/Containerfile").touch()
    for block in read(document):
        if block.language == "yaml":
            if block.text.startswith("image: "):
                jsonschema.validate(YAML(typ="safe").load(block.text), chart.values_schema())
                continue
            whole = "version:" in block.text
            images = "" if "images:" in block.text else "images: [registry.example.com/app:1]\n"
            path = tmp_path / "parbake.yaml"
            if "bakefiles:" in block.text:
                path.write_text(block.text)
                for named in re.findall(r"[\w/]+/parbake\.yaml", block.text):
                    (tmp_path / named).parent.mkdir(exist_ok=True)
                    (tmp_path / named).touch()
                load_fleet(path)
                continue
            path.write_text(block.text if whole else f"version: 1\n{images}{block.text}")
            load(path)


ONLY_IMAGES = "ocean", "kops", "capi"


@pytest.mark.parametrize(
    "document", [each for each in DOCUMENTS if "<<'END'" in each.read_text() and each.parent != FOLDER], ids=name
)
def test_bakefiles_that_are_written_by_copy_can_be_rolled_out_by_their_name(document: Path, tmp_path: Path) -> None:
    (tmp_path / "fleet").mkdir()
    (tmp_path / "fleet/gpu.yaml").touch()
    names = set()
    blocks = [block.text for block in read(document) if block.language == "sh"]
    whole, path = "", tmp_path / "parbake.yaml"
    key_pair(tmp_path, "parbake")
    for how, part in re.findall(r"(?ms)^cat (>>?) \S*parbake\.yaml <<'END'\n(.*?)^END$", "\n".join(blocks)):
        whole = whole * (how == ">>") + part
        path.write_text(whole)
        if "rollout:" in whole:
            bakefile = load(path)
            names.add(bakefile.name if "\nname:" in whole else "")
            for target in bakefile.rollout:
                local = target.options.takes_files and target.region is None
                assert local or bakefile.traits.in_ec2, f"{target.name} takes what lies in EC2"
                kind = str(getattr(target.options, "as_", "") or target.kind)
                assert kind not in ONLY_IMAGES or bakefile.artefact.kind == "machine-image", kind
    called = re.findall(r"(?m)^parbake rollout(?: ([a-z][\w-]*))?", "\n".join(blocks))
    assert set(called) - {""} <= names
    assert not called or names, "there is no target to roll out to"


def test_every_document_is_reached_from_the_readme() -> None:
    pending, reached = [ROOT / "README.md"], set[Path]()
    while pending:
        document = pending.pop()
        if document not in reached:
            reached.add(document)
            pending += [path for path, _ in links(document) if path.suffix == ".md"]
    assert set(DOCUMENTS) <= reached
    assert "(docs/reference/bakefile.schema.json)" in README


@pytest.mark.parametrize(("document", "least"), [("security.md", 41), ("reference/nodes.md", 20)])
def test_the_tests_that_a_document_names_are_there(document: str, least: int) -> None:
    there = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / document).read_text()))
    assert len(named) >= least
    assert named <= there


def test_each_kind_of_node_names_its_proof() -> None:
    rows = re.findall(r"^\| (?!node|---)(.+) \|$", (ROOT / "docs/reference/nodes.md").read_text(), re.MULTILINE)
    assert len(rows) > 10
    assert [row for row in rows if not re.fullmatch(r"(`test_\w+`(, )?)+", row.rsplit(" | ", 1)[1])] == []


def test_the_tables_of_dependencies_are_complete() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(each for extra in project["optional-dependencies"].values() for each in extra),
    ]
    python = {re.split(r"[<>=~]", each)[0] for each in wanted}
    ours = (ROOT / "packages.apt").read_text().partition("# Tests:")[0]
    debian = {line for line in ours.splitlines() if line and not line.startswith("#")}
    table = (ROOT / "docs/reference/dependencies.md").read_text()
    rows = re.findall(r"^\| (?!package|---)([^|]+) \|", table, re.MULTILINE)
    listed = {re.sub(r" \(.*\)", "", each) for row in rows for each in row.split(", ")}
    assert listed == python | debian
    needed = {program.package for program in PROGRAMS if not program.optional and not program.group}
    assert needed <= debian


def test_figures_do_not_count() -> None:
    assert (
        shape("size      3.00 GiB, 443 MiB on disk") == shape("size  1.00 GiB, 5.89 MiB on disk") == "size N, N on disk"
    )
    assert shape("times     copy 1.1 s") == shape("times  base 28.0 s, copy 3.0 s")
    assert shape("record    /root/x/artefacts/node-0123456789ab.raw") == "record artefacts/node-HEX.raw"
    assert shape(" localhost/hello:1   56cc50619787   yes") == shape("127.0.0.1:5000/hello:1 aabbccddeeff yes")
    assert shape(" ─────") == ""
    assert shape("verified  not yet") != shape("verified  yes")
