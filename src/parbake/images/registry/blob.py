"""A blob as a stream that mends itself: after a broken connection it goes on where it was, by range.

The stream knows the size that the manifest promised and holds the server to it; the digest is the reader's business.
Source: RFC 9110 section 14 (range requests); a server may ignore a range and send everything, which is skipped then.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError

from parbake.core.errors import BadContent, RegistryError
from parbake.core.model import Descriptor
from parbake.images.registry.endpoint import Endpoint, Missing
from parbake.images.registry.retry import Meter, Patience, Transient
from parbake.images.registry.transport import receive, translate, whole_number

# One read from the socket: large enough that Python's share does not count, small enough for the processor's cache.
_PIECE = 256 << 10
_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


class Blob:
    """The bytes of ``descriptor`` from ``offset`` on, from the first of ``endpoints`` that gives them.

    Satisfies ``sources.Readable``; use with ``with``. Not thread-safe. Raises BadContent when the size is not what the
    descriptor says, Unreachable or RegistryError when the retries are used up, Denied.
    """

    def __init__(
        self, endpoints: Sequence[Endpoint], repository: str, descriptor: Descriptor, offset: int, patience: Patience
    ) -> None:
        self._endpoints = list(endpoints)
        self._repository = repository
        self._descriptor = descriptor
        self._position = offset
        self._patience = patience
        self._what = f"{repository}: blob {descriptor.digest}"
        self._response: BaseHTTPResponse | None = None
        self._exact = False  # the server said that this answer ends where the blob ends
        self._backoff = self._endpoints[0].backoff()
        self._meter = Meter(patience, self._what)

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``, except at the end of the blob; return the count of bytes, 0 at the end."""
        wanted = min(len(buffer), self._descriptor.size - self._position)
        filled = 0
        while filled < wanted:
            count = self._piece(buffer[filled : min(wanted, filled + _PIECE)])
            filled += count
            self._position += count
            self._backoff.progress(count)
        if self._position == self._descriptor.size:
            self._finish()
        return filled

    def start(self) -> None:
        """Connect, so that a blob that cannot be had is known before it is read."""
        while self._response is None and self._position < self._descriptor.size:
            try:
                self._connect()
            except (Transient, Missing, RegistryError) as failure:
                self._recover(failure)

    def close(self) -> None:
        """Drop the connection; one whose answer was read to its end is kept for the next request."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def _piece(self, buffer: memoryview) -> int:
        while True:
            try:
                if self._response is None:
                    self._connect()
                return self._receive(buffer)
            except (Transient, Missing, RegistryError) as failure:
                self._recover(failure)

    def _recover(self, failure: Exception) -> None:
        """Sleep until the next try, or move on to the next endpoint; raises when neither is left."""
        self.close()
        error = failure
        if isinstance(failure, Transient):
            started = time.monotonic()
            try:
                self._backoff.wait(failure)
                return self._meter.restart(time.monotonic() - started)
            except RegistryError as final:
                error = final
        if len(self._endpoints) > 1:
            self._endpoints.pop(0)
            self._backoff = self._endpoints[0].backoff()
            self._meter = Meter(self._patience, self._what)
            return None
        if isinstance(error, Missing):
            raise RegistryError(
                f"{self._what}: the registry does not have it, although the image needs it",
                hint="the image was pushed incompletely, or garbage-collected: push it again",
            ) from error
        raise error

    def _connect(self) -> None:
        offset = self._position
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        path = f"blobs/{self._descriptor.digest}"
        started = time.monotonic()
        self._response = self._endpoints[0].attempt(self._repository, path, headers=headers, what=self._what)
        self._meter.restart(time.monotonic() - started)
        length = self._response.headers.get("Content-Length", "")
        starts = 0
        if self._response.status == 206:
            self._check_range(self._response.headers.get("Content-Range", ""), length)
            starts = offset
        self._check_length(length, starts)
        self._skip(offset - starts)

    def _check_range(self, text: str, length: str) -> None:
        found = _RANGE.fullmatch(text.strip())
        if not found:
            raise BadContent(f"{self._what}: a partial answer without a range ({text!r})")
        first, last, total = found.groups()
        size = whole_number(length)
        if total != "*" and int(total) != self._descriptor.size:
            raise self._wrong_size(f"{total} bytes long")
        if int(first) != self._position or (size is not None and int(last) + 1 != int(first) + size):
            raise BadContent(f"{self._what}: asked for bytes from {self._position} on, got {text!r} ({length} bytes)")

    def _check_length(self, text: str, starts: int) -> None:
        self._exact = False
        length = whole_number(text)
        if length is None:
            return
        end = starts + length
        if end > self._descriptor.size:
            raise self._wrong_size(f"at least {end} bytes long")
        if end <= self._position:
            raise Transient(self._wrong_size(f"{end} bytes long"))
        self._exact = end == self._descriptor.size

    def _skip(self, count: int) -> None:
        nowhere = memoryview(bytearray(min(count, _PIECE)))
        while count > 0:
            received = self._receive(nowhere[:count])
            self._meter.skipped(received)
            count -= received

    def _receive(self, buffer: memoryview) -> int:
        """Fill the start of ``buffer`` with what the socket has; return the count, at least one."""
        if self._response is None:
            raise Transient(RegistryError(f"{self._what}: not connected"))
        started = time.monotonic()
        try:
            count = receive(self._response, buffer)
        except (HTTPError, OSError) as error:
            raise translate(error, f"{self._what} from {self._endpoints[0].host}") from error
        self._meter.add(count, time.monotonic() - started)
        if not count:
            raise Transient(self._wrong_size(f"over after {self._position} bytes"))
        return count

    def _finish(self) -> None:
        """See that nothing follows; an answer of a stated length cannot go on, so only others are asked."""
        if self._response is not None and not self._exact:
            try:
                more = self._response.read1(1, decode_content=False)
            except (HTTPError, OSError):
                more = b""  # all promised bytes are here; how the connection ends does not matter
            if more:
                self.close()
                raise self._wrong_size("longer")
        self.close()

    def _wrong_size(self, actual: str) -> BadContent:
        promised = f"the manifest says {self._descriptor.size} bytes"
        return BadContent(
            f"{self._what}: {promised}, what {self._endpoints[0].host} sends is {actual}",
            hint="push the image again; if that does not help, its storage is damaged or a proxy alters content",
        )
