"""Attacks by names and links that somebody else has planted where root works: nothing elsewhere is touched."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from parbake import records
from parbake.coldstart import hydrate
from parbake.coldstart.trace import Trace, save
from parbake.core import workspace
from parbake.core.blocks import BlockList
from parbake.core.errors import EnvironmentProblem, InputError
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK, Plan
from parbake.images import cache as layers
from parbake.machine import base
from parbake.records import statements
from parbake.rollouts import gitops
from parbake.rollouts.gitops import Edit, Repository
from parbake.rollouts.manifests import NodeClassFile
from parbake.workflows import clean, export, prune
from parbake.workflows.prune.decide import RetentionRules
from standins.plans import plan, record

SECRET = "root:$y$secret:\n"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Return a file elsewhere that nobody but its owner shall read or write."""
    path = tmp_path / "elsewhere" / "shadow"
    path.parent.mkdir()
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


def untouched(victim: Path) -> bool:
    return victim.read_text() == SECRET and victim.stat().st_mode & 0o777 == 0o600


# -- files that are replaced


def _trace(folder: Path) -> Path:
    return save(Trace(filesystem="ext4", size=1 << 20, how="node", made_at="", parts=()), folder / "a.trace")


WRITERS: dict[str, tuple[str, Any]] = {
    "an export's script": (
        ".create-disk.sh.new",
        lambda folder: export.write(folder, {"create-disk.sh": "#!/bin/sh\n"}, force=False),
    ),
    "a node's file": (".hydrate.py.draft", lambda folder: hydrate.export(folder, "")),
    "a trace": (".a.trace.draft", _trace),
}


@pytest.mark.parametrize("what", WRITERS)
def test_a_planted_link_beside_a_file_that_is_written_leads_nowhere(what: str, tmp_path: Path, victim: Path) -> None:
    beside, write = WRITERS[what]
    folder = tmp_path / "public"
    folder.mkdir()
    (folder / beside).symlink_to(victim)
    write(folder)
    assert untouched(victim)


def test_a_planted_link_in_the_place_of_an_export_is_replaced(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.sh").symlink_to(victim)
    export.write(tmp_path / "out", {"run.sh": "#!/bin/sh\n"}, force=True)
    assert untouched(victim)
    assert not (tmp_path / "out/run.sh").is_symlink()
    assert (tmp_path / "out/run.sh").stat().st_mode & 0o777 == 0o755


def test_a_planted_folder_of_an_export_leads_nowhere(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scripts").symlink_to(victim.parent)
    with pytest.raises(InputError, match=r"'scripts' in .* is a link"):
        export.write(tmp_path / "out", {"scripts/pull.sh": "#!/bin/sh\n"}, force=False)
    assert [entry.name for entry in victim.parent.iterdir()] == [victim.name]


# -- manifests

CLASS = """\
apiVersion: karpenter.k8s.aws/v1
kind: EC2NodeClass
metadata: {name: default}
"""


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "repo"
    (folder / "nodes").mkdir(parents=True)
    (folder / "nodes/class.yaml").write_text(CLASS)
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-q", "-m", "one"]):
        who = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["/usr/bin/git", *who, *words], cwd=folder, check=True)
    return Repository.open(folder)


def test_a_planted_link_beside_a_manifest_leads_nowhere(repository: Repository, victim: Path) -> None:
    manifest = repository.folder / "nodes/class.yaml"
    manifest.chmod(0o640)
    os.chown(manifest, 1234, 4321)
    manifest.with_name(".class.yaml.parbake").symlink_to(victim)
    gitops.write(repository.folder, Edit("nodes/class.yaml", CLASS, CLASS + "spec: {}\n"))
    assert untouched(victim)
    assert manifest.read_text() == CLASS + "spec: {}\n"
    status = manifest.stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, 1234, 4321), "it stays its owner's"


