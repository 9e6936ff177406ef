"""Amazon ECR: which hosts belong to it, and how AWS lets one in. boto3 is imported only when AWS is asked.

Sources: amazon-ecr-credential-helper (host names of all partitions); ECR and ECR Public API, GetAuthorizationToken (a
base64 ``AWS:password`` that lives 12 hours; ECR Public signs in us-east-1 alone).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from parbake.core.errors import Denied, EnvironmentProblem, InputError
from parbake.core.extras import how_to_add
from parbake.core.model import RegistryOptions
from parbake.core.roles import Role, session

_PUBLIC = frozenset({"public.ecr.aws", "ecr-public.aws.com"})
_PUBLIC_REGION = "us-east-1"
_ACCOUNT = re.compile(r"[0-9]{12}")
_REGION = re.compile(r"[a-z]{2,}(-[a-z0-9]+)+")
# The registry's own labels behind the account: the classic and the dual-stack (IPv6) form, each also as FIPS endpoint.
_SERVICES = {"dkr.ecr": False, "dkr.ecr-fips": True, "dkr-ecr": False, "dkr-ecr-fips": True}
_DOMAINS = (
    "amazonaws.com", "amazonaws.com.cn", "amazonaws.eu", "on.aws", "on.amazonwebservices.com.cn",
    "c2s.ic.gov", "sc2s.sgov.gov", "cloud.adc-e.uk", "csp.hci.ic.gov",
)  # fmt: skip

_LOGIN_HINT = "the role or user needs ecr:GetAuthorizationToken (and ecr:BatchGetImage, ecr:GetDownloadUrlForLayer)"
_CREATE_HINT = "the role or user needs ecr:CreateRepository and ecr:TagResource; or make the repository beforehand"
_OVER = frozenset({"ExpiredTokenException", "ExpiredToken", "RequestExpired", "UnrecognizedClientException"})
_OVER_HINT = "these AWS credentials have expired or are unknown to AWS: renew them (aws sso login)"
PULL_THROUGH = (
    "check the spelling; a pull-through cache rule makes its repositories when they are first pulled from, for which "
    "the role or user needs ecr:CreateRepository and ecr:BatchImportUpstreamImage"
)
"""What may be missing where an ECR registry has no repository (ECR user guide, "Pull through cache")."""


@dataclass(frozen=True, slots=True)
class EcrHost:
    """What an ECR host name says."""

    region: str
    account: str = ""
    fips: bool = False
    dual_stack: bool = False
    public: bool = False


def parse(host: str) -> EcrHost | None:
    """Return what the host name of an ECR registry says; None when it is none."""
    name = host.lower().removesuffix(":443")
    if name in _PUBLIC:
        return EcrHost(_PUBLIC_REGION, public=True)
    account, _, rest = name.partition(".")
    if not _ACCOUNT.fullmatch(account):
        return None
    for service, fips in _SERVICES.items():
        region, _, domain = rest.removeprefix(f"{service}.").partition(".")
        if rest.startswith(f"{service}.") and domain in _DOMAINS and _REGION.fullmatch(region):
            return EcrHost(region, account, fips=fips, dual_stack=service.startswith("dkr-"))
    return None


def login(host: str, target: EcrHost, role: Role | None = None) -> tuple[str, str]:
    """Return user and password for an ECR registry, as the caller or in a role.

    Raises EnvironmentProblem (no boto3), Denied (AWS says no).
    """
    with _told(host, "issued no registry token", _LOGIN_HINT, role) as client:
        data = client("ecr-public" if target.public else "ecr", target).get_authorization_token()["authorizationData"]
    token = (data if target.public else data[0])["authorizationToken"]
    username, _, password = base64.b64decode(token).decode().partition(":")
    return username, password


def ensure_repository(host: str, repository: str, options: RegistryOptions, role: Role | None = None) -> bool:
    """Make sure that a private ECR repository exists, before a push; return whether it was made now.

    Nothing is done for other registries, for ECR Public (whose repositories have a page to fill in), and where
    ``options.create`` is off. One that exists is left as it is. AWS is asked in ``role``, if there is one. Raises
    EnvironmentProblem (no boto3), Denied, InputError (it would lie in a pull-through cache).
    """
    target = parse(host)
    if target is None or target.public or not options.create:
        return False
    with _told(host, f"did not create the repository {repository}", _CREATE_HINT, role) as client:
        ecr = client("ecr", target)
        try:
            ecr.describe_repositories(registryId=target.account, repositoryNames=[repository])
        except ecr.exceptions.RepositoryNotFoundException:
            pass
        except ecr.exceptions.ClientError:
            return False  # who may push need not be allowed to look: the push will tell
        else:
            return False
        _refuse_cached(ecr, target, host, repository)
        try:
            ecr.create_repository(
                registryId=target.account,
                repositoryName=repository,
                imageScanningConfiguration={"scanOnPush": options.scan_on_push},
                imageTagMutability="IMMUTABLE" if options.immutable_tags else "MUTABLE",
                tags=[{"Key": "parbake:managed", "Value": "repository"}],
            )
        except ecr.exceptions.RepositoryAlreadyExistsException:
            return False  # another run was faster
    return True


def _refuse_cached(ecr: Any, target: EcrHost, host: str, repository: str) -> None:
    """Raise InputError for a repository that a pull-through cache rule makes when it is pulled from, and nobody else.

    A rule for all (``ROOT``) leaves room for one's own.
    """
    try:
        rules = [
            rule
            for page in ecr.get_paginator("describe_pull_through_cache_rules").paginate(registryId=target.account)
            for rule in page.get("pullThroughCacheRules", ())
        ]
    except ecr.exceptions.ClientError:
        return  # who may push need not be allowed to look
    for rule in rules:
        if repository.startswith(f"{rule['ecrRepositoryPrefix']}/"):
            raise InputError(
                f"{host}/{repository}: what is below {rule['ecrRepositoryPrefix']} is a cache of"
                f" {rule.get('upstreamRegistryUrl', 'another registry')}, and does not accept pushes",
                hint="name the built image differently",
            )


@contextmanager
def _told(host: str, what: str, hint: str, role: Role | None) -> Iterator[Callable[[str, EcrHost], Any]]:
    """Yield what makes clients, and turn AWS's errors into ours."""
    try:
        import boto3  # noqa: F401 (said here where it is missing)
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise EnvironmentProblem(
            f"{host}: boto3 is not installed, so AWS cannot be asked for a token",
            hint=f"{how_to_add('aws')}; or log in to the registry with docker, podman or skopeo",
        ) from error

    def client(service: str, target: EcrHost) -> Any:
        config = Config(
            region_name=target.region,
            use_fips_endpoint=target.fips,
            use_dualstack_endpoint=target.dual_stack,
            connect_timeout=10,
            read_timeout=30,
            retries={"mode": "standard", "total_max_attempts": 4},
        )
        return session(role, target.region).client(service, config=config)

    try:
        yield client
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        raise Denied(f"{host}: AWS {what}: {code}", hint=_OVER_HINT if code in _OVER else hint) from error
    except BotoCoreError as error:
        raise Denied(
            f"{host}: AWS {what}: {error}",
            hint="give AWS credentials (AWS_PROFILE, an instance role), or log in with `aws ecr get-login-password`",
        ) from error
