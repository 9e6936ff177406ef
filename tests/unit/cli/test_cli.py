"""The door: what is printed where, and with which exit code it ends."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from parbake import __version__, records
from parbake.cli import app, run
from parbake.cli.commands import COMMANDS
from parbake.records import statements
from standins.plans import record

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec:
  containers:
    - {name: web, image: registry.example.com/shop/web:1, imagePullPolicy: Always}
"""
BAD_BAKEFILE = "version: 1\nimage: [a]\nimages:\n  - registry.example.com/a:1\nsize: huge\n"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder with an empty cache."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a command and return its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = run(list(arguments))
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


type Say = Callable[..., tuple[int, str, str]]


def document(say: Say, *arguments: str, code: int = 0) -> Any:
    """Run a command with --json; standard output must be one document and nothing else."""
    ended, out, err = say(*arguments, "--json")
    assert ended == code, err
    assert "Traceback" not in err
    return json.loads(out)


def bake(folder: Path, *words: str, **fields: Any) -> list[records.Record]:
    """Put artefacts and their records into a folder, without a bake."""
    made = [record(word, at=at, **fields) for at, word in enumerate(words)]
    folder.mkdir(exist_ok=True)
    for each in made:
        (folder / each.artefact).write_bytes(b"disk")
        records.write(folder, each)
    return made


def test_without_a_command_help_is_shown(say: Say) -> None:
    for group in ((), ("export",), ("fleet",)):
        code, out, err = say(*group)
        assert (code, err) == (0, "")
        assert f"{' '.join(('parbake', *group))} [OPTIONS] COMMAND" in out
    for command in ("init", "plan", "bake", "verify", "list", "show", "prune", "clean", "doctor", "demo", "schema"):
        code, out, _ = say(command, "--help")
        assert code == 0
        assert f"parbake {command} [OPTIONS]" in out


