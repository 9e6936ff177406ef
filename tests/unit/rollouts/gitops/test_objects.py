from __future__ import annotations

import pytest

from parbake.core.errors import InputError
from parbake.rollouts.gitops import change, find, parse_path, patched_values, read, set_value, the_one, value_at
from parbake.rollouts.gitops.objects import operations
from standins.nodeclasses import NODE_CLASS, changed

KINDS = {"EC2NodeClass"}
SEVERAL = f"""\
apiVersion: karpenter.sh/v1
kind: NodePool
metadata: {{name: search}}
---
{NODE_CLASS}---
apiVersion: karpenter.k8s.aws/v1
kind: EC2NodeClass
metadata: {{name: other}}
spec: {{amiSelectorTerms: [{{alias: al2023@latest}}]}}
"""
PATCH = {"spec": {"amiSelectorTerms": [{"id": "ami-2"}]}}


def test_an_object_among_several_documents() -> None:
    place = the_one(find(SEVERAL, "nodes.yaml", kinds=KINDS, name="other"), "EC2NodeClass other")
    assert (place.document, place.api_version) == (2, "karpenter.k8s.aws/v1")
    assert changed(SEVERAL, change(SEVERAL, place, PATCH)) == [
        "-spec: {amiSelectorTerms: [{alias: al2023@latest}]}",
        "+spec: {amiSelectorTerms: [{id: ami-2}]}",
    ]


def test_candidates_are_named() -> None:
    twice = f"{SEVERAL}---\nkind: EC2NodeClass\nmetadata: {{name: other}}\n"
    with pytest.raises(InputError) as caught:
        the_one(find(twice, "base/nodes.yaml", kinds=KINDS, name="other"), "EC2NodeClass other")
    assert caught.value.message.splitlines()[1:] == [
        "  base/nodes.yaml, line 26: EC2NodeClass other",
        "  base/nodes.yaml, line 31: EC2NodeClass other",
    ]
    with pytest.raises(InputError, match="no manifest describes EC2NodeClass gone"):
        the_one(find(twice, "base/nodes.yaml", kinds=KINDS, name="gone"), "EC2NodeClass gone")
    assert {place.name for place in find(twice, "base/nodes.yaml", kinds=KINDS)} == {"search", "other"}


def test_what_is_no_yaml_is_passed_over() -> None:
    for text in ("kind: {{ .Values.kind }}\n", "a: ["):
        assert not find(text, "chart/templates/x.yaml", kinds=KINDS)


def test_items_of_a_list() -> None:
    text = "apiVersion: v1\nkind: List\nitems:\n  - kind: EC2NodeClass # one\n    metadata: {name: a}\n"
    place = the_one(find(text, "list.yaml", kinds=KINDS), "any")
    assert change(text, place, {"spec": {"role": "r"}}) == f"{text}    spec:\n      role: r\n"


STRATEGIC = """\
resources: [../base]
patches:
  # our own image
  - patch: |-
      apiVersion: karpenter.k8s.aws/v1
      kind: EC2NodeClass
      metadata: {name: search}
      spec:
        # which
        amiSelectorTerms:
          - id: ami-1  # parbake
  - path: sizes.yaml
    target: {kind: EC2NodeClass, name: search}
"""
OPERATIONS = """\
- op: replace
  path: /spec/role   # kept
  value: node
- op: add
  path: /spec/amiSelectorTerms
  value: [{id: ami-1}]
"""


def test_a_strategic_merge_patch_inside_a_kustomization() -> None:
    place = the_one(find(STRATEGIC, "prod/kustomization.yaml", kinds=KINDS, name="search"), "it")
    assert str(place) == "prod/kustomization.yaml, line 1, patches[0].patch: EC2NodeClass search"
    assert changed(STRATEGIC, change(STRATEGIC, place, PATCH)) == [
        "-          - id: ami-1  # parbake",
        "+          - id: ami-2  # parbake",
    ]


