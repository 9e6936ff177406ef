"""S3 as a store, by its conditional writes.

``If-None-Match: *`` lets the first writer of a key win, ``If-Match`` the writer who has seen the latest state (Amazon
S3 user guide, "How to prevent object overwrites with conditional writes"). Two such requests at once may end with 409
ConditionalRequestConflict: then nothing is decided, and the request is made again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from parbake import aws
from parbake.core.errors import AwsError, AwsNotFound, EnvironmentProblem
from parbake.records.store.port import MOST, ListedObject, StoredObject, TooLarge

_MISSING = {"NoSuchKey", "404"}
_NOT_THE_SAME = {"PreconditionFailed", "412", *_MISSING}
_CONFLICT = {"ConditionalRequestConflict", "409"}
_TRIES = 5


class S3Store:
    """Objects of a bucket whose keys begin with a prefix."""

    def __init__(self, bucket: str, prefix: str, region: str = "") -> None:
        self._bucket, self._prefix, self._region = bucket, prefix, region

    @property
    def url(self) -> str:
        """The bucket and the prefix."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    def get(self, name: str, most: int = MOST) -> StoredObject | None:
        """Return an object, None where there is none. Raises AwsError, TooLarge (more than ``most`` bytes)."""
        try:
            with self._told():
                answer = self._client.get_object(Bucket=self._bucket, Key=self._key(name))
                with aws.translating("s3", "get_object", self._region):
                    body = answer["Body"]
                    content = body.read(most + 1)
                    if len(content) > most:
                        raise TooLarge(name, self.url, most, answer["ETag"])
                    body.read(1)  # botocore compares length and checksum when it is told of the end
                    return StoredObject(content, answer["ETag"])
        except AwsError as error:
            if error.code in _MISSING:
                return None
            raise

    def add(self, name: str, content: bytes) -> bool:
        """Write an object that does not exist yet; False where it does. Raises AwsError."""
        return self._put(name, content, IfNoneMatch="*")

    def replace(self, name: str, content: bytes, version: str) -> bool:
        """Write an object whose state is still ``version``; False where it is another one. Raises AwsError."""
        return self._put(name, content, IfMatch=version)

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """Yield the objects whose names begin so. Raises AwsError."""
        with self._told():
            begins = self._key(prefix)
            for found in self._client.pages("list_objects_v2", "Contents", Bucket=self._bucket, Prefix=begins):
                name = str(found["Key"])[len(self._key("")) :]
                yield ListedObject(name, int(found["Size"]), found["LastModified"])

    def remove(self, name: str) -> None:
        """Remove an object; one that is not there is fine. Raises AwsError."""
        with self._told():
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))

    def _put(self, name: str, content: bytes, **condition: str) -> bool:
        for _ in range(_TRIES):
            try:
                with self._told():
                    self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=content, **condition)
            except AwsError as error:
                if error.code in _NOT_THE_SAME:
                    return False
                if error.code not in _CONFLICT:
                    raise
            else:
                return True
        raise AwsError(
            f"{self.url}: other machines keep writing {name} at the same time", hint="run the same command again"
        )

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{name}" if self._prefix else name

    @property
    def _client(self) -> Any:
        return aws.client("s3", self._region)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Name the bucket in errors that are about it."""
        try:
            yield
        except AwsError as error:
            if error.code == "NoSuchBucket":
                raise AwsNotFound(
                    f"the store {self.url}: there is no bucket {self._bucket}",
                    code=error.code,
                    hint="create the bucket, or correct `store` in the Bakefile",
                ) from error
            if error.code == "NotImplemented":
                raise EnvironmentProblem(
                    f"the store {self.url} has no conditional writes, so two bakes of one key could overwrite "
                    "each other's record",
                    hint="use Amazon S3, or a server that honours `If-None-Match` (MinIO, Ceph, Garage)",
                ) from error
            raise
