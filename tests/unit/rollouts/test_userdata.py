"""parbake's parts in a node's user data: they come first, all else stays, and they go without a trace."""

from __future__ import annotations

import base64
import email
import gzip
import re
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.coldstart.hydrate import user_data
from parbake.core.errors import InputError
from parbake.rollouts import mount
from parbake.rollouts.userdata import NAMES, part_of, shown, too_large, with_parts
from standins.hydrated import brought

ONE, TWO = user_data("parbake-hydrate 1\nranges 0\n"), user_data("parbake-hydrate 1\nranges 1\n0 4096\n")
UUID = "f9627715-c4f7-59b4-ae1d-f5843b66a0aa"
MOUNT = mount.user_data("localhost/kubernetes/pause:latest", uuid=UUID)
NOTHING = dict.fromkeys(NAMES, "")
CONFIG = "apiVersion: node.eks.aws/v1alpha1\nkind: NodeConfig\nspec: {}\n"
MIME = (
    'MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="//"\n\n'
    "--//\nContent-Type: text/x-shellscript\n\n#!/bin/sh\necho --//\n\n--//\nContent-Type: application/node.eks.aws\n\n"
    f"{CONFIG}\n--//--\n"
)
GIVEN = {
    "": [],
    "#!/bin/bash\necho hello": ["text/x-shellscript"],
    "#!/bin/bash\necho hello\n": ["text/x-shellscript"],
    "#cloud-config\nruncmd: []\n": ["text/cloud-config"],
    "#cloud-boothook\n#!/bin/sh\n": ["text/cloud-boothook"],
    CONFIG: ["application/node.eks.aws"],
    MIME: ["text/x-shellscript", "application/node.eks.aws"],
    MIME.replace("MIME-Version: 1.0\n", "").replace('"//"', "x").replace("--//", "--x"): [
        "text/x-shellscript",
        "application/node.eks.aws",
    ],
}


def parts(text: str) -> list[tuple[str, str]]:
    """Return the parts as cloud-init and Karpenter read them."""
    message = email.message_from_string(text)
    assert message.is_multipart()
    assert not message.defects
    payload = message.get_payload()
    assert isinstance(payload, list)
    return [(part.get_content_type(), str(part.get_payload())) for part in payload]  # type: ignore[union-attr]


@pytest.mark.parametrize(("text", "kinds"), GIVEN.items())
def test_it_comes_first_and_goes_without_a_trace(text: str, kinds: list[str]) -> None:
    once = with_parts(text, {"hydrate": ONE})
    found = parts(once)
    assert [kind for kind, _ in found] == ["text/cloud-boothook", *kinds]
    assert found[0][1].rstrip() == ONE.rstrip(), "a boothook must begin with its first line"
    assert part_of(once, "hydrate") == ONE
    assert with_parts(once, {"hydrate": ONE}) == once
    assert part_of(with_parts(once, {"hydrate": TWO}), "hydrate") == TWO, "another artefact's list replaces it"
    assert len(parts(with_parts(once, {"hydrate": TWO}))) == 1 + len(kinds)
    assert with_parts(once, NOTHING) == text
    assert with_parts(text, NOTHING) == text
    theirs = [body for _, body in parts(text)] if len(kinds) > 1 else [text] * len(kinds)
    assert [body.rstrip("\n") for _, body in found[1:]] == [body.rstrip("\n") for body in theirs]


@pytest.mark.parametrize(("text", "kinds"), GIVEN.items())
def test_what_mounts_comes_before_what_hydrates_whichever_came_first(text: str, kinds: list[str]) -> None:
    both = with_parts(text, {"hydrate": ONE, "mount": MOUNT})
    for once in (both, with_parts(with_parts(text, {"hydrate": ONE}), {"mount": MOUNT})):
        found = parts(once)
        assert [kind for kind, _ in found] == ["text/cloud-boothook"] * 2 + kinds
        assert [found[0][1].rstrip(), found[1][1].rstrip()] == [MOUNT.rstrip(), ONE.rstrip()]
        assert once == both
    assert (part_of(both, "mount"), part_of(both, "hydrate")) == (MOUNT, ONE)
    assert with_parts(both, {"mount": ""}) == with_parts(text, {"hydrate": ONE})
    assert with_parts(both, NOTHING) == text