@pytest.mark.parametrize("planted", ["file", "folder", "repository", "hooks"])
def test_a_manifest_that_leads_out_of_its_repository_is_not_edited(
    planted: str, repository: Repository, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "class.yaml").write_text(CLASS)
    link, name = repository.folder / "planted", "planted/class.yaml"
    if planted == "file":
        link, name = repository.folder / "planted.yaml", "planted.yaml"
        link.symlink_to(outside / "class.yaml")
    elif planted == "hooks":
        outside = repository.folder / ".git/hooks"
        (outside / "class.yaml").write_text(CLASS)
        link.symlink_to(".git/hooks")
    else:
        if planted == "repository":  # another one of the user's, which the Bakefile does not name
            (outside / ".git").mkdir()
        link.symlink_to(outside)
    edit = Edit(name, CLASS, CLASS + "spec: {}\n")
    with pytest.raises(InputError, match="leads to"):
        gitops.write(repository.folder, edit)
    target: Any = type("Target", (), {"file": repository.folder / name, "branch": "", "device": "", "remedy": None})
    with pytest.raises(InputError, match="leads to"):
        NodeClassFile(target).status()
    assert (outside / "class.yaml").read_text() == CLASS


def test_a_manifest_that_is_a_link_inside_its_repository_stays_one(repository: Repository) -> None:
    link = repository.folder / "current.yaml"
    link.symlink_to("nodes/class.yaml")
    gitops.write(repository.folder, Edit("current.yaml", CLASS, CLASS + "spec: {}\n"))
    assert link.is_symlink()
    assert (repository.folder / "nodes/class.yaml").read_text() == CLASS + "spec: {}\n"


def test_a_manifest_in_no_repository_stays_in_its_folder(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "values").mkdir()
    (tmp_path / "values/a.yaml").symlink_to(victim)
    (tmp_path / "values/loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(InputError, match="leads to"):
        gitops.write(tmp_path / "values", Edit("a.yaml", SECRET, "mine"))
    with pytest.raises(OSError, match="symbolic links"):
        gitops.write(tmp_path / "values", Edit("loop.yaml", SECRET, "mine"))
    assert untouched(victim)


# -- names in records and in what killed runs left


@pytest.mark.parametrize("how", ["absolute", "dots", "hidden", "folder"])
def test_a_planted_list_of_what_is_unfinished_removes_nothing_elsewhere(how: str, tmp_path: Path, victim: Path) -> None:
    output = tmp_path / "artefacts"
    (output / "below").mkdir(parents=True)
    (output / "below/file").write_text("")
    (output / ".hidden").write_text("")
    name = {"absolute": str(victim), "dots": "../elsewhere/shadow", "hidden": ".hidden", "folder": "below/file"}[how]
    work = output / workspace.WORK / "bake.1.dead"
    work.mkdir(parents=True)
    (work / "unfinished").write_text(f"{name}\n")
    records.sweep(output)
    assert untouched(victim)
    assert (output / "below/file").exists()
    assert (output / ".hidden").exists()
    assert not work.exists()


def _forged(folder: Path, **changes: object) -> Path:
    statement: Any = statements.to_statement(record())
    statement["parbake"] |= changes
    path = folder / "forged.json"
    path.write_text(json.dumps(statement))
    return path


NAMES = ["../elsewhere/shadow", "/etc/shadow", "..", ".", "", ".hidden", "a/b", "a\n", "a\0", "é.raw", "a" * 300]


@pytest.mark.parametrize("name", NAMES)
def test_a_record_names_no_file_elsewhere_so_that_prune_removes_none(name: str, tmp_path: Path, victim: Path) -> None:
    output = tmp_path / "artefacts"
    output.mkdir()
    path = _forged(output, artefact=name)
    prune.prune(output, RetentionRules(keep=0))
    assert untouched(victim)
    with pytest.raises(InputError, match="is not a parbake record"):
        records.read(path)
    with pytest.raises(InputError, match="is not a parbake record"):
        records.read(_forged(output, parent=name or "."))
    with pytest.raises(ValidationError):
        Plan.model_validate({**plan().model_dump(), "name": name})


# -- locks and work folders


def test_a_planted_lock_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/it.lock").symlink_to(tmp_path / "made-by-root")
    with pytest.raises(EnvironmentProblem, match="is a link"), workspace.lock(tmp_path / "run/it.lock", what="it"):
        pass
    assert not (tmp_path / "made-by-root").exists()


@pytest.mark.parametrize("kept", [False, True])
def test_behind_a_planted_work_folder_nothing_goes(kept: bool, tmp_path: Path) -> None:
    """All that is called ``*.*.*`` there would: the folders of a web server, of a package manager."""
    precious = tmp_path / "srv/www.example.com"
    precious.mkdir(parents=True)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / workspace.WORK).symlink_to(tmp_path / "srv")
    with pytest.raises(EnvironmentProblem, match=r"\.parbake is a link") as caught:
        workspace.remove_leftovers(tmp_path / "out", kept=kept)
    assert "rm -r" in caught.value.hint
    with pytest.raises(EnvironmentProblem), workspace.work_folder(tmp_path / "out", "job"):
        pass
    with pytest.raises(EnvironmentProblem), workspace.lock(tmp_path / "out" / workspace.WORK / "a.lock", what="a"):
        pass
    assert [entry.name for entry in (tmp_path / "srv").iterdir()] == [precious.name]


