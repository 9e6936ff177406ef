from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from parbake.core.errors import BadReference
from parbake.core.model import Frozen
from parbake.core.reference import Reference

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("text", "normalised"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("index.docker.io/user/app:1", "docker.io/user/app:1"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app", "localhost:5000/app:latest"),
        ("registry.example.com/a/b/c:v1.2_3-4", "registry.example.com/a/b/c:v1.2_3-4"),
        ("registry.example.com:443/a@" + DIGEST, "registry.example.com:443/a@" + DIGEST),
        ("a.io/b:1@" + DIGEST, "a.io/b:1@" + DIGEST),
        ("[::1]:5000/app:1", "[::1]:5000/app:1"),
        ("UPPER.example/app:1", "UPPER.example/app:1"),
        ("1234.dkr.ecr.eu-west-1.amazonaws.com/team/app__x:1", "1234.dkr.ecr.eu-west-1.amazonaws.com/team/app__x:1"),
    ],
)
def test_normalises_as_containerd_does(text: str, normalised: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == normalised
    assert Reference.parse(normalised) == reference


@pytest.mark.parametrize(
    "text",
    [
        "", ":", "a:", "a/", "/a", "a//b", "App", "app:ta g", "app@sha256:12", "app@md5:" + "0" * 32, "a b",
        "app:" + "x" * 129,
        "-app", "app-", "a..b", "../etc", "app\n", "ex ample.com/a", "registry.example.com/" + "a" * 240, "http://x.io/app",
    ],
)  # fmt: skip
def test_refuses_what_is_no_reference(text: str) -> None:
    with pytest.raises(BadReference) as caught:
        Reference.parse(text)
    assert caught.value.exit_code == 2


def test_local_means_here_only() -> None:
    assert Reference.parse("localhost/app:1").is_local
    assert not Reference.parse("localhost:5000/app:1").is_local


def test_with_digest_drops_the_tag() -> None:
    assert Reference.parse("a.io/b:1").with_digest(DIGEST) == f"a.io/b@{DIGEST}"


class _Model(Frozen):
    image: Reference
    seen: dict[Reference, int]


@given(st.text(max_size=80) | st.from_regex(r"[a-z]{1,3}(\.io)?/[a-z]{1,3}(:[0-9])?", fullmatch=True))
def test_any_text_parses_or_is_refused_and_parsing_is_stable(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except BadReference:
        return
    assert Reference.parse(str(reference)) == reference
    assert reference.written == text
    model = _Model.model_validate({"image": text, "seen": {text: 1}})
    assert model == _Model(image=reference, seen={reference: 1})
    assert model.model_dump(mode="json") == {"image": str(reference), "seen": {str(reference): 1}}
    assert _Model.model_validate_json(model.model_dump_json()) == model


@pytest.mark.parametrize(("value", "said"), [("Not One", "a repository is lower case"), (7, "a valid string")])
def test_a_model_says_what_is_no_reference(value: object, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _Model.model_validate({"image": value, "seen": {}})
