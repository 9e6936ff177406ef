"""Clients: lazily loaded, errors in plain words with a next step."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse, HeadersDict
from botocore.client import BaseClient
from botocore.exceptions import ClientError
from botocore.httpsession import URLLib3Session
from botocore.retries import bucket, standard

from parbake import aws
from parbake.aws import clients
from parbake.aws.errors import CAPACITY, fault
from parbake.core.errors import AwsError, AwsLimit, AwsNoAccess, AwsNotFound, DeadlineExceeded, EnvironmentProblem
from parbake.core.events import Event, Events
from parbake.core.extras import how_to_add
from standins.aws.ebs_direct_in_process import Raw

EXPECTED = {
    "ExpiredToken": (AwsNoAccess, "log in again"),
    "RequestExpired": (AwsNoAccess, "log in again"),
    "UnauthorizedOperation": (AwsNoAccess, "parbake iam"),
    "AccessDeniedException": (AwsNoAccess, "parbake iam"),
    "AuthFailure": (AwsNoAccess, "AWS_PROFILE"),
    "OptInRequired": (AwsNoAccess, "enable the region"),
    "RequestLimitExceeded": (AwsLimit, "throttles"),
    "VcpuLimitExceeded": (AwsLimit, "Service Quotas"),
    "InsufficientInstanceCapacity": (AwsLimit, "aws.instance_types"),
    "InvalidAMIID.NotFound": (AwsNotFound, "aws.region"),
    "InvalidSnapshot.NotFound": (AwsNotFound, "aws.region"),
    "ParameterNotFound": (AwsNotFound, "aws.region"),
    "InvalidKMSKey.InvalidState": (AwsNoAccess, "kms:CreateGrant"),
    "InternalError": (AwsError, "try again"),
}


@pytest.mark.parametrize("code", EXPECTED)
def test_codes_become_errors_with_a_next_step(code: str) -> None:
    error, hint = EXPECTED[code]
    made = fault(code, "what AWS said", "RunInstances (ec2 in eu-west-1)")
    assert type(made) is error
    assert hint in made.hint
    assert "RunInstances" in made.message
    assert code in made.message
    assert made.code == code


def test_capacity_is_told_from_quota() -> None:
    assert "VcpuLimitExceeded" not in CAPACITY


def test_an_encoded_message_is_not_shown() -> None:
    made = fault("UnauthorizedOperation", "You are not authorized. Encoded authorization failure message: AbC", "X")
    assert "AbC" not in made.message


def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(AwsNoAccess, match="no AWS credentials") as caught:
        aws.client("ec2").describe_images()
    assert "aws sso login" in caught.value.hint


def test_no_region(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    with pytest.raises(AwsNoAccess, match="no AWS region"):
        aws.client("ec2")


def test_a_region_that_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_TRIES", 1)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(AwsError, match="cannot be reached") as caught:
        aws.client("ec2", "xx-nowhere-1").describe_images()
    assert "xx-nowhere-1 is a region" in caught.value.hint


def test_no_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(AwsNoAccess, match="nobody") as caught:
        aws.client("ec2")
    assert "AWS_PROFILE" in caught.value.hint


def test_no_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(EnvironmentProblem, match="boto3") as caught:
        aws.client("ec2", "eu-west-1")
    assert caught.value.hint == how_to_add("aws")


def test_boto3_is_loaded_by_nothing_but_a_client() -> None:
    code = "import parbake.cli, parbake.workflows.bake, parbake.aws, sys; sys.exit('boto3' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_call_that_boto3_does_not_have_is_a_mistake() -> None:
    with pytest.raises(AttributeError):
        aws.client("ec2").describe_everything()


@pytest.mark.usefixtures("aws_mock")
def test_calls_and_pages() -> None:
    ec2 = aws.client("ec2")
    vpc = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    assert vpc in [each["VpcId"] for each in ec2.pages("describe_vpcs", "Vpcs")]
    assert aws.client("ec2") is ec2
    assert aws.account() == "123456789012"
    with pytest.raises(AwsNotFound):
        ec2.describe_volumes(VolumeIds=["vol-0123456789abcdef0"])


@pytest.mark.parametrize(("service", "call"), [("ec2", "describe_images"), ("ebs", "start_snapshot")])
@pytest.mark.parametrize(("asked", "tries"), [(0, 8), (1, 1)])
def test_a_call_that_is_throttled_is_tried_so_often_and_no_more(
    monkeypatch: pytest.MonkeyPatch, service: str, call: str, asked: int, tries: int
) -> None:
    """Botocore tries, and nothing above: not a list in pages, not a wait, not what is new and perhaps not known yet."""
    sent = []

    def send(_session: URLLib3Session, request: AWSPreparedRequest) -> AWSResponse:
        sent.append(request)
        error = b"<Response><Errors><Error><Code>RequestLimitExceeded</Code></Error></Errors></Response>"
        body = error if service == "ec2" else b"{}"
        headers = {"x-amzn-ErrorType": "RequestThrottledException"} if service == "ebs" else {}
        return AWSResponse(request.url, 503 if service == "ec2" else 429, HeadersDict(headers), Raw(body))

    monkeypatch.setattr(URLLib3Session, "send", send)
    monkeypatch.setattr(standard.ExponentialBackoff, "delay_amount", lambda *_: 0)
    monkeypatch.setattr(bucket.TokenBucket, "_sleep_amount", lambda *_: 0)
    client = aws.client(service, tries=asked)
    wanted = {"VolumeSize": 1} if service == "ebs" else {}

    def ask() -> Any:
        return getattr(client, call)(**wanted)

    ways: list[Callable[[], Any]] = [
        ask,
        lambda: list(client.pages(call, "Images", **wanted)),
        lambda: aws.wait("it", lambda: aws.Observation(bool(ask())), seconds=5, events=Events()),
        lambda: aws.when_known(ask, "ami-1"),
    ]
    for way in ways:
        sent.clear()
        with pytest.raises(AwsLimit) as caught:
            way()
        assert len(sent) == tries
        assert "throttles" in caught.value.hint


def test_waiting_ends_with_the_value_and_shows_progress() -> None:
    seen: list[Event] = []
    looks = iter(
        [
            aws.Observation(False, "pending", 10),
            aws.Observation(False, "pending", 60),
            aws.Observation(True, value="there"),
        ]
    )
    assert aws.wait("the AMI", lambda: next(looks), seconds=5, events=Events(seen.append)) == "there"
    assert seen[0].kind == "task-start"
    assert seen[-1].kind == "task-end"


def test_waiting_ends_at_once_when_it_never_will_be() -> None:
    with pytest.raises(AwsError, match="the AMI: state failed"):
        aws.wait("the AMI", lambda: aws.Observation(False, failed="state failed"), seconds=5, events=Events())


def test_waiting_ends_at_its_deadline_and_says_what_was_seen() -> None:
    with pytest.raises(DeadlineExceeded, match="last seen: pending") as caught:
        aws.wait("the AMI", lambda: aws.Observation(False, "pending"), seconds=0.01, events=Events(), hint="wait more")
    assert caught.value.hint == "wait more"


def test_what_is_new_may_be_unknown_for_a_while() -> None:
    tries = iter(range(3))

    def look() -> aws.Observation:
        if next(tries) < 2:
            raise AwsNotFound("not there")
        return aws.Observation(True)

    aws.wait("the snapshot", look, seconds=5, events=Events())
    with pytest.raises(AwsNotFound):
        aws.wait("the snapshot", _absent, seconds=5, events=Events(), new=False)


def _absent() -> aws.Observation:
    raise AwsNotFound("not there")


THERE = "arn:aws:iam::210987654321:role/deploy/rollout"


@pytest.mark.usefixtures("aws_mock")
def test_calls_are_made_in_a_role_perhaps_in_another_account(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    call = BaseClient._make_api_call

    def noted(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "AssumeRole":
            asked.append(arguments)
        return call(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", noted)
    own = aws.client("sts")
    with aws.acting_as(THERE, "fleet-7"):
        theirs = aws.client("sts")
        assert theirs is aws.client("sts"), "made once"
        with aws.acting_as(None):
            assert aws.client("sts") is theirs, "nobody says another"
    assert aws.client("sts") is own
    who = theirs.get_caller_identity()
    assert (who["Account"], "assumed-role" in who["Arn"]) == ("210987654321", True)
    theirs.get_caller_identity()
    assert asked == [{"RoleArn": THERE, "RoleSessionName": "parbake", "ExternalId": "fleet-7"}], "asked for once"
    assert own.get_caller_identity()["Account"] == "123456789012"


@pytest.mark.usefixtures("aws_mock")
def test_regions_may_have_roles_of_their_own() -> None:
    with aws.acting_as(None, "fleet-7", places={"us-east-1": THERE}):
        assert (aws.account("us-east-1"), aws.account("eu-west-1")) == ("210987654321", "123456789012")
        assert aws.role_in("us-east-1") == aws.Role(THERE, "fleet-7")
        assert (aws.stranger("us-east-1", "eu-west-1"), aws.stranger("eu-west-1", "eu-west-1")) == ("210987654321", "")
        with aws.acting_as("arn:aws:iam::333333333333:role/target"):  # a target's: it has no places
            assert aws.account("us-east-1") == "333333333333"
            assert aws.stranger("us-east-1", "eu-west-1") == ""
    with aws.acting_as(THERE, places={"us-east-1": f"{THERE}-copies"}):
        assert aws.stranger("us-east-1", "eu-west-1") == "", "another role of the same account"


@pytest.mark.usefixtures("aws_mock")
def test_a_role_that_does_not_trust_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    call = BaseClient._make_api_call

    def refused(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        if operation == "AssumeRole":
            error = {"Code": "AccessDenied", "Message": f"not authorized to perform: sts:AssumeRole on {THERE}"}
            raise ClientError({"Error": error}, operation)
        return call(client, operation, arguments)

    monkeypatch.setattr(BaseClient, "_make_api_call", refused)
    with aws.acting_as(THERE), pytest.raises(AwsNoAccess, match="sts:AssumeRole on arn:aws:iam::210987654321"):
        aws.client("ec2").describe_images(Owners=["self"])
