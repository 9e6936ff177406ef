"""Edits of YAML texts: they say what they should, and everything else stays as its author wrote it."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from parbake.core.errors import InputError
from parbake.rollouts.gitops.edit import merged, put, read, rewrite
from standins.nodeclasses import NODE_CLASS, changed


def merge(text: str, patch: dict[str, Any]) -> str:
    return rewrite(text, merged(read(text), patch))


def test_a_node_class_gets_a_new_image_and_volume_in_one_edit() -> None:
    patch = {
        "metadata": {"annotations": {"parbake.dev/previous": "al2023@latest"}},
        "spec": {
            "amiSelectorTerms": [{"id": "ami-0123456789abcdef0"}],
            "blockDeviceMappings": [
                {"deviceName": "/dev/xvda", "ebs": {"volumeSize": "20Gi", "volumeType": "gp3"}},
                {"deviceName": "/dev/xvdb", "ebs": {"volumeSize": "40Gi", "snapshotID": "snap-01"}},
            ],
        },
    }
    after = merge(NODE_CLASS, patch)
    assert changed(NODE_CLASS, after) == [
        "+  annotations:",
        "+    parbake.dev/previous: al2023@latest",
        "-    - alias: al2023@latest   # moves",
        "-    - tags:",
        '-        team: "search"',
        "+    - id: ami-0123456789abcdef0",
        "+  - deviceName: /dev/xvdb",
        "+    ebs:",
        "+      volumeSize: 40Gi",
        "+      snapshotID: snap-01",
    ]
    assert merge(after, patch) == after


@pytest.mark.parametrize(
    ("where", "value", "lines"),
    [
        (("spec", "role"), "It's", ['-  role: "KarpenterNodeRole"', '+  role: "It\'s"']),
        (("metadata", "name"), "other", ["-  name: search   # named in the NodePool",
                                         "+  name: other   # named in the NodePool"]),
        (("spec", "blockDeviceMappings", 0, "ebs", "volumeType"), "io2",
         ["-    ebs: {volumeSize: 20Gi, volumeType: 'gp3'}  # root",
          "+    ebs: {volumeSize: 20Gi, volumeType: 'io2'}  # root"]),
        (("spec", "blockDeviceMappings", 0, "ebs", "iops"), 3000,
         ["-    ebs: {volumeSize: 20Gi, volumeType: 'gp3'}  # root",
          "+    ebs: {volumeSize: 20Gi, volumeType: 'gp3', iops: 3000}  # root"]),
        (("spec", "userData"), "#!/bin/sh\necho bye\n", ["-    echo hello", "+    echo bye"]),
        (("spec", "amiSelectorTerms", 2), {"name": "x"}, ["+    - name: x"]),
        (("spec", "tags"), {}, ["+  tags: {}"]),
        (("spec", "detailedMonitoring"), True, ["+  detailedMonitoring: true"]),
        (("spec", "amiSelectorTerms", 1, "tags"), None, ["-    - tags:", '-        team: "search"',
                                                         "+    - tags: null"]),
        # Texts that YAML 1.1 (which Kubernetes reads) or 1.2 would take for something else.
        (("spec", "amiFamily"), "on", ["-  amiFamily: AL2023", '+  amiFamily: "on"']),
        (("spec", "amiFamily"), "123456789012", ["-  amiFamily: AL2023", '+  amiFamily: "123456789012"']),
        (("spec", "amiFamily"), "a: b #c", ["-  amiFamily: AL2023", '+  amiFamily: "a: b #c"']),
        (("spec", "amiFamily"), "", ["-  amiFamily: AL2023", '+  amiFamily: ""']),
    ],
)  # fmt: skip
def test_one_value(where: tuple[str | int, ...], value: Any, lines: list[str]) -> None:
    after = put(NODE_CLASS, where, value)
    assert changed(NODE_CLASS, after) == lines
    assert put(after, where, value) == after


@pytest.mark.parametrize(
    ("before", "want", "after"),
    [
        ("a:\nb: 1\n", {"a": {"x": 1}, "b": 1}, "a:\n  x: 1\nb: 1\n"),
        ("a:  # why\nb: 1\n", {"a": {"x": 1}, "b": 1}, "a:  # why\n  x: 1\nb: 1\n"),
        ("a:  # why\n  - x\nb: 1\n", {"a": 5, "b": 1}, "a: 5  # why\nb: 1\n"),
        ("a:\n- x\n- y\nb:\n- z", {"a": ["y"], "b": ["z", "w"]}, "a:\n- y\nb:\n- z\n- w"),
        ("a: []\n", {"a": [{"x": 1, "z": [2]}]}, "a:\n  - x: 1\n    z:\n      - 2\n"),
        ("- a\n- b\n", ["c", "a", "b"], "- c\n- a\n- b\n"),
        ("- - a\n  - b\n- c\n", [["z", "a", "b"], "c"], "- - z\n  - a\n  - b\n- c\n"),
        ("a: 1\nb: 2", {"a": 1}, "a: 1"),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2, "c": [1]}, "a: 1\r\nb: 2\r\nc:\r\n  - 1\r\n"),
        ("{a: 1, b: 2}\n", {"b": 2}, "{b: 2}\n"),
        ("{a: [1, 2], b: 2}\n", {"a": [1]}, "{a: [1]}\n"),
        ('{\n  "a": 1\n}\n', {"a": 1, "b": {"c": ["d"]}}, '{\n  "a": 1,\n  "b": {"c": ["d"]}\n}\n'),
        ('{"a": "x"}', {"a": "yes"}, '{"a": "yes"}'),
        ("a: {}\n", {"a": {"b": 1}}, "a:\n  b: 1\n"),
        ("base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n", {"base": {"x": 1}, "use": {"x": 3, "y": 2}},
         "base: &b {x: 1}\nuse:\n  <<: *b\n  y: 2\n  x: 3\n"),
        ("a: &v one\nb: *v\n", {"a": "one", "b": "two"}, "a: &v one\nb: two\n"),
        ("a: [x, b: 1]\n", {"a": ["x", {"b": 1, "c": 2}]}, "a: [x, {b: 1, c: 2}]\n"),
        ("a: [b: 1, x]\n", {"a": [{"b": {"c": 2}}, "x"]}, "a: [{b: {c: 2}}, x]\n"),
        ("a: [b: 1]\n", {"a": [3]}, "a: [3]\n"),
    ],
)  # fmt: skip
def test_shapes(before: str, want: Any, after: str) -> None:
    assert rewrite(before, want) == after


def test_only_the_document_that_is_meant_changes() -> None:
    text = "# one\na: 1\n---\n# two\na: 1 # here\n...\n---\na: 1\n"
    assert put(text, ("a",), 2, 1) == text.replace("a: 1 # here", "a: 2 # here")


def test_what_aliases_share_is_left_alone() -> None:
    with pytest.raises(InputError, match=r"values.yaml, line 2: first\[0\].id is repeated") as caught:
        put("first:\n  - id: &i ami-1\nsecond: *i\n", ("first", 0, "id"), "ami-2", source="values.yaml")
    assert "write the value out" in caught.value.hint
    # An alias that shall say something else is written out; what it points to stays.
    assert put("a: &x {k: 1}\nb: *x\n", ("b", "j"), 2) == "a: &x {k: 1}\nb:\n  k: 1\n  j: 2\n"
    assert put("a: &x [{k: 1}]\nb: *x\n", ("a", 0, "k"), 2) == "a: &x [{k: 2}]\nb:\n  - k: 1\n"
    with pytest.raises(InputError, match="repeated elsewhere by an alias"):
        rewrite("a: &x {k: 1}\nb: {<<: *x}\n", {"a": {"k": 1}, "b": {"l": 1}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [\n", r"f.yaml, line 1: "),
        ("x: 1\na: {{ .Values.ami }}\n", r"f.yaml, line 2: a template"),
        ("a: 1\na: 2\n", r"f.yaml, line 2: a: the key appears twice"),
    ],
)
def test_texts_that_cannot_be_edited(text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        put(text, ("a",), 1, source="f.yaml")


@pytest.mark.parametrize("where", [("a", "b"), ("l", 3), ("l", "x")])
def test_places_that_cannot_be(where: tuple[str | int, ...]) -> None:
    with pytest.raises(InputError, match="there is no"):
        put("a: 1\nl: [1]\n", where, 1)


def test_merge_patches_are_those_of_the_standard() -> None:
    """The examples of RFC 7396, appendix A, whose result is a mapping."""
    for data, patch, result in [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ]:
        assert merged(data, patch) == result


KEYS = st.sampled_from(["a", "b", "id", "name", "spec", "x y", "on", "1", "k8s.io/role"])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-99, 10**12)
    | st.sampled_from(
        ["", "ami-0a", "1.20", "yes", "a: b", "# no", "it's", 'q"q', "two\nlines\n", " lead", "é", "-", "~"]
    )
    # (ruamel.yaml writes a plain `?x` in braces that it does not read again)
    | st.text(max_size=6).filter(lambda text: text.isprintable() and not text.startswith("?"))
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=12
)
DOCUMENTS = st.dictionaries(KEYS, VALUES, min_size=1, max_size=4)


def dumped(data: Any, *, offset: int, flow: bool | None, newline: str = "\n") -> str:
    yaml = YAML(typ="rt" if flow is False else "safe", pure=True)
    yaml.default_flow_style = flow
    yaml.allow_unicode = True
    if flow is False:
        yaml.indent(mapping=2, sequence=offset + 2, offset=offset)
    stream = io.StringIO()
    yaml.dump(data, stream)
    return stream.getvalue().replace("\n", newline)


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, DOCUMENTS, st.sampled_from([0, 2]), st.sampled_from([True, False]))
def test_any_text_can_be_made_to_say_anything(before: Any, want: Any, offset: int, flow: bool) -> None:
    text = dumped(before, offset=offset, flow=flow)
    after = rewrite(text, want)
    assert read(after) == want
    assert rewrite(after, want) == after
    # What says the same as before does so in the same words.
    assert rewrite(text, read(text)) == text


@settings(max_examples=100, deadline=None)
@given(DOCUMENTS, st.lists(st.sampled_from(["a", "b", "id"]), min_size=1, max_size=3), SCALARS)
def test_comments_stay(data: dict[str, Any], where: list[str], value: Any) -> None:
    text = dumped(data, offset=0, flow=False)
    if any(mark in text for mark in "|>\"'?"):  # a comment cannot be put behind any line of these
        return
    noted = "".join(f"{line} # note {number}\n" for number, line in enumerate(text.splitlines()))
    try:
        after = put(noted, tuple(where), value)
    except InputError:
        return  # below a scalar or a list
    gone = [line for line in noted.splitlines() if line.split(" # note")[1] not in after]
    before = data
    for part in where[:-1]:
        before = before.get(part) or {}
    # Only what a value stood in lines of its own for is gone with it.
    assert bool(gone) <= isinstance(before.get(where[-1]), dict | list)


def test_json_stays_json() -> None:
    before = json.dumps({"spec": {"amiSelectorTerms": [{"id": "ami-1"}], "tags": {}}}, indent=2)
    after = merge(before, {"spec": {"amiSelectorTerms": [{"id": "ami-2"}], "tags": {"a": "yes", "b": None}, "n": [1]}})
    assert json.loads(after) == {"spec": {"amiSelectorTerms": [{"id": "ami-2"}], "tags": {"a": "yes"}, "n": [1]}}
    assert changed(before, after)[0] == '-        "id": "ami-1"'
