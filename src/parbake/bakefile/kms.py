"""KMS keys in the Bakefile: one for all regions, or one for each.

Sources: KMS API reference, "KeyId" (a key's id and ARN are of one region); KMS developer guide, "Multi-Region keys in
AWS KMS" (related keys have the same id, which begins with ``mrk-``); EC2 API reference, CopyImage and CopySnapshot
(a key that is not there makes the copy fail when it is long under way).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from parbake.bakefile.values import REGION, described, wrong

_ARN = re.compile(r"arn:aws[a-z-]*:kms:(?P<region>[a-z0-9-]+):[0-9]{12}:(?P<name>(key|alias)/[A-Za-z0-9/_-]+)")
_KEY = re.compile(rf"(?P<alias>alias/[A-Za-z0-9/_-]+)|(?P<id>(mrk-)?[0-9a-f-]{{32,36}})|{_ARN.pattern}")
_AWS_MANAGED = "alias/aws/"
EVERYWHERE = ""
"""The place of a key that is for every region."""


def _keys(value: object) -> object:
    if isinstance(value, str):
        return {EVERYWHERE: _key(value)}
    if not isinstance(value, Mapping) or not value:
        raise wrong(f"{described(value)} is not a KMS key", "write alias/NAME, or {eu-west-1: KEY, us-east-1: KEY}")
    found = {str(region): _key(str(key)) for region, key in value.items()}
    for region, key in found.items():
        if region == EVERYWHERE and len(found) == 1:
            continue
        if not re.fullmatch(REGION, region):
            raise wrong(f"{region!r} is not an AWS region", "such as {eu-west-1: alias/nodes}")
        if not reaches(key, region):
            raise wrong(f"the key for {region} is in {region_of(key)}", "name a key of that region")
    return found


def _key(text: str) -> str:
    if not _KEY.fullmatch(text):
        raise wrong(f"{text!r} is not a KMS key", "such as alias/nodes, a key id, or an ARN")
    return text


_ONE = {"type": "string", "examples": ["alias/nodes"]}
_EACH: dict[str, Any] = {"type": "object", "minProperties": 1, "propertyNames": {"pattern": f"^{REGION}$"}}
KmsKeys = Annotated[
    dict[str, str],
    BeforeValidator(_keys),
    WithJsonSchema({"anyOf": [_ONE, {**_EACH, "additionalProperties": _ONE}]}),
]
"""Keys by region; one for every region stands under ``EVERYWHERE``."""


def region_of(key: str) -> str:
    """Return the region of a key's ARN; empty for an alias and for an id, which name none."""
    found = _ARN.fullmatch(key)
    return found["region"] if found else ""


def reaches(key: str, region: str) -> bool:
    """Whether a key's name can mean a key of a region: an alias may, an ARN of another region cannot."""
    return region_of(key) in {"", region} or _is_multi_region(key)


def travels(key: str) -> bool:
    """Whether a name may mean a key in more than one region: an alias, and the id or ARN of a multi-Region key."""
    return key.startswith("alias/") or _is_multi_region(key)


def is_managed_by_aws(key: str) -> bool:
    """Whether a key is one that AWS manages for a service, whose snapshots nobody else can be given."""
    return _AWS_MANAGED in key


def key_in(keys: Mapping[str, str] | None, region: str) -> str:
    """Return the key for a region, in the words of that region (empty: the account's default)."""
    found = (keys or {}).get(region) or (keys or {}).get(EVERYWHERE, "")
    if found and _is_multi_region(found) and (there := region_of(found)):
        return found.replace(f":{there}:", f":{region}:", 1)
    return found


def _is_multi_region(key: str) -> bool:
    return key.rpartition("/")[2].startswith("mrk-") and "alias/" not in key
