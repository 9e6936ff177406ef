"""The hydrate part in a node class's user data: it comes first, all else stays, and it goes without a trace."""

from __future__ import annotations

import base64
import email
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.coldstart.hydrate import user_data
from parbake.core.errors import InputError
from parbake.rollouts.userdata import part_of, shown, with_part

ONE, TWO = user_data("parbake-hydrate 1\nranges 0\n"), user_data("parbake-hydrate 1\nranges 1\n0 4096\n")
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
    once = with_part(text, ONE)
    found = parts(once)
    assert [kind for kind, _ in found] == ["text/cloud-boothook", *kinds]
    assert found[0][1].rstrip() == ONE.rstrip(), "a boothook must begin with its first line"
    assert part_of(once) == ONE
    assert with_part(once, ONE) == once
    assert part_of(with_part(once, TWO)) == TWO, "another artefact's list replaces it"
    assert len(parts(with_part(once, TWO))) == 1 + len(kinds)
    assert with_part(once, "") == text
    assert with_part(text, "") == text
    for (_, payload), body in zip(
        found[1:], [text] if text and text not in {MIME} and len(kinds) == 1 else [], strict=False
    ):
        assert payload.rstrip("\n") == body.rstrip("\n")


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_characters="\r"), max_size=200))
def test_any_script_comes_back(body: str) -> None:
    script = "#!/bin/sh\n" + body
    assert with_part(with_part(script, ONE), "") == script


def test_what_people_see_is_short() -> None:
    lines = shown(with_part("#!/bin/sh\n", ONE))
    assert any(line.startswith("(hydrate, ") for line in lines)
    assert sum(len(line) for line in lines) < 500
    assert shown("a\nb") == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[settings.kubernetes]\n", "no known kind"),
        ("H4sIAAAA", "no known kind"),
        ("Content-Type: text/plain\n\nx", "has no parts"),
        ('MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary="a"\n\n', "has no parts"),
    ],
)
def test_what_is_not_known_is_refused(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        with_part(text, ONE)


def test_the_list_is_in_it() -> None:
    packed = ONE.split("<<'END'")[2].split("END")[0].partition("\n")[2]
    assert gzip.decompress(base64.b64decode(packed)).startswith(b"parbake-hydrate 1")
