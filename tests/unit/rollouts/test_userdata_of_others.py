"""User data as others write it, with parbake's parts and without them again.

Each shape is judged by Go's rules (nodeadm, Karpenter) and by Python's email parser (cloud-init); the same parts must
be in it for both, and going back gives the very bytes that were there.
"""

from __future__ import annotations

import base64
import email
import gzip
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.bakefile.targets import GitopsTarget
from parbake.coldstart.hydrate import user_data
from parbake.core.errors import InputError
from parbake.rollouts import Offer, gitops, mount
from parbake.rollouts.manifests import NodeClassFile, ValuesFile
from parbake.rollouts.nodeclass import NodeClass, decide, decide_rollback
from parbake.rollouts.templates import new_data
from parbake.rollouts.userdata import KEEP_STORE, NAMES, part_of, unreadable, with_parts
from standins import nodeadm

MOUNT, HYDRATE = mount.user_data("pause:1"), user_data("parbake-hydrate 1\nranges 0\n")
OURS = {"mount": MOUNT, "hydrate": HYDRATE, "store": KEEP_STORE}
NOTHING = dict.fromkeys(NAMES, "")
VOLUME = Offer(artefacts=("data-1.raw",), keys=("k",), architectures=("amd64",), snapshot="snap-1", mount=MOUNT)
CONFIG = "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec:\n  cluster:\n    name: lab\n"
CONFIG_KIND = "application/node.eks.aws"
SCRIPT = '#!/bin/bash\necho "it\'s ${HOME}"\n'
POWERSHELL = "<powershell>\nWrite-Output hello\n</powershell>\n<persist>true</persist>\n"
BOTTLEROCKET = '[settings.kubernetes]\ncluster-name = "lab"\n'


def terraform(*parts: tuple[str, str], boundary: str = "MIMEBOUNDARY") -> str:
    """Render parts (type, content) as the data source ``cloudinit_config`` does, by Go's multipart.Writer."""
    text = f'Content-Type: multipart/mixed; boundary="{boundary}"\nMIME-Version: 1.0\r\n\r\n'
    for number, (kind, content) in enumerate(parts):
        head = f"Content-Transfer-Encoding: 7bit\r\nContent-Type: {kind}\r\nMime-Version: 1.0\r\n\r\n"
        text += ("\r\n" if number else "") + f"--{boundary}\r\n{head}{content}"
    return f"{text}\r\n--{boundary}--\r\n"


def mime(
    *parts: tuple[str, str], boundary: str = "BOUNDARY", preamble: str = "", head: str = "", end: str = "\n"
) -> str:
    """Render parts (headers, content) as people write them."""
    head = head or f'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="{boundary}"\n'
    body = "".join(f"--{boundary}\n{headers}\n\n{content}\n" for headers, content in parts)
    return f"{head}\n{preamble}{body}--{boundary}--\n".replace("\n", end)