@pytest.mark.parametrize("group", [(), ("export",), ("fleet",)], ids=" ".join)
def test_summaries_are_whole_and_fit(group: tuple[str, ...], say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = say(*group, "-h")
    assert code == 0
    assert "..." not in out.partition("Options:")[2]
    assert max(map(len, out.splitlines())) <= 80


def test_every_command_prints_json_if_asked() -> None:
    def lacking(command: Any, path: str) -> list[str]:
        if below := getattr(command, "commands", None):
            return [name for each in below for name in lacking(below[each], f"{path} {each}".strip())]
        return [] if any("--json" in each.opts for each in command.params) else [path]

    assert lacking(typer.main.get_command(app.app), "") == []


def test_the_list_of_commands_says_what_they_say_of_themselves(say: Say) -> None:
    group = typer.main.get_command(app.app)
    assert isinstance(group, typer.core.TyperGroup)
    listed = {name: each.summary for names in COMMANDS.values() for name, each in names.items()}
    assert {name: command.get_short_help_str(200) for name, command in group.commands.items()} == listed
    out = say("--help")[1]
    assert [out.index(f"\n{title}:") for title in COMMANDS] == sorted(out.index(f"\n{title}:") for title in COMMANDS)


@pytest.mark.parametrize("module", sorted({each.module for names in COMMANDS.values() for each in names.values()}))
def test_every_command_of_a_module_is_listed(module: str) -> None:
    """Nobody could call it otherwise."""
    listed = {name for names in COMMANDS.values() for name, each in names.items() if each.module == module}
    made = """
        import importlib, sys
        from parbake.cli import commands
        importlib.import_module(f"parbake.cli.{sys.argv[1]}")
        print(*commands._applications)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(made), module], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == listed


def test_every_module_with_commands_is_loaded_by_one_that_is_listed() -> None:
    group = typer.main.get_command(app.app)
    assert isinstance(group, typer.core.TyperGroup)
    assert all(group.commands.values())  # looked up, and so loaded
    folder = Path(app.__file__).parent
    made = {
        ".".join(path.relative_to(folder).with_suffix("").parts)
        for path in folder.rglob("*.py")
        if re.search(r"^@command\(", path.read_text(), re.MULTILINE)
    }
    assert len(made) > 10
    assert {f"parbake.cli.{name}" for name in made} <= set(sys.modules)


def test_a_command_is_corrected_that_is_not_loaded(say: Say) -> None:
    assert "Did you mean 'bake'?" in say("bakee")[2]


def test_the_version(say: Say) -> None:
    assert say("--version") == (0, f"parbake {__version__}\n", "")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["bakee"], "No such command"),
        (["bake", "--fast"], "No such option"),
        (["fetch"], "Missing argument"),
        (["prune", "--keep", "-1"], "--keep"),
        (["prune", "--keep", "many"], "--keep"),
        (["bake", "-f"], "requires an argument"),
    ],
)
def test_wrong_arguments_end_with_2(say: Say, arguments: list[str], reason: str) -> None:
    code, out, err = say(*arguments)
    assert (code, out) == (2, "")
    assert reason in err


def test_wrong_arguments_are_one_document_with_json(say: Say) -> None:
    told = document(say, "bake", "--fast", code=2)
    assert told["error"] == "InputError"
    assert told["exit_code"] == 2


def test_an_error_says_what_and_what_next(say: Say) -> None:
    code, out, err = say("plan")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "parbake: there is no Bakefile parbake.yaml",
        "  next: `parbake init` writes one, -f names another",
    ]


def test_a_traceback_is_shown_when_it_is_asked_for(say: Say) -> None:
    code, _, err = say("--debug", "plan")
    assert code == 2
    assert "Traceback" in err


def test_every_problem_of_a_bakefile_is_in_the_document(say: Say, place: Path) -> None:
    (place / "parbake.yaml").write_text(BAD_BAKEFILE)
    told = document(say, "bake", code=2)
    assert told["error"] == "BakefileError"
    assert [(problem["line"], problem["where"]) for problem in told["problems"]] == [(2, "image"), (5, "size")]
    assert told["problems"][0]["suggestion"] == "did you mean 'images'?"


def test_an_unknown_style_of_progress(say: Say) -> None:
    told = document(say, "bake", "--progress", "fancy", code=2)
    assert "fancy" in told["message"]
    assert "plain" in told["hint"]


def test_a_folder_that_cannot_be_used(say: Say, place: Path) -> None:
    (place / "file").touch()
    told = document(say, "init", "file/below", "--image", "registry.example.com/a:1", "--no-sizes", code=1)
    assert told["error"] == "EnvironmentProblem"


def test_init_then_plan(say: Say, place: Path) -> None:
    (place / "Containerfile").write_text("FROM scratch\n")
    written = document(say, "init")["written"]
    assert [Path(path).name for path in written] == [".dockerignore", "parbake.yaml"]
    planned = document(say, "plan")
    assert (planned["key"], planned["to_build"]) == (None, ["localhost/node:1"])
    assert "localhost/node:1" in say("plan")[1]


def test_init_takes_no_image_that_it_cannot_build(say: Say, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = document(say, "init", "--image", "localhost/app:1", code=2)
    assert "Containerfile" in told["hint"]
    local = POD.replace("registry.example.com/shop/web:1", "localhost/web:1")
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{POD}---\n{local}"))
    code, _, err = say("init", "--from-manifests", "-", "--no-sizes")
    assert code == 0
    assert "localhost/web:1 is left out" in err
    assert "localhost/web" not in (place / "parbake.yaml").read_text()


def test_init_does_not_replace_files_unasked(say: Say, place: Path) -> None:
    (place / "parbake.yaml").write_text("mine")
    told = document(say, "init", "--image", "registry.example.com/a:1", "--no-sizes", code=2)
    assert "--force" in told["hint"]
    assert (place / "parbake.yaml").read_text() == "mine"


def test_init_reads_manifests_on_standard_input(say: Say, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(POD))
    code, out, err = say("init", "--from-manifests", "-", "--no-sizes")
    assert (code, out) == (0, "wrote parbake.yaml\n")
    assert "warning: registry.example.com/shop/web:1: imagePullPolicy is Always" in err
    text = (place / "parbake.yaml").read_text()
    assert "  # Pod shop/web, web\n  - registry.example.com/shop/web:1\n" in text


def test_init_mounts_what_pods_have_as_a_volume(say: Say, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volumes = "  volumes: [{name: weights, image: {reference: registry.example.com/shop/weights:1}}]\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO(POD.rstrip() + "\n" + volumes))
    assert say("init", "--from-manifests", "-", "--no-sizes")[0] == 0
    text = (place / "parbake.yaml").read_text()
    mounted = "  - reference: registry.example.com/shop/weights:1\n    startup: {up: mounted}\n"
    assert f"  # Pod shop/web, volume weights\n{mounted}" in text
    assert "  - registry.example.com/shop/web:1\n" in text


def test_init_names_first_what_each_node_pulls(say: Say, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = (
        "---\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: agent, namespace: ops}\nspec: {template: {spec: "
        "{containers: [{name: a, image: 'registry.example.com/ops/agent:1'}]}}}\n"
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO(POD + agent))
    assert say("init", "--from-manifests", "-", "--no-sizes")[0] == 0
    text = (place / "parbake.yaml").read_text()
    marked = "  # On every node, and first: worth the most in a bake.\n  # DaemonSet ops/agent, a\n"
    assert f"{marked}  - registry.example.com/ops/agent:1\n" in text
    assert text.index("ops/agent:1") < text.index("shop/web:1")


def test_init_without_an_image_in_the_manifests(say: Say, place: Path) -> None:
    (place / "service.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {name: a}\n")
    told = document(say, "init", "--from-manifests", "service.yaml", code=2)
    assert told["message"] == "no images were found"
    assert not (place / "parbake.yaml").exists()


def test_sizes_are_a_courtesy(say: Say, place: Path) -> None:
    assert say("init", "--image", "127.0.0.1:1/app:1")[0] == 0
    assert "  - 127.0.0.1:1/app:1\n" in (place / "parbake.yaml").read_text()


def test_list_and_show(say: Say, place: Path) -> None:
    assert say("list")[1].startswith("no artefacts yet")
    assert document(say, "list") == []
    first, second = bake(place / "artefacts", "a", "b", passed=True)
    assert [each["artefact"] for each in document(say, "list")] == [first.artefact, second.artefact]
    assert first.artefact in say("list")[1]
    assert document(say, "show", second.key[:8]) == statements.to_statement(second)
    assert second.key in say("show", second.artefact)[1]
    assert "matches 2 records" in document(say, "show", "node-", code=2)["message"]
    assert "parbake list" in document(say, "show", "nothing", code=2)["hint"]


def test_show_of_a_file_without_a_record(say: Say, place: Path) -> None:
    (place / "disk.raw").write_bytes(b"disk")
    assert "parbake verify" in document(say, "show", "disk.raw", code=2)["hint"]


def test_the_output_folder_is_the_bakefiles(say: Say, place: Path) -> None:
    (place / "other.yaml").write_text("version: 1\nimages: [registry.example.com/a:1]\noutput: elsewhere\n")
    (made,) = bake(place / "elsewhere", "a")
    assert [each["artefact"] for each in document(say, "list", "-f", "other.yaml")] == [made.artefact]
    assert document(say, "list") == []


def test_what_is_given_as_a_file_needs_no_bakefile(say: Say, place: Path, tmp_path: Path) -> None:
    (elsewhere := tmp_path / "elsewhere").mkdir()
    made = record()
    records.write(elsewhere, made)
    (place / "parbake.yaml").write_text(BAD_BAKEFILE)
    shown = document(say, "show", str(elsewhere / made.file_name))
    assert shown["parbake"]["artefact"] == made.artefact
    code, _, err = say("advise", str(elsewhere / made.file_name))
    assert code == 2, err
    assert "start-up trace" in err
    assert say("show", made.artefact)[0] == 2, "a name is looked for where the Bakefile says"


def test_prune(say: Say, place: Path) -> None:
    old, new = bake(place / "artefacts", "a", "b")
    assert "1 B" not in say("prune", "--keep", "1", "--dry-run")[1]
    assert len(list((place / "artefacts").glob("*.raw"))) == 2
    decided = document(say, "prune", "--keep", "1")["decisions"]
    assert [(each["artefact"], each["keep"]) for each in decided] == [(new.artefact, True), (old.artefact, False)]
    assert {path.name for path in (place / "artefacts").iterdir()} == {new.artefact, new.file_name}


def test_prune_goes_by_the_bakefile(say: Say, place: Path) -> None:
    bake(place / "artefacts", "a", "b")
    text = "version: 1\nimages: [registry.example.com/a:1]\nretention: {keep: 1}\n"
    (place / "parbake.yaml").write_text(text)
    kept = [each["keep"] for each in document(say, "prune", "--keep", "2", "--dry-run")["decisions"]]
    assert kept == [True, True], "an option overrides it"
    assert [each["keep"] for each in document(say, "prune")["decisions"]] == [True, False]


def test_clean_removes_what_is_left_over(say: Say, place: Path, tmp_path: Path) -> None:
    assert say("clean") == (0, "nothing was left over\n", "")
    left = place / "artefacts/.parbake/abc.1.ffff"
    left.mkdir(parents=True)
    assert document(say, "clean") == {"removed": ["artefacts/.parbake/abc.1.ffff"], "spared": {}}
    assert not left.exists()
    (tmp_path / "cache/base").mkdir(parents=True)
    assert f"removed {tmp_path}/cache/base\n" in say("clean", "--caches")[1]
    assert not (tmp_path / "cache/base").exists()


def test_doctor(say: Say) -> None:
    found = {check["name"]: check for check in document(say, "doctor")}
    assert found["setpriv"]["status"] == "ok"
    assert "space for output" in say("doctor")[1]


def test_schema(say: Say) -> None:
    code, out, _ = say("schema")
    assert code == 0
    assert json.loads(out)["required"] == ["version"]
    assert [each["required"] for each in json.loads(out)["anyOf"]] == [["images"], ["images_from"]]
    assert document(say, "schema") == json.loads(out)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("as_json", [False, True])
def test_interrupted(number: signal.Signals, as_json: bool) -> None:
    command = [sys.executable, "-m", "parbake", "init", "--from-manifests", "-", *(["--json"] if as_json else [])]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin
        # More than a pipe holds: when it is written, the command reads.
        process.stdin.write("#" * (1 << 17) + "\n")
        process.stdin.flush()
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "parbake: " in err
    assert "Traceback" not in err
    if as_json:
        assert json.loads(out)["exit_code"] == 130
    else:
        assert out == ""
