"""What a store in S3 needs: to list one prefix of one bucket, and to read and write below it."""

from __future__ import annotations

from collections.abc import Iterator

from parbake.aws.iam.statements import Policy, Scope, allow, partition


def statements(scope: Scope, *more: str, noting: str = "") -> Iterator[Policy]:
    """Yield the statements of a Bakefile's store, where it is a bucket; ``more`` are actions besides reading.

    Below ``noting``, a part of the store, objects may be written.
    """
    address = scope.bakefile.store or ""
    if not address.startswith("s3://"):
        return
    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    arn = f"arn:{partition(scope.home)}:s3:::{bucket}"
    below = f"{prefix}/*" if prefix else "*"
    yield allow("ListTheStore", ["s3:ListBucket"], [arn], {"StringLike": {"s3:prefix": [below]}})
    yield allow("UseTheStore", ["s3:GetObject", *more], [f"{arn}/{below}"])
    if noting:
        yield allow("NoteInTheStore", ["s3:PutObject"], [f"{arn}/{below.removesuffix('*')}{noting}*"])