CONFIG_PART, SCRIPT_PART = (f"Content-Type: {CONFIG_KIND}", CONFIG), ("Content-Type: text/x-shellscript", SCRIPT)
IN_BASE64 = base64.encodebytes(CONFIG.encode()).decode().rstrip("\n")
PACKED = base64.b64encode(gzip.compress(CONFIG.encode(), mtime=0)).decode()
PLAIN = {
    "a script": SCRIPT,
    "a script without a last line end": SCRIPT.rstrip("\n"),
    "a script with CRLF": SCRIPT.replace("\n", "\r\n"),
    "cloud-config": "#cloud-config\nruncmd:\n  - [ls, -l]\n",
    "an include": "#include\nhttps://registry.test/boot\n",
    "a boothook": "#cloud-boothook\n#!/bin/sh\nmodprobe overlay\n",
    "a NodeConfig": CONFIG,
    "a NodeConfig with CRLF": CONFIG.replace("\n", "\r\n"),
    "a NodeConfig after a comment": f"# ours\n---\n{CONFIG}",
    "a NodeConfig in JSON": '{"apiVersion": "node.eks.aws/v1alpha1", "kind": "NodeConfig", "spec": {}}',
    "two NodeConfigs in a text": f"{CONFIG}---\n{CONFIG}",
}
MESSAGES = {
    "MIME": mime(CONFIG_PART, SCRIPT_PART),
    "MIME with CRLF": mime(CONFIG_PART, SCRIPT_PART, end="\r\n"),
    "MIME in small letters": mime(CONFIG_PART).replace("MIME-Version", "mime-version").replace("Content-", "content-"),
    "MIME after a preamble": mime(CONFIG_PART, preamble="This is a multi-part message in MIME format.\n"),
    "MIME with CRLF after a preamble": mime(CONFIG_PART, preamble="A preamble.\n\n", end="\r\n"),
    "MIME with an epilogue": mime(SCRIPT_PART, CONFIG_PART) + "\nnobody reads this\n",
    "MIME whose boundary is //": mime(CONFIG_PART, SCRIPT_PART, boundary="//"),
    "MIME whose boundary has spaces and signs": mime(CONFIG_PART, boundary="a b.(c)+?=_'*"),
    "MIME without quotes": mime(
        CONFIG_PART, head="MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=BOUNDARY\n"
    ),
    "MIME with spaces after its boundaries": mime(CONFIG_PART).replace("--BOUNDARY\n", "--BOUNDARY \t\n"),
    "MIME with a folded header": mime(
        CONFIG_PART,
        head='MIME-Version: 1.0\nContent-Type: multipart/mixed;\n boundary="BOUNDARY"\nNumber-Attachments: 1\n',
    ),
    "MIME without a last line end": mime(CONFIG_PART).rstrip("\n"),
    "MIME with several NodeConfigs": mime(CONFIG_PART, CONFIG_PART, SCRIPT_PART),
    "MIME in base64": mime((f"Content-Type: {CONFIG_KIND}\nContent-Transfer-Encoding: base64", IN_BASE64)),
    "MIME in base64 with CRLF": mime(
        (f"Content-Type: {CONFIG_KIND}\nContent-Transfer-Encoding: base64", IN_BASE64), end="\r\n"
    ),
    "MIME with gzip in base64": mime((f"Content-Type: {CONFIG_KIND}\nContent-Transfer-Encoding: base64", PACKED)),
    "MIME with a part that names the boundary": mime(
        SCRIPT_PART, ("Content-Type: text/plain", "see --BOUNDARY\n --BOUNDARY")
    ),
    "Terraform": terraform((CONFIG_KIND, f"---\n{CONFIG}")),
    "Terraform with several parts": terraform((CONFIG_KIND, f"---\n{CONFIG}"), ("text/x-shellscript", SCRIPT)),
    "Terraform with a boundary of its own": terraform((CONFIG_KIND, CONFIG), boundary="//"),
    "Terraform without parts": terraform(boundary="MIMEBOUNDARY").replace("\r\n\r\n\r\n--", "\r\n\r\n--"),
    "Terraform with gzip in base64": terraform((CONFIG_KIND, PACKED)),
}
TEXTS = {"nothing": "", **PLAIN, **MESSAGES}


NODES = "kind: EC2NodeClass\nmetadata: {name: gpu}\n"


def in_file(text: str) -> gitops.ManifestPlace:
    return gitops.find(text, "nodes.yaml", kinds=("EC2NodeClass",))[0]


def by_go(text: str) -> list[tuple[str, bytes]]:
    return [(each.headers.get("content-type", ""), each.content) for each in nodeadm.parts(text.encode())]


def by_python(text: str) -> list[tuple[str, bytes]]:
    message = email.message_from_bytes(text.encode())
    assert not message.defects
    assert b"mime-version:" in text.encode()[:4096].lower(), "else cloud-init takes it for no MIME message"
    parts = [each for each in message.walk() if not each.is_multipart()]
    return [(str(each["content-type"]), each.get_payload().encode()) for each in parts]  # type: ignore[union-attr]


