"""A bucket as the store: the first record wins there too, by S3's conditional writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from parbake import records
from parbake.core.errors import AwsError, AwsNotFound, EnvironmentProblem
from parbake.records.store import need_conditional_writes, open_store
from standins.aws.boto_clients import raw
from standins.aws.interceptor import Between, refuse
from standins.shared_bakes import PASSED, Machine, content
from tests.aws.conftest import REGION

pytestmark = pytest.mark.usefixtures("aws_mock")

BUCKET = "shop-parbake"
ADDRESS = f"s3://{BUCKET}/nodes"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Machine, Machine]:
    raw("s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": REGION})
    return Machine(tmp_path / "one", ADDRESS), Machine(tmp_path / "two", ADDRESS)


@pytest.fixture
def between(monkeypatch: pytest.MonkeyPatch) -> Between:
    standing = Between()
    standing.install(monkeypatch)
    return standing


def test_objects_are_put_if_absent_and_replaced_if_unchanged(pair: tuple[Machine, Machine]) -> None:
    store = pair[0].store
    assert store.url == ADDRESS
    assert store.get("x") is None
    assert not store.replace("x", b"new", '"0"')
    assert store.add("x", b"one")
    assert not store.add("x", b"other")
    held = store.get("x")
    assert held is not None
    assert held.content == b"one"
    assert store.replace("x", b"two", held.version)
    assert not store.replace("x", b"three", held.version)
    assert [(each.name, each.size) for each in store.list("")] == [("x", 3)]
    assert raw("s3").get_object(Bucket=BUCKET, Key="nodes/x")["Body"].read() == b"two"
    store.remove("x")
    assert list(store.list("")) == []
    need_conditional_writes(store)


def test_machines_share_bytes_records_and_verdicts(pair: tuple[Machine, Machine]) -> None:
    one, two = pair
    made = one.baked("app", content(1), at=1)
    assert one.shared.put(made) == made
    assert two.shared.put(two.baked("app", content(2), at=2)) == made
    assert two.files() == one.files()
    proven = made.model_copy(update={"verdict": PASSED})
    records.write(two.output, proven)
    assert two.shared.put(proven) == proven
    one.shared.fetch(made.artefact)
    assert records.read(one.output / made.file_name) == proven
    assert [record.artefact for record in one.shared.records()] == [made.artefact]
    one.shared.remove([made.artefact])
    assert two.shared.find(made.artefact) is None


def test_a_conflict_of_two_writers_is_tried_again(pair: tuple[Machine, Machine], between: Between) -> None:
    left = 2

    def conflict(_: str, operation: str, __: dict[str, Any]) -> None:
        nonlocal left
        if operation == "PutObject" and left:
            left -= 1
            raise refuse("ConditionalRequestConflict", "The conditional request cannot succeed", operation)

    between.before.append(conflict)
    store = pair[0].store
    assert store.add("x", b"one")
    left = 99
    with pytest.raises(AwsError, match="other machines keep writing y at the same time"):
        store.add("y", b"one")


def test_a_server_without_conditions_is_refused(pair: tuple[Machine, Machine], between: Between) -> None:
    def answer(_: str, operation: str, arguments: dict[str, Any]) -> None:
        if "IfNoneMatch" in arguments:
            raise refuse("NotImplemented", "A header you provided implies functionality", operation)

    between.before.append(answer)
    with pytest.raises(EnvironmentProblem, match="has no conditional writes"):
        pair[0].store.add("x", b"one")


def test_no_bucket_is_told() -> None:
    missing = open_store("s3://no-such-bucket/x", REGION)
    with pytest.raises(AwsNotFound, match="there is no bucket no-such-bucket"):
        missing.get("x")
    with pytest.raises(AwsNotFound, match="there is no bucket no-such-bucket"):
        list(missing.list(""))
    assert missing.url == "s3://no-such-bucket/x"
    assert open_store("s3://no-such-bucket").url == "s3://no-such-bucket"


def test_no_rights_are_told(pair: tuple[Machine, Machine], between: Between) -> None:
    def answer(_: str, operation: str, __: dict[str, Any]) -> None:
        raise refuse("AccessDenied", "Access Denied", operation)

    between.before.append(answer)
    with pytest.raises(AwsError, match="Access Denied"):
        pair[0].store.get("x")
