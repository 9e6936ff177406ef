"""The Bakefile of a call: loaded once, and no obstacle where the user names a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from parbake import bakefile, records
from parbake.cli import run
from parbake.cli.app import app
from parbake.coldstart.trace import Part, Read, Trace, save, summary
from standins.keys import key_pair
from standins.plans import record

BROKEN = "version: 1\nimages: [registry.example.com/a:1]\nsize: huge\n"
SOUND = "version: 1\nimages: [registry.example.com/a:1]\nbase: none\n"
LEGIBLE = "parbake.yaml: 1 problem; only its `trust`, `sign` and `verify` count"

# Every command that takes a record, with what it says after it has read that; "": it succeeds.
COMMANDS = {
    "show FILE": "",
    "verify FILE": "does not exist, although its record does",
    "trace FILE --trace nothing.trace": "nothing.trace",
    "hydrate FILE out": "",
    "advise FILE": "",
    "report FILE": "",
    "report FILE FILE": "",
    "lint pod.yaml --bake FILE": "",
    "coverage FILE --against FILE": "",
    "observe FILE --context nowhere": "kubectl",
    "export kubelet-config FILE": "",
    "export gcp FILE out": "is no longer on this machine",
    "export gke FILE out": "is no longer on this machine",
    "export azure FILE out": "is no longer on this machine",
}
THEY_LOOK_AT_THE_BAKEFILE = {"verify", "trace", "export", "hydrate"}  # for keys and the node's image
NEED_A_BAKEFILE = {
    "copy FILE eu-west-1": "takes the account, its role and the encryption of the copy from it",
    "rollout FILE": "takes the targets from it",
    "lint pod.yaml": "compares with it (or with the records that --bake names)",
}


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the path of a record that lies elsewhere, with a trace beside it; work in an empty folder."""
    folder, elsewhere = tmp_path / "node", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    made = record(passed=True)
    trace = Trace(uuid="0" * 8, size=1 << 30, parts=(Part(name="app", reads=(Read(0, 0, 8),)),))
    made = made.model_copy(update={"trace": summary(trace, file=made.trace_name)})
    save(trace, elsewhere / made.trace_name)
    records.write(elsewhere, made)
    Path("pod.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\n"
        "spec: {containers: [{name: web, image: 'registry.example/a:1', imagePullPolicy: IfNotPresent}]}\n"
    )
    return elsewhere / made.file_name


def call(command: str, file: Path) -> int:
    return run([str(file) if word == "FILE" else word for word in command.split()])


def test_the_list_of_commands_is_complete() -> None:
    found = set()

    def walk(command: Any, name: str) -> None:
        for each, child in getattr(command, "commands", {}).items():
            walk(child, f"{name} {each}".strip())
        if any("RECORD" in (part.metavar or "") for part in command.params):
            found.add(name)

    walk(typer.main.get_command(app), "")
    known = {command.partition(" FILE")[0].removesuffix(" pod.yaml --bake") for command in COMMANDS}
    known = {command.removesuffix(" --trace nothing.trace") for command in known}
    assert found == known | {command.partition(" FILE")[0] for command in NEED_A_BAKEFILE if "FILE" in command}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_broken_bakefile_in_the_current_folder_stops_no_command_that_is_given_a_file(
    command: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("parbake.yaml").write_text(BROKEN)
    code = call(command, file)
    said = capsys.readouterr().err
    assert ("BakefileError" in said, COMMANDS[command] in said, bool(code)) == (False, True, bool(COMMANDS[command]))
    if command.split(maxsplit=1)[0] not in THEY_LOOK_AT_THE_BAKEFILE:
        assert "parbake.yaml" not in said, "it is not even read"


@pytest.mark.parametrize("command", NEED_A_BAKEFILE)
def test_a_command_that_needs_the_bakefile_says_what_for(
    command: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("parbake.yaml").write_text(BROKEN)
    assert call(f"{command} --json", file) == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["error"], answer["problems"][0]["where"]) == ("BakefileError", "size")
    name = command.partition(" ")[0]
    assert answer["hint"] == f"`{name}` {NEED_A_BAKEFILE[command]}: correct it, or name another with -f"


def test_what_still_counts_of_a_broken_bakefile_is_said(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("parbake.yaml").write_text(BROKEN)
    call("verify FILE", file)
    assert LEGIBLE in capsys.readouterr().err


def test_the_keys_of_a_broken_bakefile_still_count(
    tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    signer = key_pair(tmp_path)
    Path("parbake.yaml").write_text(f"{BROKEN}trust: [{tmp_path}/key.pub]\nsign: {{key: {tmp_path}/key.pem}}\n")
    assert call("verify FILE", file) == 3
    said = capsys.readouterr().err
    assert LEGIBLE in said
    assert "is not signed" in said
    records.write(file.parent, records.read(file), signer)
    assert call("verify FILE", file) == 2
    assert COMMANDS["verify FILE"] in capsys.readouterr().err, "the signature is right"


@pytest.mark.parametrize(
    ("text", "fails"),
    [
        pytest.param("trust: [no-such.pub]\n", True, id="a key that is not there"),
        pytest.param("trust: [\nsize: {\n", True, id="no YAML"),
        pytest.param("size: {\n", False, id="no YAML, and no keys in it"),
        pytest.param("sign: {key: no-such.pem, kms: x}\n", False, id="nothing that decides what to believe"),
    ],
)
def test_keys_that_cannot_be_read_are_not_passed_over(
    text: str, fails: bool, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("parbake.yaml").write_text(BROKEN + text)
    call("verify FILE", file)
    said = capsys.readouterr().err
    assert ("its `trust` says which records to believe" in said) is fails
    assert (COMMANDS["verify FILE"] in said) is not fails
    assert ("; ignored" in said) is not fails


def test_a_bakefile_that_is_named_must_be_right(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("other.yaml").write_text(BROKEN)
    assert call("verify FILE -f other.yaml --json", file) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "BakefileError"


def test_a_name_is_looked_for_where_the_bakefile_says(capsys: pytest.CaptureFixture[str]) -> None:
    Path("parbake.yaml").write_text(BROKEN)
    assert run(["verify", "node-", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"] == "BakefileError"


@pytest.mark.parametrize("selector", ["FILE", "node"])
def test_verify_loads_its_bakefile_once(selector: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("parbake.yaml").write_text(SOUND)
    (Path("artefacts")).mkdir()
    records.write(Path("artefacts"), records.read(file))
    loads: list[Path] = []
    load = bakefile.load

    def counted(path: Path, overrides: Any = None) -> bakefile.Bakefile:
        loads.append(path)
        return load(path, overrides)

    monkeypatch.setattr(bakefile, "load", counted)
    call(f"verify {selector}", file)
    assert len(loads) == 1
