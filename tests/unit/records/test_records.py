from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.coldstart.trace import Part, Read, Trace, load, summary
from parbake.core.blocks import BlockList
from parbake.core.errors import DiskFull, InputError
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK, Artefact, Base, Published, Snapshot
from parbake.core.workspace import WORK, work_folder
from parbake.machine.disk import block_list
from parbake.records import folder as records_folder
from parbake.records import held, statements
from parbake.workflows import prune
from parbake.workflows.prune.decide import RetentionRules
from standins.plans import digest, image, plan, record, release


def _put(folder: Path, made: records.Record) -> records.Record:
    (folder / made.artefact).write_bytes(b"x")
    records.write(folder, made)
    return made


def test_a_record_is_an_in_toto_statement_and_reads_back(tmp_path: Path) -> None:
    made = record(passed=True).model_copy(
        update={
            "base_digest": digest("base"),
            "plan": plan(base=Base(kind="debian", identity="recipe"), sandbox=image("localhost/pause:1")),
        }
    )
    path = records.write(tmp_path, made)
    statement = json.loads(path.read_text())
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": made.artefact, "digest": {"sha256": made.sha256}}]
    materials = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert [material["uri"] for material in materials] == [
        "oci://registry.example/app:1",
        "oci://localhost/pause:1",
        "parbake-base:debian:recipe",
    ]
    assert materials[0]["digest"]["sha256"] == made.plan.images[0].manifest.digest.removeprefix("sha256:")
    assert records.read(path) == made
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"parbake": {}}', "\x00", '{"parbake": 3}'])
def test_what_is_no_record_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match="is not a parbake record"):
        records.read(tmp_path / "x.json")
    assert records.find(tmp_path) == ()


def test_a_record_without_its_artefact_is_not_found(tmp_path: Path) -> None:
    records.write(tmp_path, record())
    assert records.find(tmp_path) == ()


def test_a_record_of_what_is_published_needs_no_file(tmp_path: Path) -> None:
    snapshot = Snapshot(id="snap-1", size=1 << 30, device="/dev/xvda")
    made = record().model_copy(update={"published": {"eu-central-1": Published(image="ami-1", snapshots=(snapshot,))}})
    path = records.write(tmp_path, made)
    assert records.read(path) == made
    assert records.find(tmp_path) == ((path, made),)


def test_what_was_to_be_published_and_failed_is_found_by_its_record_alone(tmp_path: Path) -> None:
    bad, left = (
        made.model_copy(
            update={"plan": made.plan.model_copy(update={"artefact": Artefact(kind="volume", format="snapshot")})}
        )
        for made in (record("a", passed=False), record("b"))
    )
    records.write(tmp_path, bad)
    records.write(tmp_path, left)
    assert [found for _, found in records.find(tmp_path)] == [bad]
    assert records.locate("node", tmp_path)[1] == bad


def test_locate_by_file_record_name_and_key(tmp_path: Path) -> None:
    made = _put(tmp_path, record())
    artefact = tmp_path / made.artefact
    for what in (str(artefact), f"{artefact}.json", made.artefact, made.key, made.key[:8], "node"):
        assert records.locate(what, tmp_path) == (artefact, made)
    bare = tmp_path / "bare.raw"
    bare.write_bytes(b"x")
    assert records.locate(str(bare), tmp_path) == (bare, None)


def test_a_bakefiles_name_is_its_newest_artefact_for_rollouts_the_newest_verified(tmp_path: Path) -> None:
    good = _put(tmp_path, record("a", at=1, passed=True))
    newest = _put(tmp_path, record("b", at=2, passed=False))
    _put(tmp_path, record("c", name="node-b", at=3, passed=True))
    assert records.locate("node", tmp_path)[1] == newest
    assert records.locate_record("node", tmp_path, verified=True)[1] == good
    (tmp_path / good.artefact).unlink()
    assert records.locate_record("node", tmp_path, verified=True)[1] == newest, "which a rollout then refuses"


