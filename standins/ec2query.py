"""The calls of EC2's query API that go with snapshots, for the stand-in in ``ebsdirect``: parameters in, XML out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from standins.ebs_direct_server import Cloud, Snapshot

_BOOT = {"legacy-bios", "uefi", "uefi-preferred"}


class Wrong(Exception):
    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def answer(
    cloud: Cloud, query: dict[str, list[str]], region: str = "eu-west-1", account: str = "123456789012"
) -> tuple[int, str]:
    """Return status and XML of one call to a region, by an account."""
    wanted = {"region": region, "account": account, **{name: values[0] for name, values in query.items()}}
    action = wanted["Action"]
    cloud.calls[action] += 1
    try:
        body = _ACTIONS[action](cloud, wanted)
    except Wrong as wrong:
        error = f"<Code>{wrong.code}</Code><Message>{escape(str(wrong))}</Message>"
        return 400, f"<Response><Errors><Error>{error}</Error></Errors><RequestID>0</RequestID></Response>"
    return 200, f"<{action}Response><requestId>0</requestId>{body}</{action}Response>"


def _listed(wanted: dict[str, str], prefix: str) -> list[str]:
    return [value for name, value in wanted.items() if name.rpartition(".")[0] == prefix]


def _filters(wanted: dict[str, str]) -> list[tuple[str, list[str]]]:
    names = [name for name in wanted if name.startswith("Filter.") and name.endswith(".Name")]
    return [(wanted[name], _listed(wanted, name.removesuffix("Name") + "Value")) for name in names]


def _tags(wanted: dict[str, str], prefix: str) -> dict[str, str]:
    keys = [name for name in wanted if name.startswith(prefix) and name.endswith(".Key")]
    return {wanted[name]: wanted.get(name.removesuffix("Key") + "Value", "") for name in keys}


def _fits(tags: dict[str, str], fields: dict[str, str], filters: list[tuple[str, list[str]]]) -> bool:
    for name, values in filters:
        if name == "tag-key":
            if not set(values) & set(tags):
                return False
        elif name.startswith("tag:"):
            if tags.get(name.removeprefix("tag:")) not in values:
                return False
        elif name not in fields:
            raise Wrong("InvalidParameterValue", f"The filter '{name}' is invalid")
        elif fields[name] not in values:
            return False
    return True


def _xml(tags: dict[str, str]) -> str:
    items = (f"<item><key>{escape(key)}</key><value>{escape(value)}</value></item>" for key, value in tags.items())
    return f"<tagSet>{''.join(items)}</tagSet>"


def _snapshot(made: Snapshot) -> str:
    if made.sealed and made.state == "pending":
        made.looks -= 1
        if made.looks <= 0:
            made.state = "error" if made.fails else "completed"
    state, progress = made.state, "100%" if made.state == "completed" else "99%" if made.sealed else ""
    why = made.fails or "The checksums do not match"
    message = f"<statusMessage>{why}</statusMessage>" if state == "error" else ""
    return (
        f"<item><snapshotId>{made.id}</snapshotId><status>{state}</status><progress>{progress}</progress>{message}"
        f"<volumeSize>{made.gib}</volumeSize><encrypted>{str(made.encrypted).lower()}</encrypted>"
        f"<kmsKeyId>{made.key}</kmsKeyId><ownerId>{made.owner}</ownerId>"
        f"<startTime>2026-11-24T00:00:00.000Z</startTime>{_xml(made.tags)}</item>"
    )


def _known(cloud: Cloud, snapshot: str) -> Snapshot:
    made = cloud.snapshots.get(snapshot)
    if made is None or made.unknown > 0:
        if made is not None:
            made.unknown -= 1
        raise Wrong("InvalidSnapshot.NotFound", f"The snapshot '{snapshot}' does not exist.")
    return made


def describe_snapshots(cloud: Cloud, wanted: dict[str, str]) -> str:
    named = _listed(wanted, "SnapshotId")
    found = [_known(cloud, name) for name in named] if named else list(cloud.snapshots.values())
    found = [made for made in found if made.region == wanted["region"]]
    if "self" in _listed(wanted, "Owner"):
        found = [made for made in found if made.owner == wanted["account"]]
    filters = _filters(wanted)
    items = [
        _snapshot(made) for made in found if _fits(made.tags, {"status": made.state, "snapshot-id": made.id}, filters)
    ]
    return f"<snapshotSet>{''.join(items)}</snapshotSet>"


def delete_snapshot(cloud: Cloud, wanted: dict[str, str]) -> str:
    made = _known(cloud, wanted["SnapshotId"])
    for image in cloud.images.values():
        if made.id in _snapshots_of(image):
            raise Wrong("InvalidSnapshot.InUse", f"The snapshot {made.id} is currently in use by {image['id']}")
    del cloud.snapshots[made.id]
    return "<return>true</return>"


def copy_snapshot(cloud: Cloud, wanted: dict[str, str]) -> str:
    source = _known(cloud, wanted["SourceSnapshotId"])
    minutes = int(wanted.get("CompletionDurationMinutes") or wanted.get("SnapshotCopyCompletionDurationMinutes") or 0)
    if minutes % 15 or minutes > 2880:
        raise Wrong("InvalidParameterValue", "The completion duration is in steps of 15 minutes, up to 48 hours")
    may = wanted["account"] in {source.owner, *source.shared}
    if source.region != wanted["SourceRegion"] or source.state != "completed" or not may:
        raise Wrong("InvalidSnapshot.NotFound", f"The snapshot {source.id} is not there, or {source.state}")
    made = replace(source, id=cloud.new("snap"), region=wanted["region"], parent=source.id)
    made.shared, made.owner, made.within = set(), wanted["account"], minutes
    made.tags, made.state, made.looks, made.data = _tags(wanted, "TagSpecification.1.Tag."), "pending", cloud.slow, {}
    # EC2 API reference, CopySnapshot: encrypted as the source or as asked, in some regions by default; the key is
    # looked at while the copy is under way ("the action can appear to complete, but eventually fails").
    region, key = made.region, wanted.get("KmsKeyId", "")
    if key and wanted.get("Encrypted") != "true":
        raise Wrong("InvalidParameterDependency", "KmsKeyId needs Encrypted")
    made.encrypted = source.encrypted or wanted.get("Encrypted") == "true" or region in cloud.by_default
    made.key = (cloud.key_arn(key, region) if key else cloud.default_key(region)) if made.encrypted else ""
    if key == "alias/missing" or (key.startswith("arn:") and key.split(":")[3] != region):
        made.fails, made.sealed = "Given key ID is not accessible", True
    cloud.snapshots[made.id] = made
    return f"<snapshotId>{made.id}</snapshotId>"


def modify_snapshot_attribute(cloud: Cloud, wanted: dict[str, str]) -> str:
    made = _known(cloud, wanted["SnapshotId"])
    if made.encrypted and made.key == cloud.key_arn("alias/aws/ebs", made.region):
        raise Wrong("OperationNotPermitted", "Encrypted snapshots with EBS default key cannot be shared")
    made.shared |= set(_listed(wanted, "UserId"))
    return "<return>true</return>"


def enable_fast_snapshot_restores(cloud: Cloud, wanted: dict[str, str]) -> str:
    names, zones = _listed(wanted, "SourceSnapshotId"), _listed(wanted, "AvailabilityZone")
    for identity in names:
        _known(cloud, identity)
    return _restores(cloud.fast.enable(names, zones))


def disable_fast_snapshot_restores(cloud: Cloud, wanted: dict[str, str]) -> str:
    names, zones = _listed(wanted, "SourceSnapshotId"), _listed(wanted, "AvailabilityZone")
    return _restores(cloud.fast.disable(names, zones))


def describe_fast_snapshot_restores(cloud: Cloud, wanted: dict[str, str]) -> str:
    filters = dict(_filters(wanted))
    found = cloud.fast.look(filters["snapshot-id"], filters.get("state", ()))
    return f"<fastSnapshotRestoreSet>{_items(found)}</fastSnapshotRestoreSet>"


def _restores(said: dict[str, Any]) -> str:
    assert not said["Unsuccessful"], "no test of this stand-in fills a quota"
    return f"<successful>{_items(said['Successful'])}</successful><unsuccessful/>"


def _items(found: list[dict[str, str]]) -> str:
    def field(name: str, value: str) -> str:
        tag = name[0].lower() + name[1:]
        return f"<{tag}>{value}</{tag}>"

    return "".join(f"<item>{''.join(field(*each) for each in one.items())}</item>" for one in found)


def _image_known(cloud: Cloud, image: str) -> dict[str, Any]:
    if image not in cloud.images:
        raise Wrong("InvalidAMIID.NotFound", f"The image id '[{image}]' does not exist")
    return cloud.images[image]


def _tagged(cloud: Cloud, wanted: dict[str, str]) -> list[dict[str, str]]:
    named = _listed(wanted, "ResourceId")
    return [
        _image_known(cloud, name)["tags"] if name.startswith("ami-") else _known(cloud, name).tags for name in named
    ]


def create_tags(cloud: Cloud, wanted: dict[str, str]) -> str:
    for tags in _tagged(cloud, wanted):
        tags.update(_tags(wanted, "Tag."))
    return "<return>true</return>"


def delete_tags(cloud: Cloud, wanted: dict[str, str]) -> str:
    for tags in _tagged(cloud, wanted):
        for key in _tags(wanted, "Tag."):
            tags.pop(key, None)
    return "<return>true</return>"


def register_image(cloud: Cloud, wanted: dict[str, str]) -> str:
    name = wanted["Name"]
    if any((image["name"], image["region"]) == (name, wanted["region"]) for image in cloud.images.values()):
        raise Wrong("InvalidAMIName.Duplicate", f"AMI name {name} is already in use")
    if wanted.get("BootMode") not in _BOOT:
        raise Wrong("InvalidParameterValue", "The boot mode is invalid")
    if wanted.get("TpmSupport") and wanted["BootMode"] != "uefi":
        raise Wrong("InvalidParameterCombination", "NitroTPM needs the boot mode uefi")
    disks = [_disk(cloud, wanted, name.removesuffix(".DeviceName")) for name in wanted if name.endswith(".DeviceName")]
    if wanted["RootDeviceName"] != disks[0]["device"] or len({each["device"] for each in disks}) != len(disks):
        raise Wrong("InvalidBlockDeviceMapping", "The root device is not mapped, or a device is mapped twice")
    made = cloud.snapshots[disks[0]["snapshot"]]
    identifier = cloud.new("ami")
    cloud.images[identifier] = {
        "id": identifier,
        "name": name,
        "region": wanted["region"],
        "snapshot": made.id,
        "device": disks[0]["device"],
        "further": disks[1:],
        "tags": _tags(wanted, "TagSpecification.1.Tag."),
        "looks": cloud.slow,
        "attributes": {key: value for key, value in wanted.items() if "." not in key},
    }
    return f"<imageId>{identifier}</imageId>"


def _disk(cloud: Cloud, wanted: dict[str, str], mapping: str) -> dict[str, Any]:
    """Return one mapping of RegisterImage, which takes no word on the encryption of what is made from a snapshot."""
    said = {name.rpartition(".")[2]: value for name, value in wanted.items() if name.startswith(f"{mapping}.")}
    disk = {
        "device": said["DeviceName"],
        "virtual": said.get("VirtualName", ""),
        "snapshot": said.get("SnapshotId", ""),
    }
    if disk["snapshot"]:
        made = _known(cloud, disk["snapshot"])
        if made.state != "completed":
            raise Wrong("InvalidSnapshot.NotReady", f"The snapshot {made.id} is {made.state}")
        if made.owner != "123456789012":
            raise Wrong("UnauthorizedOperation", f"The snapshot {made.id} is of another account")
        if "Encrypted" in said:
            raise Wrong("InvalidParameterCombination", "What is made from a snapshot is encrypted as that is")
    return {**disk, "gib": said.get("VolumeSize", "")}


def _snapshots_of(image: dict[str, Any]) -> list[str]:
    return [image["snapshot"], *(each["snapshot"] for each in image.get("further", ()) if each["snapshot"])]


def _mapping(cloud: Cloud, disk: dict[str, Any]) -> str:
    device = f"<deviceName>{disk['device']}</deviceName>"
    if disk["virtual"]:
        return f"<item>{device}<virtualName>{disk['virtual']}</virtualName></item>"
    made = cloud.snapshots.get(disk["snapshot"])
    snapshot = f"<snapshotId>{made.id}</snapshotId>" if made else ""
    size = f"<volumeSize>{made.gib if made else disk['gib']}</volumeSize>"
    encrypted = f"<encrypted>{str(bool(made and made.encrypted)).lower()}</encrypted>"
    return f"<item>{device}<ebs>{snapshot}{size}{encrypted}</ebs></item>"


# As DescribeImages spells what RegisterImage takes (and, of AMIs that others made, what AWS says by itself).
_SAID = {
    "ImdsSupport": "imdsSupport", "TpmSupport": "tpmSupport", "BootMode": "bootMode", "EnaSupport": "enaSupport",
    "SriovNetSupport": "sriovNetSupport", "PlatformDetails": "platformDetails",
}  # fmt: skip


def _image(cloud: Cloud, image: dict[str, Any]) -> str:
    image["looks"] -= 1
    state = "pending" if image["looks"] > 0 else "available"
    said = image["attributes"]
    root = {"device": image["device"], "snapshot": image["snapshot"], "virtual": ""}
    mappings = "".join(_mapping(cloud, each) for each in (root, *image.get("further", ())))
    more = "".join(_if_said(tag, said.get(name)) for name, tag in _SAID.items())
    return (
        f"<item><imageId>{image['id']}</imageId><name>{image['name']}</name><imageState>{state}</imageState>"
        f"<architecture>{said['Architecture']}</architecture><rootDeviceType>ebs</rootDeviceType>"
        f"{more}<rootDeviceName>{said['RootDeviceName']}</rootDeviceName>"
        f"<blockDeviceMapping>{mappings}</blockDeviceMapping>{_xml(image['tags'])}</item>"
    )


def _if_said(tag: str, value: str | None) -> str:
    return f"<{tag}>{value}</{tag}>" if value else ""


def copy_image(cloud: Cloud, wanted: dict[str, str]) -> str:
    token = " ".join(("CopyImage", wanted["region"], wanted.get("ClientToken", "")))
    if token in cloud.tokens:
        said, made_before = cloud.tokens[token]
        if said != str(wanted):
            raise Wrong("IdempotentParameterMismatch", "The client token was used with other parameters")
        return f"<imageId>{made_before}</imageId>"
    source = _image_known(cloud, wanted["SourceImageId"])
    if wanted["account"] not in {source.get("owner", "123456789012"), *source.get("shared", ())}:
        raise Wrong("InvalidAMIID.NotFound", f"The image id '[{source['id']}]' does not exist")

    def copied(snapshot: str) -> str:
        text = copy_snapshot(cloud, {**wanted, "SourceSnapshotId": snapshot})
        return text[len("<snapshotId>") : -len("</snapshotId>")]

    identifier = cloud.new("ami")
    made = {"id": identifier, "snapshot": copied(source["snapshot"]), "looks": cloud.slow, "owner": wanted["account"]}
    made |= {"region": wanted["region"], "tags": _tags(wanted, "TagSpecification.1.Tag.")}
    further = source.get("further", ())
    made["further"] = [{**each, "snapshot": each["snapshot"] and copied(each["snapshot"])} for each in further]
    cloud.images[identifier] = {**source, **made}
    if wanted.get("ClientToken"):
        cloud.tokens[token] = (str(wanted), identifier)
    return f"<imageId>{identifier}</imageId>"


def deregister_image(cloud: Cloud, wanted: dict[str, str]) -> str:
    if cloud.images.pop(wanted["ImageId"], None) is None:
        raise Wrong("InvalidAMIID.Unavailable", f"The image ID '{wanted['ImageId']}' is no longer available")
    return "<return>true</return>"


def modify_image_attribute(cloud: Cloud, wanted: dict[str, str]) -> str:
    image = _image_known(cloud, wanted["ImageId"])
    image["shared"] = {value for name, value in wanted.items() if name.startswith("LaunchPermission.Add.")}
    return "<return>true</return>"


def enable_image_deprecation(cloud: Cloud, wanted: dict[str, str]) -> str:
    _image_known(cloud, wanted["ImageId"])["deprecated"] = wanted["DeprecateAt"]
    return "<return>true</return>"


def describe_images(cloud: Cloud, wanted: dict[str, str]) -> str:
    named = _listed(wanted, "ImageId")
    found = [_image_known(cloud, name) for name in named] if named else list(cloud.images.values())
    found = [each for each in found if each["region"] == wanted["region"]]
    items = [_image(cloud, each) for each in found if _fits(each["tags"], {"name": each["name"]}, _filters(wanted))]
    return f"<imagesSet>{''.join(items)}</imagesSet>"


def describe_image_attribute(cloud: Cloud, wanted: dict[str, str]) -> str:
    image = _image_known(cloud, wanted["ImageId"])
    assert wanted["Attribute"] == "uefiData", "the only one that is asked for"
    if image.get("owner", "123456789012") != "123456789012":
        raise Wrong("AuthFailure", "Not authorized for image")
    data = image["attributes"].get("UefiData", "")
    value = f"<uefiData><value>{data}</value></uefiData>" if data else ""
    return f"<imageId>{image['id']}</imageId>{value}"


def get_ebs_encryption_by_default(cloud: Cloud, wanted: dict[str, str]) -> str:
    return f"<ebsEncryptionByDefault>{str(wanted['region'] in cloud.by_default).lower()}</ebsEncryptionByDefault>"


def get_ebs_default_kms_key_id(cloud: Cloud, wanted: dict[str, str]) -> str:
    return f"<kmsKeyId>{cloud.by_default.get(wanted['region'], 'alias/aws/ebs')}</kmsKeyId>"


def assume_role(cloud: Cloud, wanted: dict[str, str]) -> str:
    """STS: credentials by which ``_account`` knows the role's account."""
    del cloud
    key = f"ASIA{wanted['RoleArn'].split(':')[4]}"
    secrets = "<SecretAccessKey>x</SecretAccessKey><SessionToken>x</SessionToken>"
    until = "<Expiration>2099-01-01T00:00:00Z</Expiration>"
    credentials = f"<Credentials><AccessKeyId>{key}</AccessKeyId>{secrets}{until}</Credentials>"
    return f"<AssumeRoleResult>{credentials}</AssumeRoleResult>"


