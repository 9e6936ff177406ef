"""Bottlerocket's own data volume, filled and proven by way of Systems Manager: everything but Bottlerocket itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
import pytest

from parbake import aws
from parbake.aws.leftovers import LeftoverFilter, remove
from parbake.bakefile import AwsSection
from parbake.builders import Ingredients, Publication
from parbake.builders.ec2 import Ec2Builder, bottlerocket, launch
from parbake.core.errors import ArtefactFull, AwsError, BakeFailed, DeadlineExceeded, InputError
from parbake.core.events import Events
from parbake.core.model import Artefact, ExitProbe, HttpProbe, MountedProbe, Plan, RegistryOptions, Startup, StartupFile
from standins.aws.bottlerocket import Rockets
from standins.aws.ec2_support import OTHER, named, plan_for
from standins.aws.eventual import Eventual
from standins.aws.iam_recorder import allowed_by, caller
from standins.aws.interceptor import killed_everywhere, throttled_everywhere
from standins.forks import in_child
from standins.plans import bake_remotely, image
from standins.policies import AMAZONS
from tests.aws.aws.test_throttled import said
from tests.aws.conftest import REGION

pytestmark = pytest.mark.slow

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
APP = image(f"{ECR}/shop/api:1", startup=Startup(up=ExitProbe()))
WEB = image("registry.example/web:2", startup=Startup(up=HttpProbe(port=80)))


@pytest.fixture
def cloud(aws_mock: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Rockets:
    del aws_mock
    monkeypatch.setattr(launch, "_POLL", 0.001)
    made = Rockets(folder=tmp_path)
    made.install(monkeypatch)
    boto3.client("iam").create_instance_profile(InstanceProfileName="baker")
    return made


@pytest.fixture
def volume(cloud: Rockets) -> Plan:
    return plan_for(cloud.rocket(REGION), artefact=Artefact(kind="volume", format="snapshot"), images=[APP, WEB])


def policy(settings: dict[str, Any]) -> Any:
    base: Any = {"eks": "bottlerocket", "kubernetes": "1.33"}
    wanted = {"region": REGION, **settings}
    return caller("ec2", wanted, base=base, image=str(APP.reference), artefact={"kind": "volume"})


def baked(plan: Plan, *, verify: bool = True, **settings: Any) -> Publication:
    """Bake; the policy that `parbake iam` prints for it must allow every call."""
    chosen = {"instance_profile": "baker", **settings}
    builder = Ec2Builder(AwsSection(region=REGION, **chosen), {}, limit=600.0, verify=verify, fresh=False)
    ingredients = Ingredients(None, lambda _image: None, Path(), Events())  # type: ignore[arg-type, return-value]
    AMAZONS.add(plan.base.identity)
    with allowed_by(policy(chosen)):
        return bake_remotely(builder, plan, ingredients)


def test_the_nodes_own_volume_becomes_a_snapshot_that_starts(cloud: Rockets, volume: Plan) -> None:
    made = baked(volume, encrypted=True)
    there = made.published[REGION]
    assert made.verdict
    assert made.verdict.passed, made.verdict
    assert [each.pinned for each in made.verdict.images] == [True, True]
    assert any("asks for http" in warning for warning in made.verdict.warnings)
    assert there.family == "Bottlerocket"
    assert cloud.left(REGION) == {"snapshots": [there.snapshots[0].id]}
    builder, verifier = named(cloud, "RunInstances")
    for each in (builder, verifier):
        assert each["UserData"] == bottlerocket.USER_DATA
        assert each["IamInstanceProfile"] == {"Name": "baker"}
        assert [disk["DeviceName"] for disk in each["BlockDeviceMappings"]] == ["/dev/xvda", "/dev/xvdb"]
    assert builder["BlockDeviceMappings"][1]["Ebs"]["VolumeSize"] == 20, "no smaller than the AMI's own"
    assert builder["BlockDeviceMappings"][1]["Ebs"]["Encrypted"] is True
    assert verifier["BlockDeviceMappings"][1]["Ebs"]["SnapshotId"] == there.snapshots[0].id
    assert named(cloud, "GetConsoleOutput") == []

    images, _, pinned = str(cloud.contents[there.snapshots[0].id]).partition("---\n")
    assert sorted(line.split() for line in images.splitlines()) == sorted(
        [name, each.target.digest] for each in volume.images for name in each.names
    ), "exactly the names of the plan, and not ECR's second one"
    assert set(pinned.split()) == {name for each in volume.images for name in each.names}
    first, second = cloud.nodes.values()
    assert "systemctl stop kubelet" in first.calls
    assert any(call.startswith("rm -rf /local/host-containers/admin/etc") for call in first.calls)
    assert not [call for call in second.calls if call.startswith("host-ctr")], "the proof pulls nothing"
    assert "password" not in "".join(cloud.scripts).lower()


def test_an_image_is_started_as_its_startup_says(cloud: Rockets, volume: Plan) -> None:
    command, env = ("/bin/sh", "-c", "echo *; exit 0"), {"PATTERN": "/etc/*", "WORDS": "a  'b'"}
    more = {"user": "7:8", "workdir": "/srv", "read_only": True, "writable": ("/tmp",)}
    made = baked(
        volume.model_copy(
            update={
                "images": (
                    image(
                        "registry.example/a:1",
                        startup=Startup(command=command, args=("x y",), env=env, up=ExitProbe(), **more),
                    ),
                    image("registry.example/b:1", startup=Startup(args=("serve",))),
                    image("registry.example/c:1", startup=Startup(command=("/serve", ""))),
                    image("registry.example/d:1", startup=Startup(env={"TEXT": "two\nlines"})),
                    image("registry.example/e:1", startup=Startup(up=MountedProbe(path="/weights"))),
                    image("registry.example/f:1", startup=Startup(files={"/a": StartupFile(content="x")})),
                )
            }
        )
    )
    assert made.verdict
    assert made.verdict.passed, made.verdict
    _, verifier = cloud.nodes.values()
    words = ["--env", "PATTERN=/etc/*", "--env", "WORDS=a  'b'", "--user", "7:8", "--cwd", "/srv", "--read-only"]
    words += ["--mount", "type=tmpfs,src=tmpfs,dst=/tmp,options=mode=1777", "registry.example/a:1"]
    [*before, task, shell, flag, text, argument] = (verifier.fake / "started").read_text().splitlines()
    assert before == [f"<{word}>" for word in words]
    assert "parbake-" in task
    assert (verifier.fake / "mounted").read_text().startswith("/run/parbake-")
    assert [shell, flag, text, argument] == [f"<{word}>" for word in (*command, "x y")]
    assert [warning.partition(":1: ")[2].partition(",")[0] for warning in made.verdict.warnings] == [
        "its startup has arguments for the image's own entrypoint",
        "its startup has an empty argument",
        "its startup has an empty argument",
        "its startup has files",
    ]


def test_what_exists_is_taken_and_goes_where_it_shall(cloud: Rockets, volume: Plan) -> None:
    made = baked(volume, copy_to=(OTHER,), share_with=("210987654321",))
    assert list(made.published) == [REGION, OTHER]
    assert made.published[OTHER].family == "Bottlerocket"
    cloud.calls.clear()
    assert baked(volume, copy_to=(OTHER,), share_with=("210987654321",)).published == made.published
    assert named(cloud, "RunInstances", "SendCommand", "CreateSnapshot") == []


def test_a_spot_instance_that_is_taken_away_is_replaced(cloud: Rockets, volume: Plan) -> None:
    cloud.spot_interruptions = 1
    made = baked(volume, verify=False, purchase="spot-first")
    assert cloud.left(REGION) == {"snapshots": [made.published[REGION].snapshots[0].id]}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("code", "3", "code 3"),
        ("no-start", "", "exec format error"),
        ("packed", "", "not unpacked"),
        ("stays", "", "in time"),
    ],
)
def test_a_volume_that_does_not_start_is_kept_and_marked(
    cloud: Rockets, volume: Plan, file: str, text: str, said: str
) -> None:
    def prepare(node: Any) -> None:
        if len(cloud.nodes) > 1:
            (node.fake / file).write_text(text)

    cloud.prepare = prepare
    made = baked(volume.model_copy(update={"images": (APP,)}))
    assert made.verdict
    assert not made.verdict.passed
    assert said in "".join(made.verdict.images[0].problems)
    assert cloud.left(REGION) == {"snapshots": [made.published[REGION].snapshots[0].id]}


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("refuse", "failed to resolve: 403 Forbidden", "the registry refuses this login"),
        ("refuse", "write /x: no space left on device", "raise size"),
        ("no-admin", "", "the admin container does not answer"),
    ],
)
def test_a_bake_that_fails_says_why(cloud: Rockets, volume: Plan, file: str, text: str, said: str) -> None:
    cloud.prepare = lambda node: (node.fake / file).write_text(text)
    with pytest.raises((BakeFailed, ArtefactFull), match=said):
        baked(volume)
    assert cloud.left(REGION) == {}


def test_an_agent_that_never_answers(cloud: Rockets, volume: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    cloud.agent_after = 1 << 30
    monkeypatch.setattr(bottlerocket, "_AGENT_LIMIT", 0.05)
    with pytest.raises(DeadlineExceeded, match="no agent") as caught:
        baked(volume)
    assert "subnet a way to ssm" in caught.value.hint
    assert "parbake iam" in caught.value.hint
    assert cloud.left(REGION) == {}


@pytest.mark.parametrize(
    ("more", "profile", "registries", "said"),
    [
        ({"artefact": Artefact(kind="machine-image", format="ami")}, "baker", {}, "does not boot a modified AMI"),
        ({}, None, {}, "no role for it"),
        ({}, "baker", {"r.example": RegistryOptions(ca="/etc/ca.pem")}, "publicly trusted authority"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_made(
    cloud: Rockets, volume: Plan, more: dict[str, Any], profile: str | None, registries: Any, said: str
) -> None:
    settings = AwsSection(region=REGION, instance_profile=profile)
    plan = volume.model_copy(update={"images": (WEB,), **more})
    ingredients = Ingredients(None, lambda _image: None, Path(), Events())  # type: ignore[arg-type, return-value]
    with pytest.raises(InputError, match=said):
        bake_remotely(Ec2Builder(settings, registries, limit=600.0), plan, ingredients)
    assert cloud.left(REGION) == {}
    assert named(cloud, "RunInstances") == []


def test_killed_at_any_call(cloud: Rockets, volume: Plan) -> None:
    volume, cloud.known = volume.model_copy(update={"images": (APP,)}), {}

    def whole() -> Publication:
        return baked(volume, purchase="spot-first")

    def finishes() -> None:
        assert in_child(lambda: nothing_stays(cloud, volume)) == 0
        made = whole()
        assert made.verdict
        assert made.verdict.passed
        assert cloud.left(REGION) == {"snapshots": [made.published[REGION].snapshots[0].id]}

    there = whole().published[REGION].snapshots[0].id  # from here on it is known what scripts say
    aws.client("ec2", REGION).delete_snapshot(SnapshotId=there)
    ran = len(cloud.nodes)
    assert len(killed_everywhere(cloud, whole, finishes)) > 12
    assert len(cloud.nodes) == ran, "no script ran anew"


def test_throttled_at_any_call(cloud: Rockets, volume: Plan) -> None:
    volume, cloud.known = volume.model_copy(update={"images": (APP,)}), {}
    met = throttled_everywhere(cloud, lambda: baked(volume), said)
    assert met >= {"RunInstances", "SendCommand", "GetCommandInvocation", "StopInstances", "CreateSnapshot"}
    [snapshot] = baked(volume).published[REGION].snapshots
    assert cloud.left(REGION) == {"snapshots": [snapshot.id]}


@pytest.mark.parametrize(("late", "stale"), [(3, 0), (0, 2)])
def test_where_ec2_says_late_what_was_written(cloud: Rockets, volume: Plan, late: int, stale: int) -> None:
    cloud.eventual = Eventual(late, stale)
    made = baked(volume.model_copy(update={"images": (APP,)}), copy_to=(OTHER,), purchase="spot-first")
    assert made.verdict
    assert made.verdict.passed
    assert cloud.eventual.refused or cloud.eventual.old
    cloud.eventual.settle()
    for region in (REGION, OTHER):
        assert cloud.left(region) == {"snapshots": [made.published[region].snapshots[0].id]}


def nothing_stays(cloud: Rockets, plan: Plan) -> None:
    with allowed_by(policy({"instance_profile": "baker", "purchase": "spot-first"})):
        remove(LeftoverFilter(name=plan.name), REGION, Events())
    left = cloud.left(REGION)
    for each in left.pop("snapshots", []):
        [described] = aws.client("ec2", REGION).describe_snapshots(SnapshotIds=[each])["Snapshots"]
        assert aws.as_dict(described)[aws.MANAGED] == aws.ARTEFACT
    assert left == {}


def test_an_instance_that_somebody_stops_meanwhile(cloud: Rockets, volume: Plan) -> None:
    def stop(_service: str, operation: str, arguments: dict[str, Any]) -> None:
        if operation == "SendCommand":
            cloud.machines[arguments["InstanceIds"][0]].code = "Client.UserInitiatedShutdown"
            cloud.machines[arguments["InstanceIds"][0]].over = True
            boto3.client("ec2", REGION).stop_instances(InstanceIds=arguments["InstanceIds"])

    cloud.after.append(stop)
    with pytest.raises(AwsError, match="somebody stopped"):
        baked(volume)
    cloud.after.remove(stop)
    assert cloud.left(REGION) == {}
