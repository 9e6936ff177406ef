"""The Packer builder with a real Packer, a real sshd and a real containerd; EC2 is moto, which Packer asks over HTTP.

Packer is 1.6.6, so that what the template has of later versions is not proven here: see ``real_packer.NEWER``.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.ec2.models import ec2_backends

from parbake.aws.tags import KEY, MANAGED
from parbake.bakefile import load
from parbake.builders import Ingredients, Publication, packer
from parbake.builders.packer.builder import PackerBuilder
from parbake.containerd import Daemon
from parbake.core.errors import CommandFailed, Interrupted
from parbake.core.events import Events
from parbake.core.model import GIB, Artefact, Base, Plan
from parbake.core.run import Deadline, run
from parbake.images import pause
from parbake.workflows.export import write
from standins import real_packer
from standins.aws.over_http import Endpoint
from standins.every_layer_feature import busybox_layer
from standins.images import image, push
from standins.loopback import free_port
from standins.plans import bake_remotely, plan
from standins.plans import image as planned
from standins.registry import DockerRegistry
from tests.aws.conftest import aws_mock, environment

__all__ = ["aws_mock", "environment"]

pytestmark = [pytest.mark.root, pytest.mark.usefixtures("aws_mock")]

REGION = "eu-west-1"


class Place:
    """A registry, a node that EC2's stand-in launches, and a Bakefile with the plan for it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.notes = folder, list[str]()
        self.registry = DockerRegistry(folder)
        self.registry.start()
        stack.callback(self.registry.stop)
        daemon = Daemon(folder / "store", folder / "run", cri=True, sandbox_image=pause.REFERENCE)
        self.daemon = stack.enter_context(daemon)
        port = free_port()
        self.node = stack.enter_context(real_packer.node(folder, port, folder / "run"))
        self.endpoint = stack.enter_context(Endpoint(REGION, self.launched))
        self.environment = real_packer.on_path(folder / "bin", self.endpoint.url, port)
        self.ec2 = boto3.client("ec2", region_name=REGION)
        self.name = f"{self.registry.host}/team/app:1.4"
        built = image(busybox_layer(), config={"Cmd": ["/bin/busybox", "true"]})
        push(self.registry.url, "team/app", built, "1.4")
        self.base = self.ami()
        path = folder / "parbake.yaml"
        path.write_text(
            f"version: 1\nname: shop\nplatform: linux/amd64\nbuilder: packer\nbase: {self.base}\n"
            f"images: ['{self.name}']\n"
            f"aws: {{region: {REGION}, tags: {{team: a}}}}\n"
        )
        self.bakefile = load(path)
        target = planned(self.name)
        target = target.model_copy(update={"target": target.target.model_copy(update={"digest": built.digest})})
        self.plan: Plan = plan(
            name="shop",
            base=Base(kind="ami", identity=self.base),
            artefact=Artefact(kind="machine-image", format="ami"),
            images=(target,),
            size=33 * GIB,
        )

    def ami(self) -> str:
        volume = self.ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=20)["VolumeId"]
        ebs = {"SnapshotId": self.ec2.create_snapshot(VolumeId=volume)["SnapshotId"], "VolumeSize": 20}
        mapped: list[Any] = [{"DeviceName": "/dev/sda1", "Ebs": ebs}]
        made = self.ec2.register_image(
            Name="base", RootDeviceName="/dev/sda1", BlockDeviceMappings=mapped, Architecture="x86_64",
            VirtualizationType="hvm",
        )  # fmt: skip
        kept = ec2_backends["123456789012"][REGION].amis[made["ImageId"]]  # moto forgets what was said of it
        kept.root_device_type, kept.virtualization_type, kept.architecture = "ebs", "hvm", "x86_64"
        return str(made["ImageId"])

    def launched(self, action: str, parameters: dict[str, str]) -> None:
        """Do as cloud-init: let in whose key pair the instance was launched with."""
        if action == "RunInstances":
            pairs: Any = self.ec2.describe_key_pairs(KeyNames=[parameters["KeyName"]], IncludePublicKey=True)
            line = f"{pairs['KeyPairs'][0]['PublicKey'].strip()} {parameters['KeyName']}\n"  # as the metadata service
            (self.node / "home/ec2-user/.ssh/authorized_keys").write_text(line)

    def bake(self) -> Publication:
        work = self.folder / "work"
        work.mkdir()
        nothing: Any = None
        ingredients = Ingredients(None, nothing, work, Events(lambda event: self.notes.append(event.text)))
        return bake_remotely(PackerBuilder(self.bakefile, verify=False), self.plan, ingredients)

    def left(self) -> dict[str, Any]:
        """Return what Packer made on the way and is still there."""
        instances = [each for all_ in self.ec2.describe_instances()["Reservations"] for each in all_["Instances"]]
        volumes = self.ec2.describe_volumes()["Volumes"]
        groups = [each["GroupName"] for each in self.ec2.describe_security_groups()["SecurityGroups"]]
        found = {
            "instances": [each["InstanceId"] for each in instances if each["State"]["Name"] != "terminated"],
            "volumes": [each["VolumeId"] for each in volumes if each["Attachments"]],
            "groups": [each for each in groups if each != "default"],
            "pairs": [each["KeyName"] for each in self.ec2.describe_key_pairs()["KeyPairs"]],
        }
        return {kind: each for kind, each in found.items() if each}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        for name, value in place.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("HOME", str(tmp_path))
        yield place


