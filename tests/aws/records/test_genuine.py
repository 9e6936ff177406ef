"""Records are compared with what lies in AWS before they are rolled out: one edit of the file hands out no image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from parbake import records
from standins.aws.boto_clients import raw
from standins.clusters import machine_image, parbake, project, refused, volume
from tests.aws.conftest import REGION

pytestmark = pytest.mark.usefixtures("aws_mock", "made_up_records")

TIME = "2026-11-24T00:02:00Z"


def tagged(record: records.Record, **changes: str | None) -> list[dict[str, str]]:
    """Return the tags of what a bake makes, with changes; None leaves one out."""
    tags = {"managed": "artefact", "key": record.key, "name": record.plan.name, "verified": TIME, **changes}
    return [{"Key": f"parbake:{name}", "Value": value} for name, value in tags.items() if value is not None]


def ami(name: str, tags: list[dict[str, str]]) -> tuple[str, str]:
    """Register an AMI of this account; return its id and its snapshot's."""
    ec2 = raw("ec2")
    mappings = [{"DeviceName": "/dev/xvda", "Ebs": {"SnapshotId": disk([]), "VolumeSize": 8}}]
    made = ec2.register_image(
        Name=name, RootDeviceName="/dev/xvda", BlockDeviceMappings=mappings, Architecture="x86_64"
    )["ImageId"]
    if tags:
        ec2.create_tags(Resources=[made], Tags=tags)
    [found] = ec2.describe_images(ImageIds=[made])["Images"]
    return made, found["BlockDeviceMappings"][0]["Ebs"]["SnapshotId"]  # moto makes one of its own


def disk(tags: list[dict[str, str]]) -> str:
    ec2 = raw("ec2")
    volume_id = ec2.create_volume(AvailabilityZone=f"{REGION}a", Size=8)["VolumeId"]
    snapshot = str(ec2.create_snapshot(VolumeId=volume_id)["SnapshotId"])
    if tags:
        ec2.create_tags(Resources=[snapshot], Tags=tags)
    return snapshot