def test_a_link_in_the_cache_shows_a_clean_up_no_other_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run has kept elsewhere, for its user to look at, is nobody's leftover there."""
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache/x").mkdir(parents=True)
    with workspace.work_folder(tmp_path / "theirs", "bake", keep=True) as kept:
        pass
    (tmp_path / "cache/planted").symlink_to(tmp_path / "theirs")
    (tmp_path / "cache/x/planted").symlink_to(tmp_path / "theirs")
    assert clean.clean(tmp_path / "out") == ()
    clean.clean(tmp_path / "out", caches=True)
    assert kept.is_dir()


def test_a_folder_of_the_cache_that_is_a_link_is_not_used(tmp_path: Path) -> None:
    theirs, cache = tmp_path / "theirs", tmp_path / "cache"
    layer = theirs / f"sha256-{'a' * 64}"
    theirs.mkdir()
    layer.write_text("of somebody who names files so")
    cache.mkdir()
    for name in ("base", "layers"):
        (cache / name).symlink_to(theirs)
    with pytest.raises(EnvironmentProblem, match="is a link: what is kept there would be elsewhere"):
        base.ensure(cache, Events())
    assert layers.prune(cache, 0) == ((), ())
    assert [path.name for path in theirs.iterdir()] == [layer.name]


@pytest.mark.parametrize(
    ("owner", "mode", "why"), [(1234, 0o755, "belongs to"), (0, 0o770, "other"), (0, 0o707, "other")]
)
def test_a_work_folder_that_others_made_or_write_to_is_not_used(
    owner: int, mode: int, why: str, tmp_path: Path
) -> None:
    planted = tmp_path / workspace.WORK / "bake.1.dead"
    planted.mkdir(parents=True)
    planted.parent.chmod(mode)
    os.chown(planted.parent, owner, owner)
    with pytest.raises(EnvironmentProblem, match=why):
        workspace.remove_leftovers(tmp_path)
    with pytest.raises(EnvironmentProblem), workspace.work_folder(tmp_path, "job"):
        pass
    assert planted.exists()


def test_a_planted_leftover_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    work = tmp_path / workspace.WORK
    work.mkdir()
    (work / "a.b.c").symlink_to(tmp_path / "precious")
    (work / "d.e.f").mkdir()
    os.chown(work / "d.e.f", 1234, 1234)
    assert workspace.remove_leftovers(tmp_path) == ()
    assert (tmp_path / "precious").exists()


def test_work_folders_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with workspace.work_folder(tmp_path, "job") as folder:
            assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]
    finally:
        os.umask(before)


def test_a_list_of_blocks_with_endless_numbers_is_none(tmp_path: Path) -> None:
    (tmp_path / "a.blocks").write_text(f"parbake-blocks 1 blake3 {EBS_BLOCK} {'9' * 5000}\n")
    with pytest.raises(InputError, match="not a block list"):
        BlockList.read(tmp_path / "a.blocks")
