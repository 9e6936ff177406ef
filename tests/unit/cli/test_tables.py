"""What people and programs are told, one golden file a case; made of nouns, without a bake."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake import cli
from parbake.cli.text import artefacts, pruning, rollouts, tables
from parbake.core.model import GIB, MIB, Artefact, Base, ImageVerdict, Published, Snapshot, Verdict
from parbake.core.plan import cautions
from parbake.images.cache import CachedLayer
from parbake.records import Blocks
from parbake.rollouts.protocol import History, RolloutProgress, TargetState, TargetStatus
from parbake.workflows.doctor import Check
from parbake.workflows.plan import BakeResult, Preview
from parbake.workflows.prune.decide import RetentionRules, decide, items_here
from parbake.workflows.rollout import TargetReport
from standins.plans import digest, image, layer, outcome, plan, record

FOLDER = Path(__file__).with_name("cases")
PAUSE = image("localhost/parbake/pause:1", layout="/cache/pause", layers=(layer("pause", size=900, raw_size=4000),))
BIG = image("registry.example/big:2", layers=(layer("one"), layer("two", below="one", raw_size=0)))
DEBIAN = Base(kind="debian", identity=digest("recipe"), size=2 * GIB)
DISK = plan(base=DEBIAN, artefact=Artefact(kind="machine-image"), images=(image(), BIG), sandbox=PAUSE, size=4 * GIB)
FILE = plan(
    base=Base(kind="file", identity=digest("file"), path="/images/node.qcow2", size=8 * GIB),
    artefact=Artefact(kind="machine-image", format="vmdk"),
    size=20 * GIB,
    size_is_fixed=True,
)
GOOD = ImageVerdict(
    reference="registry.example/a:1", digest=digest("a"), pinned=True, unpacked=True, start_seconds=1.26,
    shown="answered", ran_seconds=12.4,
)  # fmt: skip
RAN = GOOD.model_copy(update={"reference": "registry.example/c:1", "shown": "running"})
PAUSED = ImageVerdict(reference=str(PAUSE.reference), digest=PAUSE.target.digest, pinned=True, unpacked=True)
BAD = ImageVerdict(reference="registry.example/b:1", problems=("it ended with code 7", "it is not pinned"))
WARNED = Verdict(passed=True, accelerator="kvm", boot_seconds=5.0, images=(GOOD,), warnings=("it has no pause image",))
PASSED = Verdict(passed=True, accelerator="kvm", boot_seconds=6.04, images=(GOOD, RAN, PAUSED))
FAILED = Verdict(
    passed=False, accelerator="tcg", boot_seconds=61.0, images=(GOOD, BAD), problems=("something else is wrong",)
)
RESUMED = Verdict(passed=True, accelerator="tcg", boot_seconds=84.6, resumed_seconds=5.1, images=(GOOD,))
UNSEEN = Verdict(passed=False, accelerator="none", problems=("for linux/arm64: nothing was booted",))
RECORD = record("a", passed=None).model_copy(update={"timings": {"fill": 1.04, "digest": 0.46}})
VERIFIED = RECORD.model_copy(update={"verdict": PASSED})
IN_EC2 = RECORD.model_copy(
    update={
        "sha256": "",
        "blocks": Blocks(digest=digest("list").removeprefix("sha256:"), count=17),
        "published": {"eu-west-1": Published(image="ami-1", snapshots=(Snapshot(id="snap-1"),))},
    }
)
PLACE = Path("/srv/artefacts") / RECORD.artefact
MANY = [record("a", passed=True, at=1), record("b", passed=False, at=2), record("c", at=3)]
DECIDED = decide(items_here(MANY), RetentionRules(keep=1), datetime.now(UTC))
LAYERS = [CachedLayer(digest(name), 700 * MIB, 1_790_000_000.5 + at, Path(name)) for at, name in enumerate("abc")]
CHECKS = (
    Check(name="root", purpose="mounts", needed_by=("bake", "verify"), status="ok"),
    Check(name="runc", purpose="x", needed_by=("verify",), status="missing", hint="apt-get install runc"),
    Check(name="KVM", purpose="x", needed_by=("verify",), status="warn", found="tcg", hint="use a machine with it"),
    Check(name="mcopy", purpose="x", needed_by=("verify",), status="ok", found="4.0.48", hint="not shown"),
)

TEXTS: dict[str, Callable[[], str]] = {
    "plan": lambda: artefacts.preview_text(Preview(DISK)),
    "plan-file-base-exists": lambda: artefacts.preview_text(Preview(FILE, existing=RECORD)),
    "plan-volume-verified": lambda: artefacts.preview_text(
        Preview(plan(), existing=VERIFIED, cautions=cautions(plan()))
    ),
    "plan-to-build": lambda: artefacts.preview_text(Preview(None, to_build=("localhost/app:1", "localhost/web:1"))),
    "bake": lambda: artefacts.finished_text(BakeResult(PLACE, VERIFIED, changed=True)),
    "bake-nothing-to-do": lambda: artefacts.finished_text(BakeResult(PLACE, VERIFIED, changed=False)),
    "show-not-verified": lambda: artefacts.record_text(PLACE, RECORD),
    "show-not-verified-in-ec2": lambda: artefacts.record_text(PLACE, IN_EC2),
    "list": lambda: artefacts.records_text([(Path(made.file_name), made) for made in MANY]),
    "list-empty": lambda: artefacts.records_text([]),
    "verify-passed": lambda: artefacts.verdict_text(PLACE, PASSED),
    "verify-warned": lambda: artefacts.verdict_text(PLACE, WARNED),
    "verify-resumed": lambda: artefacts.verdict_text(PLACE, RESUMED),
    "verify-failed": lambda: artefacts.verdict_text(PLACE, FAILED),
    "verify-not-booted": lambda: artefacts.verdict_text(PLACE, UNSEEN),
    "prune": lambda: pruning.decisions_text(DECIDED, dry_run=False),
    "prune-dry-run": lambda: pruning.decisions_text(DECIDED, dry_run=True),
    "prune-cache": lambda: artefacts.layers_text(LAYERS[:2], LAYERS[2:], dry_run=False),
    "prune-cache-dry-run": lambda: artefacts.layers_text(LAYERS[:2], LAYERS[2:], dry_run=True),
    "prune-cache-empty": lambda: artefacts.layers_text((), (), dry_run=False),
    "prune-empty": lambda: pruning.decisions_text((), dry_run=False),
    "doctor": lambda: artefacts.checks_text(CHECKS),
    "demo": lambda: artefacts.outcome_text(outcome()),
}


def steady(text: str) -> str:
    """Replace content keys, which every new field of a plan changes."""
    shown = outcome()
    plans = (DISK, FILE, plan(), shown.record.plan, *(each.plan for each in MANY), shown.volume.plan)
    for number, made in enumerate(plans):
        text = text.replace(made.key, f"{number}" * 64).replace(made.key[:12], f"{number}" * 12)
    return text


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name: str) -> None:
    assert steady(TEXTS[name]()) + "\n" == (FOLDER / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", TEXTS)
def test_texts_fit_a_terminal(name: str) -> None:
    """A warning is a sentence by itself, which terminals wrap and programs find on one line."""
    lines = (line for line in TEXTS[name]().splitlines() if not line.startswith("warning: "))
    assert [line for line in lines if len(line) > tables.WIDTH] == []


def test_a_table_is_wider_only_where_its_words_are() -> None:
    reference = f"registry.example/{'shop/' * 12}api:1.4@{digest('a')}"
    found = (reference, "1.6 s", "it ended with code 7 and said nothing")
    shown = tables.table([found], header=("image", "start", "verdict"))
    assert reference in shown, "it can be copied"
    assert "   1.6 s   " in shown, "no short cell gets narrower for that"
    assert "it ended with" in shown
    rows = [("a", "word " * 60), ("b", ("one", "two"))]
    lines = tables.table(rows).splitlines()
    assert max(map(len, lines)) <= tables.WIDTH
    assert lines[-2:] == ["b  one", "   two"]
    noted = tables.table([("a", 1, "a note"), ("b", 2, "")], header=("name", "count"), notes=True)
    assert noted.splitlines()[2:] == [" a      1", "     a note", " b      2"]
    assert tables.table([("日本", "x"), ("a", "y")]).splitlines() == ["日本  x", "a     y"]
    assert tables.table([]) == ""


CELLS = st.lists(st.text("abcdefghijkl", min_size=1, max_size=14), max_size=9).map(" ".join)
ROWS = st.integers(2, 5).flatmap(lambda many: st.lists(st.tuples(*[CELLS] * many), min_size=1, max_size=4))


@given(ROWS, st.booleans())
def test_a_table_of_sentences_fits_a_terminal(rows: list[tuple[str, ...]], titled: bool) -> None:
    """Whichever column is long: only where the longest words, or short cells, do not fit it is wider, by them alone."""
    header = ("title",) * len(rows[0]) if titled else ()
    whole = [*rows, header] if titled else rows
    shown = tables.table(rows, header=header)
    least = 3 * len(rows[0])
    for column in zip(*whole, strict=True):
        least += max(*map(len, " ".join(column).split()), min(max(map(len, column)), 16), 0, 0)
    assert max(map(len, shown.splitlines()), default=0) <= max(tables.WIDTH, least)
    assert sorted(shown.replace("─", "").split()) == sorted(" ".join(map(" ".join, whole)).split())


def test_the_status_of_targets_fits_a_terminal() -> None:
    held = {"label": "alias al2023@v20261120"}
    holds = TargetState(artefacts=("shop-ca0ef6ab08c7.snapshot",), snapshot="snap-0123456789abcdef0", **held)
    status = TargetStatus("EC2NodeClass gpu", holds, History(TargetState(**held)), RolloutProgress(2, 2, done=True))
    text = rollouts.reports_text([TargetReport("karpenter", "karpenter", status)])
    assert max(map(len, text.splitlines())) <= tables.WIDTH


def test_doctor_fits_a_terminal_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["doctor"]) in {0, 1}
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > tables.WIDTH] == []


def test_show_names_images_by_whole_digests_where_asked() -> None:
    first = RECORD.plan.all_images[0]
    whole = f"{first.reference}@{first.target.digest}"
    assert whole in artefacts.record_text(PLACE, RECORD, wide=True)
    assert whole not in artefacts.record_text(PLACE, RECORD)


def test_every_golden_file_belongs_to_a_case() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(TEXTS)


def test_documents_are_json_and_hold_what_the_texts_say() -> None:
    planned = artefacts.preview_json(Preview(DISK, existing=VERIFIED, cautions=("look out",)))
    assert json.loads(json.dumps(planned)) == planned
    assert planned["key"] == DISK.key
    assert planned["artefact_name"] == DISK.artefact_name
    assert (planned["exists"], planned["verified"], planned["cautions"]) == (True, True, ["look out"])
    assert planned["sizes"] == {"transfer": 31462380, "raw": 94375840, "estimated": True, "baked": 108536415}

    unknown = artefacts.preview_json(Preview(None, to_build=("localhost/app:1",)))
    assert (unknown["key"], unknown["to_build"], unknown["exists"]) == (None, ["localhost/app:1"], False)

    finished = artefacts.finished_json(BakeResult(PLACE, VERIFIED, changed=True))
    assert json.loads(json.dumps(finished)) == finished
    assert finished["changed"] is True
    assert finished["verified"] is True
    assert finished["artefact_path"] == str(PLACE)
    assert finished["record_path"] == f"{PLACE}.json"

    verdict = artefacts.verdict_json(PLACE, FAILED)
    assert (verdict["artefact_path"], verdict["passed"]) == (str(PLACE), False)
    assert json.loads(json.dumps(verdict)) == verdict

    decided = pruning.decisions_json(DECIDED)
    assert decided["freed"] == MANY[1].allocated
    assert json.loads(json.dumps(decided)) == decided

    freed = artefacts.layers_json(LAYERS[:2], LAYERS[2:])
    assert (freed["freed"], freed["left"]) == (1400 * MIB, 700 * MIB)
    assert json.loads(json.dumps(freed)) == freed

    assert [check["status"] for check in artefacts.checks_json(CHECKS)] == ["ok", "missing", "warn", "ok"]
    shown = artefacts.outcome_json(outcome())
    assert (shown["first_result_seconds"], shown["seconds"]) == (40.0, 150.0)
    for which, figures in (("volume", (2.5, 1.0, 3.0, 4.0)), ("machine_image", (5.0, 2.0, 6.5, 9.0))):
        part = shown[which]
        assert isinstance(part, dict)
        names = ("bake_seconds", "start_baked_seconds", "pull_seconds", "start_pulled_seconds")
        assert tuple(part[name] for name in names) == figures
