"""Whether a record on this machine is to be believed: its signature, itself, its list of blocks."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parbake import cli, records
from parbake.bakefile import load
from parbake.core import atomic
from parbake.core.errors import BakefileError, InputError, VerificationFailed
from parbake.core.events import Event, Events
from parbake.core.model import EBS_BLOCK, Verdict
from parbake.core.signing import FileSigner, public_key
from parbake.core.workspace import work_folder
from parbake.machine.disk import block_list
from parbake.records import Blocks, genuine
from parbake.workflows import export, plan, verify
from standins.keys import key_pair
from standins.plans import record, release

GOOD = Verdict(passed=True, accelerator="kvm", boot_seconds=2.0)


class Shelf:
    """A Bakefile's folder with a pair of keys, and one artefact whose record is signed."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "artefacts"
        self.output.mkdir()
        self.signer = key_pair(folder)
        self.trust = (folder / "key.pub",)
        self.said: list[Event] = []
        self.events = Events(self.said.append)
        self.record = record(passed=True)
        self.artefact = self.output / self.record.artefact
        self.artefact.write_bytes(b"a" * EBS_BLOCK + b"b" * EBS_BLOCK)
        blocks = block_list(self.artefact, self.events, algorithm="blake3")
        blocks.write(records.blocks_path(self.artefact))
        named = Blocks(algorithm="blake3", count=2, digest=blocks.digest())
        self.record = self.record.model_copy(update={"sha256": "", "blocks": named, "size": 2 * EBS_BLOCK})
        self.path = self.output / self.record.file_name
        self.envelope = self.output / f"{self.record.artefact}.intoto.jsonl"
        records.write(self.output, self.record, self.signer)
        self.true = self.path.read_bytes()

    def edit(self, before: str, after: str) -> None:
        text = self.path.read_text()
        assert before in text
        self.path.write_text(text.replace(before, after))

    @property
    def warnings(self) -> str:
        return "\n".join(event.text for event in self.said)


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path)