class Shop:
    """A Bakefile with a rollout to a parameter, and the record of an AMI that is there, made by its bake."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], **tags: str | None) -> None:
        self.folder, self.capsys = folder, capsys
        made = machine_image("first", "ami-1", region=REGION)
        self.image, self.snapshot = ami("first", tagged(made, **tags))
        self.record = with_ids(made, self.image, self.snapshot)
        self.file = project(folder, [{"ssm": "/nodes/gpu"}], self.record)
        self.path = folder / "artefacts" / self.record.file_name

    def edit(self, *pairs: tuple[str, str]) -> None:
        text = self.path.read_text()
        for before, after in pairs:
            assert before in text
            text = text.replace(before, after)
        self.path.write_text(text)

    def rollout(self, *more: str) -> tuple[int, Any]:
        return parbake(self.capsys, "rollout", self.record.artefact[:12], "--no-follow", *more)

    @property
    def handed_out(self) -> list[str]:
        return [each["Name"] for each in raw("ssm").describe_parameters()["Parameters"]]

    def refused(self, says: str) -> None:
        for more in ((), ("--force",), ("--dry-run",)):
            code, error = self.rollout(*more)
            assert (code, error.get("error")) == (3, "VerificationFailed"), error
            assert says in error["message"]
        assert self.handed_out == []


def with_ids(record: records.Record, image: str, *snapshots: str) -> records.Record:
    there = record.published[REGION]
    disks = tuple(each.model_copy(update={"id": name}) for each, name in zip(there.snapshots, snapshots, strict=True))
    there = there.model_copy(update={"image": image, "snapshots": disks})
    return record.model_copy(update={"published": {REGION: there}})


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def shop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shop:
    made = Shop(tmp_path, capsys)
    shown().clear()  # here AWS's stand-in is asked
    return made


def shown() -> dict[str, Any]:
    from standins import clusters

    found: dict[str, Any] = clusters.SHOWN
    return found


def test_a_true_record_is_rolled_out(shop: Shop) -> None:
    code, done = shop.rollout()
    assert (code, shop.handed_out) == (0, ["/nodes/gpu"]), done


def strangers(_shop: Shop) -> str:
    return ami("evil", [])[0]


def another_plans(_shop: Shop) -> str:
    other = machine_image("second", "ami-2", region=REGION)
    return ami("other", tagged(other))[0]


def unfinished(shop: Shop) -> str:
    return ami("unfinished", tagged(shop.record, managed="temporary"))[0]


@pytest.mark.parametrize(
    ("planted", "says"),
    [
        (strangers, "does not have the snapshots"),
        (another_plans, "does not have the snapshots"),
        (unfinished, "does not have the snapshots"),
        (lambda _shop: "ami-0123456789abcdef0", "is not there"),
    ],
    ids=["strangers", "of-another-plan", "unfinished", "gone"],
)
def test_one_edit_of_the_record_hands_out_no_other_image(shop: Shop, planted: Callable[[Shop], str], says: str) -> None:
    shop.edit((shop.image, planted(shop)))
    shop.refused(says)


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        (None, "has no tag parbake:key: no bake of this account made it"),
        ({"key": "f" * 64}, "is tagged as made of another plan"),
        ({"managed": "temporary"}, "is tagged as not finished"),
        ({"verified": None}, "has no tag parbake:verified"),
    ],
    ids=["none", "key", "managed", "verified"],
)
def test_an_edit_that_names_the_snapshots_too(shop: Shop, tags: dict[str, str | None] | None, says: str) -> None:
    image, snapshot = ami("evil", [] if tags is None else tagged(shop.record, **tags))
    shop.edit((shop.image, image), (shop.snapshot, snapshot))
    shop.refused(says)


def test_one_edit_of_the_verdict_rolls_out_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Shop(tmp_path, capsys, verified=None)
    shown().clear()
    records.write(tmp_path / "artefacts", shop.record.model_copy(update={"verdict": failed(shop.record)}))
    shop.edit(('"passed": false', '"passed": true'))
    shop.refused("has no tag parbake:verified, although the record says that its verification passed")


def failed(record: records.Record) -> Any:
    assert record.verdict
    return record.verdict.model_copy(update={"passed": False})


def test_one_edit_of_a_volumes_snapshot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = volume("data", "snap-1", region=REGION)
    real, evil = disk(tagged(made)), disk([])
    made = with_ids(made, "", real)
    project(tmp_path, [{"file": "out.json"}], made)
    shown().clear()
    path = tmp_path / "artefacts" / made.file_name
    true = path.read_text()
    path.write_text(true.replace(real, evil))
    refused(parbake(capsys, "rollout", made.key, "--force"), 3, "has no tag parbake:key")
    assert not (tmp_path / "out.json").exists()
    path.write_text(true)
    assert parbake(capsys, "rollout", made.key)[0] == 0


def test_an_image_of_another_account_than_the_record_says(shop: Shop) -> None:
    shop.edit(('"account": ""', '"account": "999999999999"'))
    shop.refused("belongs to the account 123456789012, not to 999999999999")


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        ('"key": "', '"key": "0', "key"),
        ('"invocationId": "', '"invocationId": "0', "key"),
        ('"artefact": "node', '"artefact": "mode', "record"),
        ('"uri": "oci://registry.example/first', '"uri": "oci://registry.evil/first', "materials"),
        ('"uri": "aws://', '"uri": "gcp://', "subject"),
    ],
    ids=["key", "invocation", "artefact", "materials", "subject"],
)
def test_a_record_that_contradicts_itself_is_not_rolled_out(shop: Shop, before: str, after: str, says: str) -> None:
    text = shop.path.read_text()
    assert before in text
    shop.path.write_text(text.replace(before, after, 1))
    code, error = parbake(shop.capsys, "rollout", str(shop.path), "--no-follow", "--force")
    assert code in {2, 3}, error
    assert says in error["message"]
    assert shop.handed_out == []


def test_without_access_nothing_is_believed(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    from parbake.aws import images
    from parbake.core.errors import AwsNoAccess

    def no(*_: object) -> None:
        raise AwsNoAccess("not allowed to ec2:DescribeImages")

    monkeypatch.setattr(images, "described_all", no)
    code, error = shop.rollout("--force")
    assert (code, error["error"]) == (1, "AwsNoAccess")
    assert "signed" in error["hint"]
    assert shop.handed_out == []


class TestSigned:
    """With ``trust`` in the Bakefile."""

    @pytest.fixture
    def signed(self, shop: Shop) -> Shop:
        from standins.keys import key_pair

        for name in ("key", "other"):
            key_pair(shop.folder, name)
        self.say(shop, trust=["key.pub"], sign={"key": "key.pem"})
        self.sign(shop, "key")
        return shop

    @staticmethod
    def say(shop: Shop, **more: Any) -> None:
        shop.file.write_text(json.dumps({**json.loads(shop.file.read_text()), **more}))

    @staticmethod
    def sign(shop: Shop, name: str) -> None:
        from parbake.core.signing import FileSigner

        records.write(shop.folder / "artefacts", shop.record, FileSigner(shop.folder / f"{name}.pem"))

    def test_a_signed_record_is_rolled_out(self, signed: Shop) -> None:
        assert signed.rollout()[0] == 0
        assert signed.handed_out

    def test_an_unsigned_record_is_refused_also_with_force(self, signed: Shop) -> None:
        (signed.folder / "artefacts" / f"{signed.record.artefact}.intoto.jsonl").unlink()
        signed.refused("is not signed")

    def test_a_record_signed_by_another_is_refused_also_with_force(self, signed: Shop) -> None:
        self.sign(signed, "other")
        signed.refused("is signed by none of the keys that are trusted")
        self.say(signed, trust=["other.pub", "key.pub"])
        assert signed.rollout()[0] == 0

    def test_an_edit_of_a_signed_record_is_refused(self, signed: Shop) -> None:
        image, snapshot = ami("evil", tagged(signed.record))  # tags and all
        signed.edit((signed.image, image), (signed.snapshot, snapshot))
        signed.refused("was changed after it was signed")

    def test_a_signature_of_another_record_is_refused(self, signed: Shop) -> None:
        from parbake.core.signing import FileSigner

        other = machine_image("second", "ami-2", region=REGION)
        records.write(signed.folder / "artefacts", other, FileSigner(signed.folder / "key.pem"))
        folder = signed.folder / "artefacts"
        (folder / f"{other.artefact}.intoto.jsonl").rename(folder / f"{signed.record.artefact}.intoto.jsonl")
        signed.refused("was changed after it was signed")

    def test_another_accounts_image_is_believed_of_a_signed_record_alone(self, signed: Shop) -> None:
        """To the account that it is shared with, AWS shows no tags of it."""
        tags = [{"Key": each["Key"]} for each in tagged(signed.record)]
        raw("ec2").delete_tags(Resources=[signed.image], Tags=tags)
        assert signed.rollout("--dry-run")[0] == 0
        self.say(signed, trust=[], sign=None)
        text = json.loads(signed.file.read_text())
        del text["sign"]
        signed.file.write_text(json.dumps(text))
        signed.refused("has no tag parbake:key")

    def test_wrong_tags_speak_against_a_signed_record_too(self, signed: Shop) -> None:
        raw("ec2").create_tags(Resources=[signed.image], Tags=[{"Key": "parbake:key", "Value": "f" * 64}])
        signed.refused("is tagged as made of another plan")


class TestKms:
    """A key in AWS KMS signs."""

    @staticmethod
    def key(**more: str) -> str:
        made = raw("kms").create_key(**{"KeySpec": "ECC_NIST_P256", "KeyUsage": "SIGN_VERIFY", **more})
        return str(made["KeyMetadata"]["Arn"])

    @pytest.fixture(autouse=True)
    def digests(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let moto take a digest for a digest, as KMS does; by itself it hashes it once more."""
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
        from cryptography.hazmat.primitives.hashes import SHA256
        from moto.kms.utils import ECDSAPrivateKey

        def sign(key: Any, message: bytes, algorithm: str) -> bytes:
            assert (len(message), algorithm) == (32, "ECDSA_SHA_256")
            signature: bytes = key.private_key.sign(message, ec.ECDSA(Prehashed(SHA256())))
            return signature

        monkeypatch.setattr(ECDSAPrivateKey, "sign", sign)

    def test_a_record_is_signed_by_kms(self, shop: Shop) -> None:
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        from parbake.bakefile import load
        from parbake.records import genuine
        from parbake.records.genuine.signed import KmsSigner

        arn = self.key()
        pem = KmsSigner(arn).public.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (shop.folder / "kms.pub").write_bytes(pem)
        TestSigned.say(shop, trust=["kms.pub"], sign={"kms": arn})
        signer = genuine.open_signer(load(shop.file))
        records.write(shop.folder / "artefacts", shop.record, signer)
        assert shop.rollout()[0] == 0
        shop.edit((shop.image, "ami-0123456789abcdef0"))
        refused(shop.rollout("--force"), 3, "was changed after it was signed")

    def test_a_key_in_the_account_of_the_bakes_role(self, shop: Shop) -> None:
        """moto really is there: the caller's own account has no such key."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        from parbake import aws
        from parbake.bakefile import load
        from parbake.core.errors import AwsError
        from parbake.records import genuine
        from parbake.records.genuine.signed import KmsSigner

        role = "arn:aws:iam::210987654321:role/bake"
        with aws.acting_as(role):
            made = aws.client("kms", REGION).create_key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
            arn = str(made["KeyMetadata"]["Arn"])
            pem = KmsSigner(arn).public.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (shop.folder / "kms.pub").write_bytes(pem)
        TestSigned.say(shop, trust=["kms.pub"], sign={"kms": arn}, aws={"region": REGION, "role": role})
        assert genuine.open_signer(load(shop.file))
        TestSigned.say(shop, trust=["kms.pub"], sign={"kms": arn}, aws={"region": REGION})
        with pytest.raises(AwsError):
            genuine.open_signer(load(shop.file))

    def test_a_key_of_another_kind_is_refused(self) -> None:
        from parbake.core.errors import InputError
        from parbake.records.genuine.signed import KmsSigner

        with pytest.raises(InputError, match="is RSA_2048 for SIGN_VERIFY") as error:
            KmsSigner(self.key(KeySpec="RSA_2048"))
        assert "create-key --key-spec ECC_NIST_P256" in error.value.hint

    def test_the_printed_policy_covers_signing(self, shop: Shop) -> None:
        from parbake.aws import iam
        from parbake.bakefile import load
        from standins.keys import key_pair

        key_pair(shop.folder)
        for name, resource, condition in (("key/1", "key/1", False), ("alias/bake", "key/*", True)):
            TestSigned.say(shop, trust=["key.pub"], sign={"kms": f"arn:aws:kms:{REGION}:123456789012:{name}"})
            found = iam.policies(load(shop.file))["caller"]["Statement"]
            [sign] = [each for each in found if each["Sid"] == "SignRecords"]
            assert sign["Action"] == ["kms:GetPublicKey", "kms:Sign"]
            assert sign["Resource"] == [f"arn:aws:kms:{REGION}:123456789012:{resource}"]
            assert ("Condition" in sign) == condition