def test_what_mounts_is_a_script_with_a_program_and_a_unit_in_it() -> None:
    assert subprocess.run(["/bin/dash", "-n"], input=MOUNT, text=True, check=False).returncode == 0
    program, unit = (
        gzip.decompress(base64.b64decode(each.split("\nEND\n")[0])).decode()
        for each in re.split(r"base64 -d <<'END' [^\n]*\n", MOUNT)[1:]
    )
    assert program.startswith(f"SANDBOX=localhost/kubernetes/pause:latest\nUUID={UUID}\n")
    assert subprocess.run(["/bin/dash", "-n"], input=program, text=True, check=False).returncode == 0
    assert "Before=containerd.service" in unit
    assert len(MOUNT) < 4096, "EC2 takes 16 KiB of user data, and the list of blocks is in there as well"


@pytest.mark.parametrize("root", ["", "/var/lib/rancher/k3s/agent/containerd"])
def test_the_store_of_k3s_is_a_path_and_its_services_wait(root: str) -> None:
    text = mount.user_data("rancher/mirrored-pause:3.6", root)
    program = gzip.decompress(base64.b64decode(text.split("/etc/parbake/mount.sh\n")[1].split("\nEND")[0])).decode()
    assert (f"\nROOT={root}\n" in program) is bool(root)
    units = re.findall(r"for unit in (.*); do", text)
    assert units == ["containerd" + (" k3s k3s-agent rke2-server rke2-agent" if root else "")]
    assert subprocess.run(["/bin/dash", "-n"], input=text, text=True, check=False).returncode == 0


def test_a_quote_in_the_pause_images_name_stays_text() -> None:
    text = mount.user_data("a'; touch /owned; '")
    program = gzip.decompress(
        base64.b64decode(text.split("<<'END' | gzip -d >/etc/parbake/mount.sh\n")[1].split("\nEND")[0])
    )
    first = program.decode().splitlines()[0]
    assert (
        subprocess.run(
            ["/bin/sh", "-c", f'{first}; printf %s "$SANDBOX"'], text=True, capture_output=True, check=True
        ).stdout
        == "a'; touch /owned; '"
    )


def test_user_data_that_leaves_no_room_is_told() -> None:
    assert too_large("#!/bin/sh\n" + "x" * 15_000, 3072) == [], "nothing of parbake's is in it"
    whole = with_parts("#!/bin/sh\n" + "x" * 15_000, {"mount": MOUNT})
    assert [("mount" in each, "13312" in each) for each in too_large(whole, 3072)] == [(True, True)]


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r"), max_size=200))
def test_any_script_comes_back(body: str) -> None:
    script = "#!/bin/sh\n" + body
    assert with_parts(with_parts(script, {"hydrate": ONE, "mount": MOUNT}), NOTHING) == script


def test_what_people_see_is_short() -> None:
    lines = shown(with_parts("#!/bin/sh\n", {"hydrate": ONE}))
    assert any(line.startswith("(hydrate, ") for line in lines)
    assert sum(len(line) for line in lines) < 500
    assert shown("a\nb") == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[settings.kubernetes]\n", "an unknown format"),
        ("H4sIAAAA", "an unknown format"),
        ("Content-Type: text/plain\n\nx", "has no parts"),
        ('MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="a"\n\n', "has no parts"),
    ],
)
def test_what_is_not_known_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        with_parts(text, {"hydrate": ONE})


def test_the_list_is_in_it() -> None:
    assert brought(ONE)["hydrate.list"].startswith("parbake-hydrate 1")
