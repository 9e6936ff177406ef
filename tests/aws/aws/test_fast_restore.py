"""Fast snapshot restore: from the bake on or for a rollout, for good or for a while; whoever cleans up ends it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from parbake import cli
from parbake.aws.costs.restore_credits import bucket, refill
from parbake.aws.ebs import fast_restore, restore_credits
from parbake.aws.tags import as_dict
from parbake.bakefile import Bakefile, FastRestoreSection, load
from parbake.core.errors import AwsError, RegistryError
from parbake.core.events import Event, Events
from parbake.core.model import GIB, TIB, Snapshot
from parbake.records import Record
from parbake.workflows import watch
from standins.aws.boto_clients import raw
from standins.aws.ec2 import Cloud
from standins.aws.ec2_support import OTHER, Bake, bake, cloud, failing, plan
from standins.aws.iam_recorder import allowed_by, printed
from standins.aws.interceptor import killed_everywhere, throttled_everywhere
from standins.clusters import machine_image, parbake, project, refused, volume
from tests.aws.conftest import REGION

pytestmark = pytest.mark.usefixtures("made_up_records")

__all__ = ["bake", "cloud", "plan"]

ZONE = f"{REGION}a"
QUICK = ("--interval", "0.05")


def section(**keys: Any) -> FastRestoreSection:
    return FastRestoreSection.model_validate({"zones": [ZONE], **keys})


def made_snapshot(name: str = "parbake") -> Snapshot:
    ec2 = raw("ec2")
    made = ec2.create_volume(AvailabilityZone=ZONE, Size=8)["VolumeId"]
    ec2.describe_volumes(VolumeIds=[made])  # by then it has been created
    snapshot = ec2.create_snapshot(VolumeId=made)["SnapshotId"]
    tags = {"parbake:managed": "artefact", "parbake:name": name}
    ec2.create_tags(Resources=[snapshot], Tags=[{"Key": key, "Value": value} for key, value in tags.items()])
    return Snapshot(id=snapshot, size=8 * GIB)


def until(snapshot: Snapshot) -> str:
    found = raw("ec2").describe_snapshots(SnapshotIds=[snapshot.id])["Snapshots"][0]
    return as_dict(found).get(fast_restore.UNTIL_TAG, "")


def let_time_pass(snapshot: Snapshot) -> None:
    over = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    raw("ec2").create_tags(Resources=[snapshot.id], Tags=[{"Key": fast_restore.UNTIL_TAG, "Value": over}])


def silent() -> Events:
    return Events(lambda _event: None)


# -- from the bake on


def test_a_bake_begins_it_once(cloud: Cloud, bake: Bake) -> None:
    settings = {"fast_snapshot_restore": {"zones": [ZONE], "for": "6h"}}
    snapshot = bake(**settings).published[REGION].snapshots[0]
    assert cloud.fast.on(snapshot.id) == {ZONE}
    end = datetime.strptime(until(snapshot), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert timedelta(hours=5.9) < end - datetime.now(UTC) <= timedelta(hours=6)
    before = until(snapshot)
    bake(**settings)
    assert until(snapshot) == before, "the time that was set counts"
    let_time_pass(snapshot)
    assert fast_restore.end(REGION, "shop") == (snapshot.id,)
    bake(**settings)
    assert cloud.fast.on(snapshot.id) == set(), "what was turned off stays off"


@pytest.mark.parametrize("call", ["CreateTags", "EnableFastSnapshotRestores"])
def test_a_kill_between_the_time_and_the_beginning(cloud: Cloud, bake: Bake, call: str) -> None:
    """Nothing runs without an end, and the same command goes on."""
    settings = {"fast_snapshot_restore": {"zones": [ZONE], "for": "6h"}}

    def die(_service: str, operation: str, arguments: dict[str, Any]) -> None:
        keys = {tag["Key"] for tag in arguments.get("Tags", [])}
        if operation == call and (call != "CreateTags" or fast_restore.UNTIL_TAG in keys):
            raise KeyboardInterrupt

    cloud.after.append(die)
    with pytest.raises(KeyboardInterrupt):
        bake(**settings)
    cloud.after.clear()
    for name, _ in cloud.fast.states:
        assert until(Snapshot(id=name))
    [snapshot] = bake(**settings).published[REGION].snapshots
    assert (cloud.fast.on(snapshot.id), bool(until(snapshot))) == ({ZONE}, True)


def test_without_an_end_it_stays(cloud: Cloud, bake: Bake) -> None:
    snapshot = bake(fast_snapshot_restore=[ZONE]).published[REGION].snapshots[0]
    assert (until(snapshot), fast_restore.end(REGION, "shop")) == ("", ())
    assert cloud.fast.on(snapshot.id) == {ZONE}


def test_for_a_rollout_a_bake_begins_nothing(cloud: Cloud, bake: Bake) -> None:
    snapshot = bake(fast_snapshot_restore={"zones": [ZONE], "at": "rollout"}).published[REGION].snapshots[0]
    assert cloud.fast.on(snapshot.id) == set()


# -- with a rollout


class Shop:
    """A Bakefile with a rollout to a parameter, and records of a machine image and a volume."""

    def __init__(self, folder: Path, cloud: Cloud, capsys: pytest.CaptureFixture[str]) -> None:
        self.cloud, self.capsys, self.folder = cloud, capsys, folder
        cloud.base(REGION, "node")
        self.disk, self.data = made_snapshot(), made_snapshot()
        found = raw("ec2").describe_images(Owners=["self"])["Images"][0]["ImageId"]
        self.image = self.with_snapshot(machine_image("first", found, region=REGION), self.disk)
        self.volume = self.with_snapshot(volume("data", self.data.id, region=REGION), self.data)
        self.file = project(folder, [{"ssm": "/nodes/gpu"}], self.image, self.volume)
        text = json.loads(self.file.read_text())
        text["name"], text["aws"] = "parbake", {"region": REGION}
        self.text = text

    @staticmethod
    def with_snapshot(record: Record, snapshot: Snapshot) -> Record:
        there = record.published[REGION].model_copy(update={"snapshots": (snapshot,)})
        return record.model_copy(update={"published": {REGION: there}})

    def say(self, **keys: Any) -> Bakefile:
        self.text["aws"]["fast_snapshot_restore"] = {"zones": [ZONE, f"{REGION}b"], "at": "rollout", **keys}
        self.file.write_text(json.dumps(self.text))
        return load(self.file)

    def rollout(self, *more: str) -> tuple[int, Any]:
        with allowed_by(printed(load(self.file))["rollout"]):
            return parbake(self.capsys, "rollout", self.image.key, *QUICK, *more)

    def say_rollout(self) -> int:
        """Roll out for people, who see notes and warnings."""
        return cli.run(["rollout", self.image.key, *QUICK])

    @property
    def held(self) -> list[str]:
        found = raw("ssm").describe_parameters()["Parameters"]
        return [str(raw("ssm").get_parameter(Name=each["Name"])["Parameter"]["Value"]) for each in found]


@pytest.fixture
def shop(tmp_path: Path, cloud: Cloud, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PARBAKE_CACHE", str(tmp_path / "cache"))  # others clean theirs as well
    return Shop(tmp_path, cloud, capsys)


def test_a_rollout_waits_until_it_counts_and_only_then_writes(shop: Shop) -> None:
    shop.say(**{"for": "6h"})
    seen: list[set[str]] = []

    def look(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == "PutParameter":
            seen.append(set(shop.cloud.fast.states.values()))

    shop.cloud.before.append(look)
    assert shop.rollout("--dry-run")[0] == 0
    assert (shop.cloud.fast.states, until(shop.disk)) == ({}, ""), "a dry run enables nothing"
    assert shop.rollout()[0] == 0
    assert (seen, shop.cloud.fast.on(shop.disk.id)) == ([{"enabled"}], {ZONE, f"{REGION}b"})
    assert until(shop.disk)
    calls = len(shop.cloud.calls)
    assert shop.rollout()[0] == 0
    changes = {operation for _, operation, _ in shop.cloud.calls[calls:]}
    assert "EnableFastSnapshotRestores" not in changes, "nothing is handed out, so nothing is warmed"


def test_each_target_waits_for_credits(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.say(credits=3)
    seen: list[list[float]] = []

    def look(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == "PutParameter":
            seen.append(sorted(shop.cloud.fast.credits.values()))

    shop.cloud.before.append(look)
    with allowed_by(printed(load(shop.file))["rollout"]):
        assert shop.say_rollout() == 0
    assert seen == [[3.75, 3.75]], "they begin at zero, and come with each look"
    assert f"0.0 of 10 in {ZONE}, 0.0 of 10 in {REGION}b; 10.0 more an hour" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said"),
    [("AccessDenied", "cloudwatch:GetMetricData"), ("", "the rollout goes on")],
    ids=["forbidden", "never shown"],
)
def test_a_balance_that_is_not_shown_stops_no_rollout(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str, said: str
) -> None:
    monkeypatch.setattr(restore_credits, "_LATE", -1079.95)  # of 1080 s that three credits take
    shop.cloud.fast.gain = 0.0
    shop.say(credits=3)
    if code:
        failing(shop.cloud, "GetMetricData", code)
    assert shop.say_rollout() == 0
    assert said in capsys.readouterr().err
    assert shop.held == [shop.image.published[REGION].image]


@pytest.mark.parametrize(("gib", "most", "hourly"), [(1, 10, 10), (100, 10, 10), (512, 2, 2), (4096, 1, 0.25)])
def test_credits_follow_the_snapshots_size(gib: int, most: int, hourly: float) -> None:
    assert (bucket(gib * GIB), refill(gib * GIB)) == (most, hourly)


def test_a_rollout_that_was_cut_off_while_it_waits_goes_on(shop: Shop) -> None:
    shop.say(**{"for": "6h"})

    def die(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation == "DescribeFastSnapshotRestores":
            raise KeyboardInterrupt

    shop.cloud.before.append(die)
    assert shop.rollout()[0] == 130
    assert (shop.held, bool(until(shop.disk))) == ([], True), "it has an end, whoever comes next"
    shop.cloud.before.clear()
    assert shop.rollout()[0] == 0
    assert shop.held == [shop.image.published[REGION].image]


@pytest.mark.slow
def test_killed_after_any_call_before_a_rollout(shop: Shop) -> None:
    """The same command goes on; nothing that was enabled is without an end, and nothing is written too early."""
    shop.say(**{"for": "6h"}, credits=2)

    def finishes() -> None:
        for name, _ in shop.cloud.fast.states:
            assert until(Snapshot(id=name)), "it would cost for ever"
        assert shop.say_rollout() == 0
        assert shop.held == [shop.image.published[REGION].image]
        assert all(balance >= 2 for balance in shop.cloud.fast.credits.values())

    calls = killed_everywhere(shop.cloud, shop.say_rollout, finishes)
    assert calls[:3] == ["CreateTags", "EnableFastSnapshotRestores", "PutParameter"]


@pytest.mark.slow
def test_throttled_before_a_rollout(shop: Shop) -> None:
    """What is throttled ends the run with a next step, or is waited for; the next one goes on."""
    shop.say(credits=2)

    def judge(came: Exception | None, throttled: Counter[str]) -> None:
        assert came is None, f"the command tells it: {throttled}"

    met = throttled_everywhere(shop.cloud, shop.say_rollout, judge)
    assert {"EnableFastSnapshotRestores", "DescribeFastSnapshotRestores", "GetMetricData"} <= met
    assert shop.held == [shop.image.published[REGION].image]


def test_a_zone_that_aws_refuses_is_told_and_not_waited_for(shop: Shop) -> None:
    bakefile = shop.say()
    shop.cloud.fast.full = {f"{REGION}b"}
    warnings: list[str] = []

    def note(event: Event) -> None:
        if event.kind == "warning":
            warnings.append(event.text)

    wanted = bakefile.aws.fast_snapshot_restore
    pairs = fast_restore.enable(wanted, REGION, [shop.disk], Events(note), again=True)
    assert pairs == {(shop.disk.id, ZONE)}
    assert warnings == [f"fast snapshot restore of {shop.disk.id}: the quota of {REGION}b is reached"]
    fast_restore.wait(pairs, REGION, [shop.disk], silent())
    assert (fast_restore.enable(wanted, OTHER, [shop.disk], silent()), shop.rollout()[0]) == (frozenset(), 0)


def test_waiting_ends_when_somebody_turns_it_off(shop: Shop) -> None:
    pairs = fast_restore.enable(section(), REGION, [shop.disk], silent())
    shop.cloud.fast.disable([shop.disk.id], [ZONE])
    with pytest.raises(AwsError, match="disabled in the meantime"):
        fast_restore.wait(pairs, REGION, [shop.disk], silent())


# -- the end


def by_clean(shop: Shop) -> Any:
    ebs = load(shop.file).model_copy(update={"builder": "ebs"})  # a clean-up comes with whoever bakes
    with allowed_by(printed(ebs)["caller"]):
        return parbake(shop.capsys, "clean", "--aws")[1]["removed"] == [f"{REGION}:fast-restore:{shop.disk.id}"]


def by_prune(shop: Shop) -> Any:
    raw("ssm").put_parameter(Name="/nodes/gpu", Value="ami-0", Type="String")
    policies = printed(load(shop.file))
    with allowed_by(policies["prune"]):
        return parbake(shop.capsys, "prune", "--aws")[1]["aws"]["fast_ended"] == [shop.disk.id]


def by_watch(shop: Shop) -> Any:
    def down(*_: object) -> watch.Seen:
        raise RegistryError("the registry is down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watch, "look", down)
        refused(parbake(shop.capsys, "watch", "--once"), 1, "the registry is down")
    return True


@pytest.mark.parametrize("end", [by_clean, by_prune, by_watch], ids=lambda end: end.__name__)
def test_what_is_past_its_time_is_turned_off(shop: Shop, end: Callable[[Shop], Any]) -> None:
    shop.say(**{"for": "6h"})
    theirs, later = made_snapshot("another"), made_snapshot()
    for each in (shop.disk, theirs, later):
        shop.cloud.fast.enable([each.id], [ZONE, f"{REGION}b"])
    for each in (shop.disk, theirs):
        let_time_pass(each)
    fast_restore.enable(section(**{"for": "6h"}), REGION, [later], silent())
    assert end(shop)
    on = [shop.cloud.fast.on(each.id) for each in (shop.disk, theirs, later)]
    assert on == [set(), {ZONE, f"{REGION}b"}, {ZONE, f"{REGION}b"}]
    assert fast_restore.end(REGION, "parbake") == (), "it is off already"


def test_what_aws_does_not_turn_off_is_an_error(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.cloud.fast.enable([shop.disk.id], [ZONE])
    let_time_pass(shop.disk)
    refused = {"Successful": [], "Unsuccessful": [{"SnapshotId": shop.disk.id}]}
    monkeypatch.setattr(shop.cloud.fast, "disable", lambda *_: refused)
    with pytest.raises(AwsError, match="stays on"):
        fast_restore.end(REGION, "parbake")


def test_how_long_it_takes() -> None:
    assert fast_restore.minutes([Snapshot(id="snap-1", size=TIB // 2), Snapshot(id="snap-2", size=GIB)]) == 30
    assert fast_restore.minutes([Snapshot(id="snap-2", size=GIB)]) == 1


def test_the_keys(tmp_path: Path) -> None:
    file = tmp_path / "parbake.yaml"

    def told(keys: str) -> str:
        file.write_text(f"version: 1\nimages: [a/b:1]\naws: {{region: {REGION}, fast_snapshot_restore: {keys}}}\n")
        try:
            return repr(load(file).aws.fast_snapshot_restore)
        except Exception as error:  # noqa: BLE001 (whatever it says)
            return str(error)

    assert told(f"[{ZONE}]") == repr(section())
    assert told(f"{{zones: [{ZONE}], at: rollout, for: 90m}}") == repr(section(at="rollout", **{"for": "90m"}))
    assert "at least an hour of it" in told(f"{{zones: [{ZONE}], for: 59m}}")
    assert "already in the list" in told(f"[{ZONE}, {ZONE}]")
    assert "in none of the regions" in told("[us-east-1a]")
    assert "names no zone" in told("[]")
