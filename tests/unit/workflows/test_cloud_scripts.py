"""The scripts that an export writes for the clouds' tools: whatever a record says, they run nothing of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from parbake import records
from parbake.core.errors import InputError
from parbake.core.events import Events
from parbake.core.model import Platform
from parbake.workflows import export
from parbake.workflows.export import scripts
from parbake.workflows.export.scripts import azure_script, gcp_script, gke_script
from standins.plans import record

AMD64 = Platform(architecture="amd64")
SCRIPTS: dict[str, Callable[[str, str], str]] = {
    "gcp": lambda file, name: gcp_script(file, name, AMD64, uefi=True),
    "gke": gke_script,
    "azure": lambda file, name: azure_script(file, name, AMD64, size=1 << 20, uefi=True, bootable=True),
}
HOSTILE = ("$(touch p)", "`touch p`", "'`touch p`'", "';touch p;'", '";touch p;"', "\ntouch p\n", "\nEND\ntouch p\n")
IDS = ("dollar", "backquotes", "quoted-backquotes", "quotes", "double-quotes", "line", "document")


def run(script: str, folder: Path) -> str:
    """Run a script with stand-ins for the clouds' tools, and return what it and they said."""
    tools = folder / "tools"
    tools.mkdir()
    for name in ("gcloud", "az", "azcopy"):
        (tools / name).write_text('#!/bin/sh\nprintf "%s\\n" "$0 $*" >&2\n')
        (tools / name).chmod(0o755)
    (folder / "script.sh").write_text(script)
    env = {"PATH": f"{tools}:{os.environ['PATH']}", "BUCKET": "bucket", "GROUP": "group", "LOCATION": "here"}
    done = subprocess.run(
        ["/bin/sh", str(folder / "script.sh")], capture_output=True, text=True, cwd=folder, env=env, check=False
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize("checked", [True, False], ids=["refused", "quoted"])
@pytest.mark.parametrize("place", ["file", "name"])
@pytest.mark.parametrize("word", HOSTILE, ids=IDS)
@pytest.mark.parametrize("cloud", SCRIPTS)
def test_a_script_for_a_cloud_runs_nothing_that_a_record_says(
    cloud: str, word: str, place: str, checked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such words are refused, and would be quoted if they were not."""
    if not checked:
        monkeypatch.setattr(scripts, "_named", lambda text, *_: text, raising=False)
    words = {"file": "disk.tar.gz", "name": "disk", place: f"disk-{word}"}
    script = ""
    with suppress(InputError):
        script = SCRIPTS[cloud](words["file"], words["name"])
    assert (script == "") == checked
    said = run(script, tmp_path)
    assert not (tmp_path / "p").exists()
    assert checked or word in said, "the tools get the word as it is"


@pytest.mark.parametrize("word", HOSTILE, ids=IDS)
def test_a_record_with_a_hostile_key_is_not_exported(word: str, tmp_path: Path) -> None:
    good = record("a", passed=True)
    (tmp_path / good.artefact).write_bytes(bytes(1 << 20))
    path = records.write(tmp_path, good)
    statement = json.loads(path.read_text())
    statement["parbake"]["key"] = word + good.key
    path.write_text(json.dumps(statement))
    out = tmp_path / "out"
    with suppress(InputError):
        export.to_gcp(str(path), tmp_path, out, Events())
    for script in out.glob("*.sh"):
        run(script.read_text(), out)
    assert not out.exists() or not (out / "p").exists()
    with pytest.raises(InputError, match="not a parbake record"):
        records.read(path)


def test_a_platform_that_a_cloud_does_not_have() -> None:
    platform = Platform(architecture="riscv64")
    with pytest.raises(InputError, match="Compute Engine has no machines for linux/riscv64"):
        gcp_script("a.tar.gz", "a", platform, uefi=False)
    with pytest.raises(InputError, match="Azure has no machines for linux/riscv64"):
        azure_script("a.vhd", "a", platform, size=1, uefi=False, bootable=False)


def test_names_that_the_clouds_take() -> None:
    for name in ("Shop & Co.", "9 lives", "x" * 80, "-", "ünï"):
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])", scripts.resource_name(name, "0123456789abcdef"))