def test_a_json_patch_inside_a_kustomization() -> None:
    inner = "".join(f"      {line}\n" for line in OPERATIONS.splitlines())
    text = f"kind: Kustomization\npatches:\n  - target: {{kind: EC2NodeClass, name: x}}\n    patch: |\n{inner}"
    place = the_one(find(text, "kustomization.yaml", kinds=KINDS, name="x"), "x")
    patch = {**PATCH, "metadata": {"annotations": {"parbake.dev/previous": "ami-1"}}}
    assert changed(text, change(text, place, patch)) == [
        "-        value: [{id: ami-1}]",
        "+        value: [{id: ami-2}]",
        "+      - op: add",
        "+        path: /metadata/annotations/parbake.dev~1previous",
        "+        value: ami-1",
    ]


def test_what_a_json_patch_says() -> None:
    ops = [
        {"op": "add", "path": "/spec/a~1b", "value": 1},
        {"op": "replace", "path": "/spec/c", "value": {"d": [2]}},
        {"op": "replace", "path": "/spec/list/0", "value": 3},
        {"op": "remove", "path": "/spec/e"},
        {"op": "add", "path": "", "value": 4},
        "no operation",
    ]
    assert patched_values(ops) == {"spec": {"a/b": 1, "c": {"d": [2]}}}
    assert patched_values("no list") == {}


@pytest.mark.parametrize(
    ("ops", "patch", "result"),
    [
        ([], {"spec": {"a": 1}}, [{"op": "add", "path": "/spec/a", "value": 1}]),
        ([{"op": "add", "path": "/spec", "value": {"b": 2}}], {"spec": {"a": 1}},
         [{"op": "add", "path": "/spec", "value": {"b": 2, "a": 1}}]),
        ([{"op": "replace", "path": "/spec/a", "value": 1}], {"spec": {"a": None}},
         [{"op": "remove", "path": "/spec/a"}]),
        ([{"op": "remove", "path": "/spec/a"}], {"spec": {"a": None}}, [{"op": "remove", "path": "/spec/a"}]),
        ([{"op": "test", "path": "/spec/a", "value": 0}], {"spec": {"a": 1}},
         [{"op": "test", "path": "/spec/a", "value": 0}, {"op": "add", "path": "/spec/a", "value": 1}]),
        ([], {"m": {"a/b~c": []}}, [{"op": "add", "path": "/m/a~1b~0c", "value": []}]),
    ],
)  # fmt: skip
def test_operations_that_do_what_a_merge_patch_does(
    ops: list[object], patch: dict[str, object], result: object
) -> None:
    assert operations(ops, patch) == result


def test_values_of_a_chart() -> None:
    values = "# defaults\nnodeClass:\n  ami: 'ami-1'   # baked\n  zones: [a, b]\n"
    after = set_value(values, "nodeClass.ami", "ami-2")
    assert after == values.replace("ami-1", "ami-2")
    after = set_value(values, r"nodeClass.annotations.parbake\.dev/previous", "ami-1")
    assert after == values + "  annotations:\n    parbake.dev/previous: ami-1\n"
    assert set_value(values, "nodeClass.zones[1]", "c") == values.replace("a, b", "a, c")
    assert set_value("", "a.b[0].c", 1) == "a:\n  b:\n    - c: 1\n"
    assert set_value("# only words\n", "a", 1) == "# only words\na: 1\n"
    with pytest.raises(InputError, match=r"nodeClass.ami is the value ami-1"):
        set_value(values, "nodeClass.ami.id", "ami-2", source="values.yaml")


@pytest.mark.parametrize(
    ("path", "where"),
    [("a", ("a",)), ("a.b[10][0].c", ("a", "b", 10, 0, "c")), (r"a\.b.c d", ("a.b", "c d")), (r"a\[0\]", ("a[0]",))],
)
def test_paths(path: str, where: tuple[str | int, ...]) -> None:
    assert parse_path(path) == where


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", "[0]", "a[x]", "a[0", "a]", "a.[0]"])
def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(InputError, match="is not a path"):
        parse_path(path)


def test_reading_a_place() -> None:
    data = read(NODE_CLASS)
    assert value_at(data, ("spec", "amiSelectorTerms", 1, "tags", "team")) == "search"
    assert value_at(data, ("spec", "amiSelectorTerms", 7)) is None
    assert value_at(data, ("spec", "role", "x")) is None
