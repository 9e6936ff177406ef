"""The judge of user data (``standins.nodeadm``) says what the real nodeadm said.

``nodeadm.json`` is what nodeadm of EKS's AMIs answered on 2 December 2026 to 25 inputs: each as it was, with the part
that mounts a volume (its programs are left out here), and with the part that keeps the store beside it, as parbake
wrote them then, with LF. ``spec`` is what ``nodeadm config dump`` showed, ``error`` what ``config check`` said.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from standins import nodeadm

ANSWERS = json.loads(Path(__file__).with_name("nodeadm.json").read_text())
CASES = {f"{name}-{form}": case for name, forms in ANSWERS.items() for form, case in forms.items()}


def said(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what says nothing."""
    pruned = {key: said(value) if isinstance(value, Mapping) else value for key, value in settings.items()}
    return {key: value for key, value in pruned.items() if value not in ({}, [], "", None)}


@pytest.mark.parametrize("name", CASES)
def test_the_judge_answers_as_nodeadm_did(name: str) -> None:
    case = CASES[name]
    if "spec" in case:
        assert said(nodeadm.node_config(case["user_data"].encode())["spec"]) == said(case["spec"])
        return
    with pytest.raises(nodeadm.Refused) as refused:
        nodeadm.node_config(case["user_data"].encode())
    kind = case["error"].split(": line")[0].split(" in '")[0].split(": cannot unmarshal")[0]
    assert str(refused.value).startswith(kind)


def test_karpenter_refuses_what_it_refused() -> None:
    """Recorded of Karpenter 1.13 as well, for classes with the same user data."""
    made = {name: nodeadm.karpenter_refuses(case["user_data"]) for name, case in CASES.items()}
    head = "creating launch template, parsing custom UserData, "
    crlf = head + 'parsing content, multipart: expecting a new Part; got line "--MIMEBOUNDARY\\r\\n"'
    assert made["terraform-mount"] == crlf
    empty = head + "archive doesn't have Content-Type header, mime: no media type"
    assert made["mime_leading_newline-before"] == made["mime_leading_newline-mount"] == empty
    assert made["terraform-before"] == made["mime_crlf-before"] == made["mime_lower-mount"] == ""


def test_both_verdicts_are_among_the_answers() -> None:
    refused = [case for case in CASES.values() if "error" in case]
    assert (len(CASES), len(refused)) == (73, 18)
