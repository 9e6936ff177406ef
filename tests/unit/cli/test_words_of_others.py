"""What others say reaches no terminal and no CI raw: by errors, progress, tables, usage, and JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from parbake import cli, records
from parbake.cli import app
from parbake.cli.progress import Style, rendered
from parbake.cli.text import tables
from parbake.core.errors import InputError, NoSuchImage, ParbakeError
from parbake.core.events import Events
from parbake.images.registry.documents import Manifest, check_image, read_document
from standins.plans import digest, record

HOSTILE = {
    "clipboard": "\x1b]52;c;cm0gLXJmIC8K\x07",
    "link": "\x1b]8;;https://evil.example\x1b\\click\x1b]8;;\x1b\\",
    "screen": "\x1b[2J\x1b[H",
    "title": "\x1b]0;title\x07",
    "c1": "\x9b2J\x9d52;c;AA==\x9c",
    "bidi": "\u202egnp.exe\u2066\u200b",
    "separators": "\u2028::error::a\x85::error::b\x0c::error::c\x1c",
    "overwritten": "secret\rparbake: done\b\b",
    "command": "::set-output name=a::b",
    "indented": "   ::error file=a::b",
    "after-white-space": "\u3000::error::b",
    "legacy": "x ##[add-mask]a",
    "azure": "x ##vso[task.setvariable variable=a]b",
    "teamcity": "##teamcity[buildStatus text='a']",
    "many": "###[error]a####[error]",
    "surrogate": "a\udc80\udcff",
    "nul": "a\x00b",
    "lines": "a\n::error::b\n  ::warning::c\r\n##[error]d\n\tparbake: done",
}
BREAKS = {name: text for name, text in HOSTILE.items() if "\n" in text} | {"forged": "x\nparbake: baked"}
COMMAND = re.compile(r"^\s*::|##[A-Za-z]*\[")


def check(said: str) -> None:
    """Assert that nothing in a text does anything but to be read."""
    assert all(sign.isprintable() or sign == "\n" for sign in said), ascii(said)
    assert not [line for line in said.split("\n") if COMMAND.search(line)], said


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("debug", [False, True])
def test_an_error_with_words_of_others(text: str, debug: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """Such as what a registry, a runtime, a build or a container has said."""
    app.out.debug, app.out.as_json = debug, False
    try:
        app._report(InputError(f"the registry says {text}\n{text}", hint=f"did you mean {text}?"))
    finally:
        app.out.debug = False
    check(capsys.readouterr().err)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("style", ["plain", "rich", "json"])
def test_progress_with_words_of_others(text: str, style: Style, capsys: pytest.CaptureFixture[str]) -> None:
    with rendered(style) as events:
        tell(events, text)
    check(capsys.readouterr().err)


def tell(events: Events, text: str) -> None:
    with events.stage("fill", text), events.task(text, 100) as task:
        task.advance(100)
    events.note(text)
    events.note(f"the build: {text}")
    events.warn(text)
    events.warn(f"\n{text}")


@pytest.mark.parametrize("style", ["plain", "rich"])
def test_a_word_in_progress_makes_no_line_of_its_own(style: Style, capsys: pytest.CaptureFixture[str]) -> None:
    with rendered(style) as events, events.stage("fill", "x\nparbake: baked"), events.task("x\nparbake: baked", 1):
        pass
    assert not [line for line in capsys.readouterr().err.splitlines() if line.startswith("parbake: ")]


def test_neither_markup_nor_emoji_of_others_means_anything(capsys: pytest.CaptureFixture[str]) -> None:
    with rendered("rich") as events:
        tell(events, "app:100: [red]x[/red] [link=https://evil.example]y[/link] \\")
    said = capsys.readouterr().err
    assert said.count("app:100: [red]x[/red] [link=https://evil.example]y[/link] \\") >= 5


@pytest.mark.parametrize("text", (HOSTILE | BREAKS).values(), ids=(HOSTILE | BREAKS).keys())
def test_a_record_with_words_of_others(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = record("a", passed=True)
    (tmp_path / good.artefact).touch()
    path = records.write(tmp_path, good)
    statement = json.loads(path.read_text())
    statement["parbake"] |= {"builder": text, "parbake": text, "timings": {text: 1.0}}
    path.write_text(json.dumps(statement))
    assert cli.run(["show", str(path)]) == 0
    said = capsys.readouterr().out
    check(said)
    assert not [line for line in said.splitlines() if line.startswith("parbake: ")]
    assert cli.run(["show", str(path), "--json"]) == 0
    said = capsys.readouterr().out
    check(said)
    assert json.loads(said)["parbake"]["builder"] == text


@pytest.mark.parametrize("text", BREAKS.values(), ids=BREAKS.keys())
def test_a_cell_holds_a_word_on_one_line(text: str) -> None:
    assert len(tables.table([("a", text), ("b", ("one", text))], header=("x", "y")).splitlines()) == 5


@pytest.mark.parametrize("text", (HOSTILE | BREAKS).values(), ids=(HOSTILE | BREAKS).keys())
def test_a_manifest_with_words_of_others(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": text, "namespace": text},
        "spec": {"containers": [{"name": text, "image": "registry.example/app:latest"}]},
    }
    (tmp_path / "pod.json").write_text(json.dumps(pod))
    bakefile = tmp_path / "parbake.yaml"
    bakefile.write_text("version: 1\nbase: none\nimages: [registry.example/other:1]\n")
    cli.run(["lint", str(tmp_path / "pod.json"), "-f", str(bakefile)])
    captured = capsys.readouterr()
    check(captured.out)
    check(captured.err)
    assert not [line for line in captured.out.splitlines() if line.startswith("parbake: ")]
    assert "latest" in captured.out


@pytest.mark.parametrize("text", (HOSTILE | BREAKS).values(), ids=(HOSTILE | BREAKS).keys())
def test_a_media_type_is_a_word(text: str) -> None:
    def said(raw: object) -> str:
        with pytest.raises(ParbakeError) as caught:
            check_image("app:1", Manifest.model_validate(raw))
        return caught.value.message

    blob = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest("x"), "size": 1}
    strange = {**blob, "mediaType": f"application/{text}"}
    messages = [said({"config": strange}), said({"config": blob, "layers": [strange]})]
    with pytest.raises(NoSuchImage) as caught:
        read_document("app:1", json.dumps({"mediaType": f"application/{text}"}).encode(), "")
    for message in (*messages, caught.value.message):
        assert message.isprintable()


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_arguments_with_words_of_others(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As a CI makes them of the titles of merge requests."""
    assert cli.run([f"--{text}"]) == 2
    assert cli.run([f"x\n{text}"]) == 2
    check(capsys.readouterr().err)