@dataclass(frozen=True)
class Config:
    """What nodeadm makes of user data, or what it says against it."""

    config: Mapping[str, Any] | None
    error: str = ""

    @classmethod
    def of(cls, text: str) -> Config:
        try:
            return cls(nodeadm.node_config(text.encode()))
        except nodeadm.Refused as error:
            return cls(None, str(error))


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_both_readers_find_our_parts_first_and_all_others_as_they_were(text: str) -> None:
    with_ours = with_parts(text, OURS)
    found = by_go(with_ours)
    assert [content.decode() for _, content in found[:3]] == [MOUNT, HYDRATE, KEEP_STORE], "with LF, byte for byte"
    before = by_go(text) if text in MESSAGES.values() else [(found[3][0], text.encode())] if text else []
    assert found[3:] == before
    assert [(kind, body.rstrip()) for kind, body in by_python(with_ours)] == [
        (kind, body.rstrip()) for kind, body in found
    ]
    assert unreadable(with_ours) == []
    config, kept = Config.of(text), Config.of(with_parts(text, {"mount": MOUNT}))
    assert kept.config == config.config, config.error


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_going_back_gives_the_very_bytes(text: str) -> None:
    for names in ({"mount"}, {"hydrate"}, {"store"}, {"mount", "store"}, set(NAMES)):
        ours = {name: OURS[name] for name in NAMES if name in names}
        there = with_parts(text, ours)
        assert {name for name in NAMES if part_of(there, name)} == names
        assert with_parts(there, ours) == there
        assert with_parts(there, NOTHING) == text


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_every_target_that_writes_user_data_brings_the_same_and_goes_back(text: str, tmp_path: Path) -> None:
    wanted = with_parts(text, {"mount": MOUNT})
    spec = {"amiFamily": "Custom", "amiSelectorTerms": [{"id": "ami-1"}], **({"userData": text} if text else {})}
    found = {"kind": "EC2NodeClass", "metadata": {"name": "gpu"}, "spec": spec}
    options: Any = {"device": "/dev/xvdb", "disk": {}}

    payload = decide(NodeClass(found), VOLUME, **options).payload
    assert payload["spec"]["userData"] == wanted
    assert "blockDeviceMappings" in payload["spec"], "the snapshot changes in the same write"
    after = gitops.merged(found, payload)
    back = decide_rollback(NodeClass(after), device="/dev/xvdb").payload
    assert back["spec"]["userData"] == (text or None)

    changes = new_data({"UserData": base64.b64encode(text.encode()).decode()}, VOLUME, device="/dev/xvdb")
    assert base64.b64decode(changes["UserData"]).decode() == wanted
    assert "BlockDeviceMappings" in changes
    unmounted = new_data(changes, VOLUME.model_copy(update={"mount": ""}), device="/dev/xvdb")
    assert base64.b64decode(unmounted["UserData"]).decode() == text

    file = tmp_path / "nodes.yaml"
    file.write_text(gitops.change(NODES, in_file(NODES), {"spec": spec}))
    manifest = NodeClassFile(GitopsTarget(file=file))
    for change, says in ((manifest.plan(VOLUME), wanted), (manifest.plan_rollback, text)):
        manifest.write(change() if callable(change) else change)
        assert in_file(file.read_bytes().decode()).data["spec"].get("userData", "") == says

    values = tmp_path / "values.yaml"
    values.write_text(gitops.set_value("nodes: {snapshot: snap-0}\n", "nodes.userData", text, source="values"))
    chart = ValuesFile(GitopsTarget(file=values, snapshot_at="nodes.snapshot", user_data_at="nodes.userData"))
    chart.write(chart.plan(VOLUME))
    data = gitops.read(values.read_bytes().decode(), source="values")
    assert gitops.value_at(data, ("nodes", "userData")) == wanted


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=200))
def test_any_script_comes_back(body: str) -> None:
    script = "#!/bin/sh\n" + body
    assert with_parts(with_parts(script, OURS), NOTHING) == script


@given(
    st.lists(st.text("ab-\r\n \t=", max_size=30), min_size=1, max_size=3),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
)
def test_any_message_that_go_reads_is_read_with_our_parts_and_comes_back(
    bodies: list[str], end: str, by_terraform: bool
) -> None:
    if by_terraform:
        text = terraform(*(("text/plain", body) for body in bodies), boundary="a-b")
    else:
        head = f'MIME-Version: 1.0{end}Content-Type: multipart/mixed; boundary="a-b"{end}{end}'
        text = (
            head
            + "".join(f"--a-b{end}Content-Type: text/plain{end}{end}{body}{end}" for body in bodies)
            + f"--a-b--{end}"
        )
    assert with_parts(with_parts(text, OURS), NOTHING) == text
    try:
        before = by_go(text)
    except nodeadm.Refused:
        assert unreadable(text)
        return
    assert by_go(with_parts(text, OURS))[3:] == before