class TestWriting:
    def test_a_record_that_is_written_again_is_signed_again(self, shelf: Shelf) -> None:
        changed = verify.write_verdict(shelf.artefact, shelf.record, GOOD, "f" * 64, shelf.signer)
        assert genuine.need(shelf.artefact, shelf.trust) == changed
        assert shelf.path.read_bytes() != shelf.true

    def test_a_signed_record_is_not_left_without_its_signature(self, shelf: Shelf) -> None:
        with pytest.raises(InputError, match="no key to sign the changed one") as error:
            records.write(shelf.output, shelf.record.model_copy(update={"verdict": GOOD}))
        assert "sign:" in error.value.hint
        assert shelf.path.read_bytes() == shelf.true

    @pytest.mark.parametrize("place", [1, 2, 3], ids=["envelope", "detached", "record"])
    def test_killed_between_the_files_it_is_mended(
        self, shelf: Shelf, monkeypatch: pytest.MonkeyPatch, place: int
    ) -> None:
        count = 0

        replace = atomic.replace

        def dying(path: Path, content: bytes, **more: Any) -> None:
            nonlocal count
            count += 1
            if count == place:
                raise KeyboardInterrupt
            replace(path, content, **more)

        monkeypatch.setattr(atomic, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            verify.write_verdict(shelf.artefact, shelf.record, GOOD, "", shelf.signer)
        if place > 1:
            with pytest.raises(VerificationFailed, match="changed after it was signed"):
                genuine.need(shelf.artefact, shelf.trust)
        assert genuine.mend(shelf.artefact, shelf.trust, shelf.events)
        assert genuine.need(shelf.artefact, shelf.trust).verdict == (GOOD if place > 1 else shelf.record.verdict)

    def test_an_artefact_that_takes_its_place_has_no_old_signature(self, shelf: Shelf) -> None:
        with work_folder(shelf.output, "test") as work:
            (work / "made").write_bytes(b"x")
            release(work / "made", shelf.record, shelf.output, work)
        assert not shelf.envelope.exists()
        assert not (shelf.output / f"{shelf.record.artefact}.json.sig").exists()

    def test_pruning_takes_the_signatures_along(self, shelf: Shelf) -> None:
        records.remove(shelf.output, [shelf.record])
        assert [path.name for path in shelf.output.iterdir()] == []

    def test_a_killed_removal_is_finished(self, shelf: Shelf) -> None:
        with work_folder(shelf.output, "prune", keep=True) as work:
            (work / "unfinished").write_text(f"{shelf.record.artefact}\n")
        shelf.path.unlink()
        records.sweep(shelf.output, kept=True)
        assert list(shelf.output.iterdir()) == []

    def test_signatures_are_found_and_are_no_records(self, shelf: Shelf) -> None:
        assert [path for path, _ in records.find(shelf.output)] == [shelf.path]
        for name in (shelf.envelope, shelf.output / f"{shelf.record.artefact}.json.sig"):
            assert records.locate(str(name), shelf.output) == (shelf.artefact, shelf.record)


EDITS: list[tuple[str, str]] = [('"passed": true', '"passed": false'), ('"builder": "local"', '"builder": "lokal"')]


class TestReading:
    @pytest.mark.parametrize(("before", "after"), EDITS)
    def test_any_edit_of_a_signed_record_is_found(self, shelf: Shelf, before: str, after: str) -> None:
        shelf.edit(before, after)
        with pytest.raises(VerificationFailed, match="changed after it was signed"):
            genuine.need(shelf.artefact, shelf.trust)

    def test_an_edit_of_the_envelope_is_found(self, shelf: Shelf) -> None:
        document = json.loads(shelf.envelope.read_text())
        document["payload"] = document["payload"][:-8] + "AAAA" + document["payload"][-4:]
        shelf.envelope.write_text(json.dumps(document))
        with pytest.raises(VerificationFailed, match="signed by none of the keys"):
            genuine.need(shelf.artefact, shelf.trust)

    @pytest.mark.parametrize(
        ("name", "change", "says"),
        [
            ("subject", lambda subject: subject[0]["digest"].update(parbakeBlocks1="0" * 64), "subject"),
            ("subject", lambda subject: subject.clear(), "subject"),
            ("parbake", lambda mine: mine.update(key="0" * 64), "key"),
            ("parbake", lambda mine: mine.update(artefact="other.raw"), "record of other.raw"),
            ("parbake", lambda mine: mine.update(published={"eu-west-1": {}}), "names no published image or snapshot"),
            ("parbake", lambda mine: mine["plan"]["images"][0]["manifest"].update(digest="sha256:" + "0" * 64), "mat"),
            ("predicate", lambda said: said["buildDefinition"]["resolvedDependencies"].clear(), "materials"),
            ("predicate", lambda said: said["buildDefinition"].clear(), "predicate"),
        ],
    )
    def test_a_record_that_contradicts_itself(
        self, shelf: Shelf, name: str, change: Callable[[Any], object], says: str
    ) -> None:
        shelf.envelope.unlink()
        document = json.loads(shelf.true)
        change(document[name])
        shelf.path.write_text(json.dumps(document))
        with pytest.raises(VerificationFailed, match=says):
            genuine.need(shelf.artefact, ())

    def test_what_is_signed_is_written_back_and_what_is_not_counts_for_nothing(self, shelf: Shelf) -> None:
        shelf.edit(*EDITS[0])
        assert genuine.mend(shelf.artefact, shelf.trust, shelf.events)
        assert shelf.path.read_bytes() == shelf.true
        assert "being restored" in shelf.warnings
        other = key_pair(shelf.folder, "other")
        assert not genuine.mend(shelf.artefact, (shelf.folder / "other.pub",), shelf.events)
        records.write(shelf.output, shelf.record, other)
        assert not genuine.mend(shelf.artefact, shelf.trust, shelf.events)
        assert "signed by none of the keys" in shelf.warnings

    def test_a_signed_record_under_another_artefacts_name_is_refused(self, shelf: Shelf) -> None:
        other = shelf.output / record("b").artefact
        for path in (shelf.path, shelf.envelope):
            path.with_name(path.name.replace(shelf.artefact.name, other.name)).write_bytes(path.read_bytes())
        for trust in (shelf.trust, ()):
            with pytest.raises(VerificationFailed, match=f"it is the record of {shelf.record.artefact}"):
                genuine.need(other, trust)


@pytest.mark.parametrize("kind", ["a pipe", "a device", "a large file", "a folder"])
@pytest.mark.parametrize("place", ["x.json", "RECORD.json", "RECORD.intoto.jsonl", "RECORD.blocks", "RECORD.trace"])
def test_what_others_put_in_the_place_of_a_file_holds_nothing_up(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch, kind: str, place: str
) -> None:
    """It would wait for ever, or fill the memory: so this ends within seconds or not at all."""
    path = shelf.output / place.replace("RECORD", shelf.artefact.name)
    path.unlink(missing_ok=True)
    match kind:
        case "a pipe":
            os.mkfifo(path)
        case "a device":
            path.symlink_to("/dev/zero")
        case "a large file":
            with path.open("wb") as file:
                file.truncate(1 << 40)
        case _:
            path.mkdir()
    (shelf.folder / "parbake.yaml").write_text(
        '{"version": 1, "images": ["registry.example/a:1"], "trust": ["key.pub"]}'
    )
    monkeypatch.chdir(shelf.folder)
    assert cli.run(["list"]) == 0
    name = str(shelf.artefact)
    assert cli.run(["export", "kubelet-config", name]) in {0, 2, 3}
    assert cli.run(["hydrate", name, "out"]) in {2, 3}
    genuine.listed(shelf.artefact, shelf.record)


class TestBaking:
    def test_with_a_key_only_what_it_signed_exists_already(self, shelf: Shelf) -> None:
        def look(**more: Any) -> plan.BakeResult | None:
            return plan.existing(shelf.output, shelf.record.plan, shelf.events, trust=shelf.trust, **more)

        assert look() == plan.BakeResult(shelf.artefact, shelf.record, changed=False)
        shelf.edit(*EDITS[0])
        assert look() is None
        assert look(mend=True) == plan.BakeResult(shelf.artefact, shelf.record, changed=False)
        shelf.envelope.unlink()
        assert look(mend=True) is None
        assert "is not signed" in shelf.warnings

    def test_one_edit_makes_no_artefact_of_another_plan_exist(self, shelf: Shelf) -> None:
        other = record("b", passed=True)
        shelf.envelope.unlink()
        (shelf.output / other.artefact).write_bytes(b"planted")
        (shelf.output / other.file_name).write_bytes(shelf.true)
        assert plan.existing(shelf.output, other.plan, shelf.events) is None
        text = shelf.true.decode().replace(shelf.record.artefact, other.artefact).replace(shelf.record.key, other.key)
        (shelf.output / other.file_name).write_text(text)
        assert plan.existing(shelf.output, other.plan, shelf.events) is None
        assert "it is ignored" in shelf.warnings

    def test_a_list_of_blocks_that_is_not_the_records_is_not_verified(self, shelf: Shelf) -> None:
        records.blocks_path(shelf.artefact).write_text("another list\n")
        found = plan.existing(shelf.output, shelf.record.plan, shelf.events)
        assert found
        assert (found.record.verdict, found.artefact) == (None, shelf.artefact)
        assert "has to be verified again" in shelf.warnings

    def test_the_key_must_be_trusted_and_there(self, shelf: Shelf) -> None:
        key_pair(shelf.folder, "other")
        file = shelf.folder / "parbake.yaml"

        def signer(**more: Any) -> Any:
            file.write_text(json.dumps({"version": 1, "images": ["registry.example/a:1"], **more}))
            return genuine.open_signer(load(file))

        assert signer() is None
        assert signer(sign={"key": "key.pem"}, trust=["other.pub", "key.pub"]).public == shelf.signer.public
        with pytest.raises(InputError, match="is not among `trust`"):
            signer(sign={"key": "key.pem"}, trust=["other.pub"])
        with pytest.raises(InputError, match="cannot read the key"):
            signer(sign={"key": "nowhere.pem"}, trust=["key.pub"])
        with pytest.raises(BakefileError, match="line 1: sign: needs `trust`"):
            signer(sign={"key": "key.pem"})
        with pytest.raises(BakefileError, match="exactly one of key, kms"):
            signer(sign={"key": "key.pem", "kms": f"arn:aws:kms:eu-west-1:{'1' * 12}:key/x"}, trust=["key.pub"])
        with pytest.raises(BakefileError, match=r"line 1: trust.0.: .* holds no public key"):
            signer(trust=["parbake.yaml"])
        (shelf.folder / "Containerfile").touch()
        with pytest.raises(BakefileError, match="built here has no signature"):
            signer(images=[{"reference": "a.example/b:1", "build": ".", "signed_by": "key.pub"}])


class TestVerifying:
    @pytest.fixture(autouse=True)
    def boots(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verify, "examine", lambda *_, **__: (GOOD, "f" * 64))

    def test_it_signs_the_new_verdict(self, shelf: Shelf) -> None:
        options = verify.VerifyOptions(trust=shelf.trust, signer=shelf.signer)
        assert verify.verify_again(shelf.record.key, shelf.output, shelf.events, options)[1] == GOOD
        found = genuine.need(shelf.artefact, shelf.trust)
        assert (found.verdict, found.sha256) == (GOOD, "f" * 64)

    def test_without_the_key_a_signed_record_stays_as_it_is(self, shelf: Shelf) -> None:
        options = verify.VerifyOptions(trust=shelf.trust)
        assert verify.verify_again(shelf.record.key, shelf.output, shelf.events, options)[1] == GOOD
        assert shelf.path.read_bytes() == shelf.true
        assert "stays as it is" in shelf.warnings

    @pytest.mark.parametrize("what", ["unsigned", "another's", "edited", "no record"])
    def test_what_is_not_trusted_is_not_booted(self, shelf: Shelf, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(verify, "examine", lambda *_, **__: pytest.fail("it was booted"))
        file = shelf.folder / "parbake.yaml"
        said = {"version": 1, "images": ["registry.example/a:1"], "trust": ["key.pub"], "sign": {"key": "key.pem"}}
        file.write_text(json.dumps(said))
        name = str(shelf.artefact)
        if what == "unsigned":
            shelf.envelope.unlink()
        elif what == "another's":
            records.write(shelf.output, shelf.record, key_pair(shelf.folder, "other"))
        elif what == "edited":
            shelf.edit(*EDITS[0])
        else:
            name = str(shelf.output / "alone.raw")
            Path(name).write_bytes(b"x")
        assert cli.run(["verify", name, "-f", str(file)]) == 3

    def test_an_edit_without_signatures_is_refused_too(self, shelf: Shelf) -> None:
        shelf.envelope.unlink()
        shelf.edit('"parbakeBlocks1": "', '"parbakeBlocks1": "00')
        with pytest.raises(VerificationFailed, match="its subject is not what its own fields say"):
            verify.verify_again(shelf.record.key, shelf.output, shelf.events)


def test_an_export_takes_only_what_is_trusted(shelf: Shelf, tmp_path: Path) -> None:
    shelf.edit('"passed": true', '"passed": true ')
    for options in (export.ExportOptions(force, shelf.trust) for force in (False, True)):
        with pytest.raises(VerificationFailed, match="changed after it was signed"):
            export.to_gcp(shelf.record.key, shelf.output, tmp_path / "out", shelf.events, options)
    assert not (tmp_path / "out").exists()


def test_the_public_half_is_the_same_by_either_way(shelf: Shelf) -> None:
    assert public_key(shelf.trust[0]).fingerprint == FileSigner(shelf.folder / "key.pem").public.fingerprint
