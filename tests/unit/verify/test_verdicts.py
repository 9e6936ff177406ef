"""What is said of an image in a store, one small file a case."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parbake.core.model import Descriptor
from parbake.verify.starter import Started
from parbake.verify.store import Seen, judge
from parbake.verify.verify import ImageToVerify, conclude
from standins.plans import image

CASES = sorted(Path(__file__).with_name("cases").glob("*.json"))
INDEX = "application/vnd.oci.image.index.v1+json"


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_was_seen_decides_what_is_wrong(path: Path) -> None:
    case = json.loads(path.read_text())
    fields = case["seen"]
    if "target" in fields:
        fields["target"] = Descriptor(**fields["target"])
    seen = Seen(**{**fields, "missing": tuple(fields.get("missing", ()))})
    expected = None
    if case["expected"]:
        digests = {
            name: Descriptor(media_type=INDEX, digest=digest, size=10) for name, digest in case["expected"].items()
        }
        expected = image(seen.reference).model_copy(update=digests)
    assert list(judge(seen, expected)) == case["problems"]

    started = Started(1.23456, 0.5, "its words", ("it ended with code 7",))
    verdict = conclude(seen, ImageToVerify("app", seen.reference, expected, None), started)
    assert verdict.problems == (*case["problems"], "it ended with code 7")
    assert (verdict.start_seconds, verdict.sandbox_seconds, verdict.output) == (1.235, 0.5, "its words")
    assert verdict.digest == (seen.target.digest if seen.target else "")
    assert conclude(seen, ImageToVerify("app", seen.reference, expected, None), None).start_seconds is None