TOLD = {
    "an empty line before the MIME header": ("\n" + mime(CONFIG_PART), "begins with an empty line"),
    "a boundary that wants quotes": (mime(CONFIG_PART, boundary="//").replace('"//"', "//"), "boundary in quotes"),
    "a boundary with CRLF among others": (
        mime(CONFIG_PART, SCRIPT_PART).replace("--BOUNDARY--\n", "--BOUNDARY--\r\n"),
        "one line end",
    ),
    "a boundary with LF among others": (
        mime(CONFIG_PART, SCRIPT_PART, end="\r\n").replace(
            "--BOUNDARY\r\nContent-Type: text", "--BOUNDARY\nContent-Type: text"
        ),
        "one line end",
    ),
    "no last boundary": (mime(CONFIG_PART).replace("--BOUNDARY--\n", ""), "last boundary"),
    "a tab in a NodeConfig": (CONFIG + "\t\n", "line 6: a tab"),
    "a tab in the NodeConfig of a message": (mime((f"Content-Type: {CONFIG_KIND}", CONFIG + "\t\n")), "line 6: a tab"),
}


@pytest.mark.parametrize(("text", "says"), TOLD.values(), ids=TOLD)
def test_what_nodeadm_refuses_before_parbake_touches_it_is_told(text: str, says: str) -> None:
    assert Config.of(text).error
    assert [says in each for each in unreadable(text)] == [True]
    assert [says in each for each in unreadable(with_parts(text, {"mount": MOUNT}))] == [True]
    assert with_parts(with_parts(text, {"mount": MOUNT}), NOTHING) == text
    data = {"UserData": base64.b64encode(text.encode()).decode()}
    assert new_data(data, VOLUME, device="/dev/xvdb")
    found = {"kind": "EC2NodeClass", "metadata": {}, "spec": {"amiFamily": "AL2023", "userData": text}}
    change = decide(NodeClass(found), VOLUME, device="/dev/xvdb", disk={})
    assert [says in each for each in change.refusals] == [True]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_nothing_that_nodeadm_reads_is_told_of(text: str) -> None:
    if Config.of(text).config is not None:
        assert unreadable(text) == []


def test_karpenter_takes_mime_in_small_letters_for_a_script() -> None:
    small = MESSAGES["MIME in small letters"]
    assert unreadable(small) == []
    assert ["for a script" in each for each in unreadable(small, by_karpenter=True)] == [True]
    for family, told in (("AL2023", True), ("Custom", False)):
        found = {"kind": "EC2NodeClass", "metadata": {}, "spec": {"amiFamily": family, "userData": small}}
        change = decide(NodeClass(found), VOLUME, device="/dev/xvdb", disk={})
        assert bool(change.refusals) is told


@pytest.mark.parametrize("text", [BOTTLEROCKET, POWERSHELL], ids=["Bottlerocket", "Windows"])
def test_what_is_no_mime_message_and_cannot_be_a_part_of_one_stays_or_is_refused(text: str) -> None:
    assert with_parts(text, NOTHING) == text
    with pytest.raises(InputError, match="unknown format"):
        with_parts(text, OURS)
    family = "Bottlerocket" if text == BOTTLEROCKET else "Windows2022"
    found = {"kind": "EC2NodeClass", "metadata": {}, "spec": {"amiFamily": family, "userData": text}}
    change = decide(NodeClass(found), VOLUME, device="/dev/xvdb", disk={})
    assert "userData" not in change.payload["spec"]
    assert unreadable(text) == []


@pytest.mark.parametrize("packed", [gzip.compress(MESSAGES["Terraform"].encode(), mtime=0), b"\xff\xfe"])
def test_what_is_packed_is_refused_where_a_part_would_come_in(packed: bytes) -> None:
    """Terraform's ``cloudinit_config`` packs unless it is told ``gzip = false``."""
    data = {"UserData": base64.b64encode(packed).decode()}
    with pytest.raises(InputError, match="not text") as refused:
        new_data(data, VOLUME, device="/dev/xvdb")
    assert "gzip = false" in refused.value.hint
    assert "UserData" not in new_data(data, VOLUME.model_copy(update={"mount": ""}), device="/dev/xvdb")