def test_locate_says_what_fits(tmp_path: Path) -> None:
    _put(tmp_path, record("a", at=1))
    newest = _put(tmp_path, record("b", at=2))
    with pytest.raises(InputError, match="matches 2 records") as caught:
        records.locate("node-", tmp_path)
    assert newest.artefact in caught.value.hint
    with pytest.raises(InputError, match="no such record"):
        records.locate("nothing", tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        records.read(tmp_path / "missing.json")


def test_prune_removes_artefact_and_record(tmp_path: Path) -> None:
    old, new = _put(tmp_path, record("a", at=1)), _put(tmp_path, record("b", at=2))
    records.remove(tmp_path, [old])
    assert {entry.name for entry in tmp_path.iterdir()} == {new.artefact, new.file_name}


def _release(folder: Path, made: records.Record, content: bytes = b"new") -> Path:
    with work_folder(folder, "bake") as work:
        (work / "disk.raw").write_bytes(content)
        return release(work / "disk.raw", made, folder, work)


def test_an_artefact_appears_with_its_record(tmp_path: Path) -> None:
    made = record()
    artefact = _release(tmp_path, made)
    assert artefact.read_bytes() == b"new"
    assert [found for _, found in records.find(tmp_path)] == [made]
    again = made.model_copy(update={"seconds": 9.0})
    _release(tmp_path, again, b"newer")
    assert artefact.read_bytes() == b"newer"
    assert [found for _, found in records.find(tmp_path)] == [again]
    assert len(list(tmp_path.iterdir())) == 2


def test_the_trace_appears_with_the_record_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is killed in between leaves no record: the next one knows that nothing was rehearsed."""
    trace = Trace(uuid="0", parts=(Part(name="app", reads=(Read(0, 0, 8),)),))
    made = record()
    made = made.model_copy(update={"trace": summary(trace, file=made.trace_name)})

    def let_appear() -> None:
        with work_folder(tmp_path, "bake") as work:
            (work / "disk.raw").write_bytes(b"new")
            release(work / "disk.raw", made, tmp_path, work, trace=trace)

    let_appear()
    assert load(tmp_path / made.trace_name) == trace
    assert [found for _, found in records.find(tmp_path)] == [made]

    write = records_folder.write

    def full(folder: Path, *more: Any, **how: Any) -> Path:
        if folder == tmp_path:
            raise DiskFull("no room for the record")
        return write(folder, *more, **how)

    monkeypatch.setattr(records_folder, "write", full)
    with pytest.raises(DiskFull):
        let_appear()
    assert list(tmp_path.iterdir()) == []


def test_an_artefact_whose_record_cannot_be_replaced_does_not_appear(tmp_path: Path) -> None:
    made = record()
    (tmp_path / made.file_name).mkdir()
    with pytest.raises(OSError, match="directory"):
        _release(tmp_path, made)
    assert [path.name for path in tmp_path.iterdir()] == [made.file_name]


def _listed(word: str, folder: Path) -> tuple[records.Record, BlockList]:
    """Return the record of a raw artefact that is named by its blocks alone, and their list."""
    (folder / "draft").write_bytes(word.encode() * EBS_BLOCK)
    blocks = block_list(folder / "draft", Events())
    (folder / "draft").unlink()
    named = records.Blocks(count=len(blocks.blocks), digest=blocks.digest())
    return record(word).model_copy(update={"sha256": "", "blocks": named}), blocks


def _release_listed(folder: Path, word: str = "ab") -> tuple[Path, records.Record]:
    made, blocks = _listed(word, folder)
    with work_folder(folder, "bake") as work:
        (work / "disk.raw").write_bytes(word.encode() * EBS_BLOCK)
        return release(work / "disk.raw", made, folder, work, blocks=blocks), made


def _damage(artefact: Path, made: records.Record) -> str:
    return held.damage(artefact, made, Events())


def test_a_raw_artefact_comes_and_goes_with_the_list_of_its_blocks(tmp_path: Path) -> None:
    artefact, made = _release_listed(tmp_path)
    listed = tmp_path / f"{made.artefact}.blocks"
    assert {path.name for path in tmp_path.iterdir()} == {made.artefact, made.file_name, listed.name}
    assert records.read(tmp_path / made.file_name) == made
    statement = json.loads((tmp_path / made.file_name).read_text())
    subject = {"parbakeBlocks1": hashlib.sha256(listed.read_bytes()).hexdigest()}
    assert statement["subject"] == [{"name": made.artefact, "digest": subject}]
    assert records.locate(str(listed), tmp_path) == (artefact, made)
    assert _damage(artefact, made) == ""
    records.remove(tmp_path, [made])
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_artefact_is_told_from_a_damaged_list(tmp_path: Path) -> None:
    artefact, made = _release_listed(tmp_path)
    listed = records.blocks_path(artefact)
    good = listed.read_bytes()
    for content in (None, b"", good[:-70]):
        listed.unlink() if content is None else listed.write_bytes(content)
        assert _damage(artefact, made) == ""
        assert listed.read_bytes() == good, "what can be made again is"

    with artefact.open("r+b") as file:
        file.seek(EBS_BLOCK + 7)
        file.write(b"!")
    assert _damage(artefact, made) == "1 block of 512 KiB differs from its record: 1"
    listed.write_bytes(b"")
    assert "does not say which" in _damage(artefact, made)
    listed.write_bytes(good)
    with artefact.open("r+b") as file:
        file.truncate(EBS_BLOCK)
    assert _damage(artefact, made) == f"it has {EBS_BLOCK} bytes, not the {2 * EBS_BLOCK} of its record"


def test_a_record_of_before_reads(tmp_path: Path) -> None:
    """When there were no lists of blocks, each record had the digest of the whole file."""
    statement = statements.to_statement(record())
    document = statement["parbake"]
    assert isinstance(document, dict)
    del document["blocks"]
    (tmp_path / "x.json").write_text(json.dumps(statement))
    assert records.read(tmp_path / "x.json") == record()
    (tmp_path / "x").write_bytes(b"content")
    whole = record().model_copy(update={"sha256": hashlib.sha256(b"content").hexdigest()})
    assert _damage(tmp_path / "x", whole) == ""
    assert "its SHA-256 is" in _damage(tmp_path / "x", record())


def test_what_a_killed_run_did_not_finish_goes_with_its_list(tmp_path: Path) -> None:
    artefact, made = _release_listed(tmp_path)
    for left in ((artefact, records.blocks_path(artefact)), (records.blocks_path(artefact),)):
        for path in left:
            path.write_bytes(b"x")
        (tmp_path / made.file_name).unlink(missing_ok=True)
        work = _dead(tmp_path, made.artefact)
        assert records.sweep(tmp_path) == (*left, work)
    assert list(tmp_path.iterdir()) == []


def _dead(folder: Path, *artefacts: str) -> Path:
    """Make what is left of a run that was killed while it added or removed these."""
    work = folder / WORK / "bake.1.dead"
    work.mkdir(parents=True)
    (work / "unfinished").write_text("".join(f"{name}\n" for name in artefacts))
    return work


def test_what_a_killed_run_did_not_finish_goes_with_it(tmp_path: Path) -> None:
    whole, half, mine = record("a"), record("b"), tmp_path / "mine.raw"
    _put(tmp_path, whole)
    (tmp_path / half.artefact).write_bytes(b"x")
    mine.write_bytes(b"x")
    work = _dead(tmp_path, whole.artefact, half.artefact, "never-came.raw")
    assert records.sweep(tmp_path) == (tmp_path / half.artefact, work)
    assert {path.name for path in tmp_path.iterdir()} == {whole.artefact, whole.file_name, mine.name}


def test_what_a_living_run_is_at_waits_for_the_next_time(tmp_path: Path) -> None:
    half = record()
    (tmp_path / half.artefact).write_bytes(b"x")
    work = _dead(tmp_path, half.artefact)
    with records.in_use(tmp_path, half.artefact):
        assert records.sweep(tmp_path) == ()
    assert records.sweep(tmp_path) == (tmp_path / half.artefact, work)
    assert list(tmp_path.iterdir()) == []


def test_prune_keeps_what_is_in_use(tmp_path: Path) -> None:
    made = _put(tmp_path, record())
    with records.in_use(tmp_path, made.artefact):
        (decision,) = prune.prune(tmp_path, RetentionRules(keep=0))
    assert (decision.action, decision.reason) == ("keep", "another parbake is working on it")
    assert [each.action for each in prune.prune(tmp_path, RetentionRules(keep=0))] == ["remove"]
    assert list(tmp_path.iterdir()) == []