def get_caller_identity(cloud: Cloud, wanted: dict[str, str]) -> str:
    del cloud
    return f"<GetCallerIdentityResult><Account>{wanted['account']}</Account></GetCallerIdentityResult>"


def describe_nothing(_cloud: Cloud, _wanted: dict[str, str]) -> str:
    """Instances, requests of such, volumes and security groups, of which there are none here."""
    return ""


_ACTIONS = {
    "AssumeRole": assume_role,
    "GetCallerIdentity": get_caller_identity,
    "DescribeInstances": describe_nothing,
    "DescribeSpotInstanceRequests": describe_nothing,
    "DescribeVolumes": describe_nothing,
    "DescribeSecurityGroups": describe_nothing,
    "DescribeImageAttribute": describe_image_attribute,
    "GetEbsEncryptionByDefault": get_ebs_encryption_by_default,
    "GetEbsDefaultKmsKeyId": get_ebs_default_kms_key_id,
    "DescribeSnapshots": describe_snapshots,
    "DeleteSnapshot": delete_snapshot,
    "CopySnapshot": copy_snapshot,
    "ModifySnapshotAttribute": modify_snapshot_attribute,
    "EnableFastSnapshotRestores": enable_fast_snapshot_restores,
    "DisableFastSnapshotRestores": disable_fast_snapshot_restores,
    "DescribeFastSnapshotRestores": describe_fast_snapshot_restores,
    "CreateTags": create_tags,
    "DeleteTags": delete_tags,
    "RegisterImage": register_image,
    "DeregisterImage": deregister_image,
    "DescribeImages": describe_images,
    "CopyImage": copy_image,
    "ModifyImageAttribute": modify_image_attribute,
    "EnableImageDeprecation": enable_image_deprecation,
}