def tags(described: Any) -> dict[str, str]:
    return {each["Key"]: each["Value"] for each in described["Tags"]}


def test_a_plan_is_baked_to_the_ami_its_manifest_and_a_clean_account(place: Place) -> None:
    made = place.bake().published[REGION]
    baked = place.ec2.describe_images(ImageIds=[made.image])["Images"][0]
    assert baked["Name"] == f"shop-{place.plan.key[:12]}"
    assert (tags(baked)[KEY], tags(baked)[MANAGED], tags(baked)["team"]) == (place.plan.key, "artefact", "a")
    snapshot = place.ec2.describe_snapshots(SnapshotIds=[made.snapshots[0].id])["Snapshots"][0]
    assert (tags(snapshot)[KEY], tags(snapshot)[MANAGED]) == (place.plan.key, "artefact")
    [launched] = place.endpoint.named("RunInstances")
    assert (launched["ImageId"], launched["InstanceInitiatedShutdownBehavior"]) == (place.base, "terminate")
    disk = {name.rpartition(".")[2]: each for name, each in launched.items() if name.startswith("BlockDevice")}
    assert (disk["DeviceName"], disk["VolumeSize"], disk["VolumeType"]) == ("/dev/sda1", "33", "gp3")
    assert place.left() == {}
    assert any(note == f"parbake: baked {place.name}" for note in place.notes), place.notes
    with place.daemon.client() as client:
        target = place.plan.images[0].target.digest
        kept = {each.name: each for each in client.images.list()}
        assert kept[place.name].target.digest == target
        assert kept[place.name].labels["io.cri-containerd.pinned"] == "pinned"
    assert not (place.node / "etc/ssh/ssh_host_ed25519_key").exists(), "sealed"
    assert (place.node / "home/ec2-user/.ssh/authorized_keys").read_text() == "", "Packer's key is out again"
    assert not (place.node / "tmp/parbake").exists()
    calls = (place.node / "calls").read_text()
    assert (calls.startswith("shutdown -P +"), calls.endswith("shutdown -c\n")) == (True, True)


def test_what_the_node_says_is_passed_on_and_packer_cleans_up(place: Place) -> None:
    place.registry.stop()
    with pytest.raises(CommandFailed, match="connection refused"):
        place.bake()
    assert place.left() == {}
    assert (place.node / "etc/ssh/ssh_host_ed25519_key").exists(), "not sealed"


def test_packer_that_is_stopped_cleans_up(place: Place) -> None:
    (place.node / "programs/ctr").write_text("#!/bin/sh\ntouch /hangs\nsleep 600\n")

    def stop(*_: object) -> None:
        raise Interrupted("stopped")

    def wait() -> None:
        deadline = Deadline(60, "the node pulls")
        while not (place.node / "hangs").exists():
            deadline.sleep(0.05)
        os.kill(os.getpid(), signal.SIGUSR1)

    before, waiting = signal.signal(signal.SIGUSR1, stop), threading.Thread(target=wait)
    waiting.start()
    try:
        with pytest.raises(Interrupted):
            place.bake()
    finally:
        waiting.join()
        signal.signal(signal.SIGUSR1, before)
    assert place.left() == {}


def test_the_six_that_are_taken_out_are_all_that_the_older_packer_refuses(place: Place, tmp_path: Path) -> None:
    folder = tmp_path / "template"
    write(folder, packer.folder(place.bakefile).files, force=False)
    values = ["-var", 'RUN_TAGS={"a": "b"}', "."]  # 1.6.6 dies of merging two empty maps
    template = folder / "node.pkr.hcl"
    written = template.read_text()
    template.write_text(re.sub(r"(?ms)^packer \{.*?^\}\n", "", written))
    told = run([real_packer.packer(), "validate", *values], cwd=folder, check=False)
    said = re.findall(r'(?:named|type) "(\w+)" (?:is|are)\s+not\s+expected', told.text + told.stderr)
    assert sorted({*said}) == sorted(real_packer.NEWER), told.text + told.stderr
    template.write_text(written)
    assert run(["packer", "validate", *values], cwd=folder, env=dict(os.environ)).code == 0
