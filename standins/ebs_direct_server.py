"""A stand-in for EBS's direct API, with the calls of EC2 and KMS that belong to it: an HTTP server on the loopback.

It refuses what EBS refuses (EBS direct API reference; EBS user guide, "EBS direct APIs" with its FAQ and "Encryption
outcomes for EBS direct APIs"): blocks of another size, checksums that are not those of the bytes, blocks outside the
volume or of a sealed snapshot, `Encrypted` beside a parent, a parent that is larger or unknown, or not encrypted
where the region encrypts by default, a key beside a parent, a client token with other parameters, a wrong count or
LINEAR checksum at the end (the snapshot ends in `error`), reading what is pending, block tokens that are not its own.
On demand it throttles, fails, breaks connections, and knows new snapshots late. It checks no signature, only that
there is one for `ebs`.

with Cloud().serve() as url: ...            # AWS_ENDPOINT_URL=url
python -m standins.ebs_direct_server           # prints its URL; keeps checksums instead of blocks (--keep keeps
them)
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from standins import ec2query
from standins.fastrestores import FastRestores

BLOCK = 524288
EBS_KEY = "alias/aws/ebs"


class Refusal(Exception):
    """An answer that says no, in AWS's words."""

    def __init__(self, status: int, code: str, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.reason = status, code, message, reason


def invalid(message: str, reason: str = "INVALID_PARAMETER_VALUE") -> Refusal:
    return Refusal(400, "ValidationException", message, reason)


def missing(snapshot: str) -> Refusal:
    return Refusal(404, "ResourceNotFoundException", f"The snapshot '{snapshot}' does not exist.", "SNAPSHOT_NOT_FOUND")


@dataclass(frozen=True)
class Reply:
    """An answer of HTTP."""

    status: int
    body: bytes
    headers: dict[str, str]


def said(status: int, document: dict[str, Any]) -> Reply:
    return Reply(status, json.dumps(document).encode(), {"Content-Type": "application/json"})


@dataclass(repr=False)
class Snapshot:
    id: str
    gib: int
    tags: dict[str, str]
    parent: str = ""
    region: str = "eu-west-1"
    owner: str = "123456789012"
    shared: set[str] = field(default_factory=set)
    encrypted: bool = False
    key: str = ""
    state: str = "pending"
    sealed: bool = False
    unknown: int = 0  # how many more questions find it unknown
    looks: int = 0  # how many more looks find it pending
    within: int = 0  # minutes that a copy may take
    fails: str = ""  # why it ends in an error once it was looked at long enough
    written: dict[int, bytes] = field(default_factory=dict)  # checksums of blocks
    data: dict[int, bytes] = field(default_factory=dict)

    def tag_list(self) -> list[dict[str, str]]:
        return [{"Key": key, "Value": value} for key, value in self.tags.items()]


@dataclass(repr=False)
class Cloud:
    """What there is, and how it misbehaves.

    ``rate`` is how many blocks a second are taken before it throttles (0: any number), ``throttle_every`` throttles
    each n-th block at any speed; ``fail_every`` lets each n-th fail with 500, ``break_every`` breaks the connection at
    each n-th; ``late`` is how many questions a new snapshot is unknown for, ``slow`` how many looks it stays pending
    for once it is sealed. ``by_default`` are the regions that encrypt by default, with the key that they do it with
    (``EBS_KEY``, or an ARN).
    """

    keep: bool = True
    rate: float = 0.0
    throttle_every: int = 0
    fail_every: int = 0
    break_every: int = 0
    late: int = 0
    slow: int = 0
    by_default: dict[str, str] = field(default_factory=dict)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    fast: FastRestores = field(default_factory=FastRestores)
    calls: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    most: int = 0
    made: int = 0
    _running: int = 0
    _allowance: float = 0.0
    _at: float = 0.0

    def content(self, snapshot: str) -> dict[int, bytes]:
        """Return the blocks of a volume made from a snapshot, without their last zeros; what is absent is zeros."""
        made = self.snapshots[snapshot]
        below = self.content(made.parent) if made.parent else {}
        return {**below, **made.data}

    def default_key(self, region: str) -> str:
        """Return the ARN of the key that encrypts in a region where nobody names one."""
        return self.key_arn(self.by_default.get(region, EBS_KEY), region)

    def key_arn(self, key: str, region: str) -> str:
        if key.startswith("arn:"):
            return key
        return f"arn:aws:kms:{region}:123456789012:key/{hashlib.sha256(key.encode()).hexdigest()[:32]}"

    def new(self, kind: str) -> str:
        """Return an id that nothing has had."""
        self.made += 1
        return f"{kind}-{self.made:017x}"

    @contextmanager
    def serve(self, port: int = 0) -> Iterator[str]:
        cloud = self

        class Handler(_Handler):
            pass

        Handler.cloud = cloud
        server = _Server(("127.0.0.1", port), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()

    # -- what is asked

    def handle(self, method: str, target: str, headers: Any, body: bytes) -> Reply | None:
        """Answer a request; None: the connection breaks. ``target`` is its path and query, ``headers`` a mapping."""
        place = urlsplit(target)
        parts = place.path.strip("/").split("/")
        query = {key: values[0] for key, values in parse_qs(place.query).items()}
        with self.lock:
            self._running += 1
            self.most = max(self.most, self._running)
        try:
            if parts[0] != "snapshots":
                return self.other(headers, body)
            if "/ebs/aws4_request" not in headers.get("Authorization", ""):
                raise Refusal(403, "AccessDeniedException", "There is no signature.")
            return self.ebs(method, parts[1:], query, headers, body)
        except Refusal as refusal:
            with self.lock:
                self.refused[refusal.code] += 1
            document = json.dumps({"Message": refusal.message, "Reason": refusal.reason}).encode()
            return Reply(refusal.status, document, {"x-amzn-ErrorType": refusal.code})
        finally:
            with self.lock:
                self._running -= 1

    def ebs(self, method: str, parts: list[str], query: dict[str, str], headers: Any, body: bytes) -> Reply | None:
        match method, parts:
            case "POST", []:
                return said(201, self.count("StartSnapshot", lambda: self.start(json.loads(body), _region(headers))))
            case "PUT", [snapshot, "blocks", index]:
                number = self.note("PutSnapshotBlock")
                if self.break_every and number % self.break_every == 0:
                    return None
                text = self.put(snapshot, int(index), headers, body)
                return Reply(201, b"{}", {"x-amz-Checksum": text, "x-amz-Checksum-Algorithm": "SHA256"})
            case "POST", ["completion", snapshot]:
                return said(202, self.count("CompleteSnapshot", lambda: self.complete(snapshot, headers)))
            case "GET", [snapshot, "blocks"]:
                return said(200, self.count("ListSnapshotBlocks", lambda: self.list(snapshot, query)))
            case "GET", [snapshot, "blocks", index]:
                self.note("GetSnapshotBlock")
                data = self.get(snapshot, int(index), query)
                text = base64.b64encode(hashlib.sha256(data).digest()).decode()
                about = {"x-amz-Checksum": text, "x-amz-Checksum-Algorithm": "SHA256"}
                return Reply(200, data, {**about, "x-amz-Data-Length": str(BLOCK)})
        raise Refusal(404, "UnknownOperationException", f"{method} {'/'.join(parts)}")

    def other(self, headers: Any, body: bytes) -> Reply:
        """EC2's query protocol and KMS's JSON."""
        if headers.get("X-Amz-Target", "").startswith("TrentService."):
            key, region = json.loads(body)["KeyId"], _region(headers)
            if key == "alias/missing" or (key.startswith("arn:") and key.split(":")[3] != region):
                return Reply(400, b'{"__type": "NotFoundException", "message": "Alias is not found."}', {})
            self.note("DescribeKey")
            arn = self.key_arn(key, region)
            manager = "AWS" if arn == self.key_arn(EBS_KEY, region) else "CUSTOMER"
            state = "PendingDeletion" if key == "alias/dying" else "Enabled"
            about = {"Arn": arn, "KeyId": arn.rpartition("/")[2], "KeyManager": manager, "KeyState": state}
            return said(200, {"KeyMetadata": about})
        region, account = _region(headers), _account(headers)
        status, text = self.count("EC2", lambda: ec2query.answer(self, parse_qs(body.decode()), region, account))
        return Reply(status, text.encode(), {"Content-Type": "text/xml"})

    def note(self, name: str) -> int:
        with self.lock:
            self.calls[name] += 1
            return self.calls[name]

    def count(self, name: str, act: Any) -> Any:
        with self.lock:
            self.calls[name] += 1
            return act()

    # -- EBS

    def find(self, snapshot: str) -> Snapshot:
        made = self.snapshots.get(snapshot)
        if made is None or made.state == "error":
            raise missing(snapshot)
        if made.unknown > 0:
            made.unknown -= 1
            raise missing(snapshot)
        return made

    def start(self, wanted: dict[str, Any], region: str) -> dict[str, Any]:
        token, said = wanted.get("ClientToken", ""), json.dumps(wanted, sort_keys=True)
        if len(token) > 64:
            raise invalid("The client token is too long.")
        if token in self.tokens:
            before, snapshot = self.tokens[token]
            if before != said:
                raise Refusal(409, "ConflictException", "The client token was used with other parameters.")
            return self.started(self.snapshots[snapshot])
        parent = wanted.get("ParentSnapshotId", "")
        if not 10 <= wanted.get("Timeout", 60) <= 4320:
            raise invalid("The timeout is out of range.")
        encrypted, key = self.descent(parent, wanted, region) if parent else self.lock_up(wanted, region)
        tags = {tag["Key"]: tag["Value"] for tag in wanted.get("Tags", ())}
        made = Snapshot(self.new("snap"), wanted["VolumeSize"], tags, parent, region)
        made.encrypted, made.key = encrypted, key
        made.unknown = self.late
        self.snapshots[made.id] = made
        if token:
            self.tokens[token] = (said, made.id)
        return self.started(made)

    def descent(self, parent: str, wanted: dict[str, Any], region: str) -> tuple[bool, str]:
        """Return whether a snapshot with a parent is encrypted, and by which key: its parent decides."""
        if "Encrypted" in wanted:
            raise invalid("You can't specify Encrypted and ParentSnapshotId in the same request.")
        above = self.find(parent)
        if above.state != "completed":
            raise invalid("The parent is not completed.", "INVALID_SNAPSHOT_ID")
        if above.gib > wanted["VolumeSize"]:
            raise invalid("The volume is smaller than its parent's.", "INVALID_VOLUME_SIZE")
        if wanted.get("KmsKeyArn"):
            raise invalid("A snapshot with a parent is encrypted with its parent's key.", "INVALID_CUSTOMER_KEY")
        if region in self.by_default and not above.encrypted:
            raise invalid("The parent is not encrypted, and this account encrypts by default.", "INVALID_SNAPSHOT_ID")
        return above.encrypted, above.key

    def lock_up(self, wanted: dict[str, Any], region: str) -> tuple[bool, str]:
        key, encrypted = wanted.get("KmsKeyArn", ""), wanted.get("Encrypted")
        if key and not key.startswith(f"arn:aws:kms:{region}:"):
            raise invalid("The key is no ARN of this region.", "INVALID_CUSTOMER_KEY")
        if encrypted is False and region in self.by_default:
            raise invalid("This account encrypts by default.")
        if key and not encrypted and region not in self.by_default:
            raise invalid("A key needs Encrypted.")
        if not encrypted and region not in self.by_default:
            return False, ""
        return True, key or self.default_key(region)

    def started(self, made: Snapshot) -> dict[str, Any]:
        return {
            "SnapshotId": made.id,
            "Status": made.state,
            "VolumeSize": made.gib,
            "BlockSize": BLOCK,
            "Tags": made.tag_list(),
        }

    def put(self, snapshot: str, index: int, headers: Any, data: bytes) -> str:
        digest = hashlib.sha256(data).digest()  # without the lock: threads hash at once
        text = base64.b64encode(digest).decode()
        with self.lock:
            self.throttle()
            made = self.find(snapshot)
            if made.state != "pending" or made.sealed:
                raise invalid("The snapshot is not pending.", "INVALID_SNAPSHOT_ID")
            if len(data) != BLOCK or headers.get("x-amz-Data-Length") != str(BLOCK):
                raise invalid("The only supported length is 524288.", "INVALID_BLOCK")
            if headers.get("x-amz-Checksum-Algorithm") != "SHA256" or headers.get("x-amz-Checksum") != text:
                raise invalid("The checksum does not match the data.")
            if not 0 <= index < made.gib * 2048:
                raise invalid("The block is not within the volume.", "INVALID_BLOCK")
            made.written[index] = digest
            if self.keep:
                made.data[index] = data.rstrip(b"\0")
        return text

    def throttle(self) -> None:
        count = self.calls["PutSnapshotBlock"] + self.calls["GetSnapshotBlock"]
        if self.fail_every and count % self.fail_every == 0:
            raise Refusal(500, "InternalServerException", "Something is broken.")
        if self.throttle_every and count % self.throttle_every == 0:
            raise Refusal(400, "RequestThrottledException", "Too many requests.", "ACCOUNT_THROTTLED")
        if not self.rate:
            return
        now = time.monotonic()
        self._allowance = min(self.rate / 10, self._allowance + (now - self._at) * self.rate)
        self._at = now
        if self._allowance < 1:
            raise Refusal(400, "RequestThrottledException", "Too many requests.", "ACCOUNT_THROTTLED")
        self._allowance -= 1

    def complete(self, snapshot: str, headers: Any) -> dict[str, Any]:
        made = self.find(snapshot)
        if made.state != "pending" or made.sealed:
            raise invalid("The snapshot is not pending.", "INVALID_SNAPSHOT_ID")
        made.sealed, made.looks = True, self.slow
        whole = hashlib.sha256(b"".join(made.written[index] for index in sorted(made.written))).digest()
        right = [int(headers["x-amz-ChangedBlocksCount"]) == len(made.written)]
        if headers.get("x-amz-Checksum"):
            right.append(headers.get("x-amz-Checksum-Aggregation-Method") == "LINEAR")
            right.append(headers["x-amz-Checksum"] == base64.b64encode(whole).decode())
        if not all(right):
            made.state = "error"
        elif not made.looks:
            made.state = "completed"
        return {"Status": "pending"}

    def readable(self, snapshot: str) -> dict[int, bytes]:
        made = self.find(snapshot)
        if made.state != "completed":
            raise invalid("The snapshot is not completed.", "INVALID_SNAPSHOT_ID")
        return self.content(snapshot)

    def page(self, found: list[dict[str, Any]], query: dict[str, str], key: str, snapshot: str) -> dict[str, Any]:
        start, size = int(query.get("pageToken", "0")), max(100, int(query.get("maxResults", "100")))
        answer = {key: found[start : start + size], "VolumeSize": self.snapshots[snapshot].gib, "BlockSize": BLOCK}
        return {**answer, "NextToken": str(start + size)} if start + size < len(found) else answer

    def list(self, snapshot: str, query: dict[str, str]) -> dict[str, Any]:
        blocks = sorted(self.readable(snapshot))
        found = [{"BlockIndex": index, "BlockToken": block_token(snapshot, index)} for index in blocks]
        return self.page(found, query, "Blocks", snapshot)

    def get(self, snapshot: str, index: int, query: dict[str, str]) -> bytes:
        with self.lock:
            self.throttle()
            blocks = self.readable(snapshot)
        if query.get("blockToken") != block_token(snapshot, index) or index not in blocks:
            raise invalid("The block token is invalid.", "INVALID_BLOCK_TOKEN")
        return blocks[index].ljust(BLOCK, b"\0")


def _region(headers: Any) -> str:
    """Return the region that a request is signed for."""
    scope: list[str] = headers.get("Authorization", "").split("/")
    return scope[2] if len(scope) > 2 else "eu-west-1"


def _account(headers: Any) -> str:
    """Return the account whose credentials a request is signed with: those of a role name it (``assume_role``)."""
    key: str = headers.get("Authorization", "").partition("Credential=")[2].partition("/")[0]
    return key.removeprefix("ASIA") if key.startswith("ASIA") else "123456789012"


def block_token(snapshot: str, index: int) -> str:
    return base64.b64encode(hashlib.sha256(f"{snapshot} {index}".encode()).digest()).decode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of clients that were killed."""


class _Handler(BaseHTTPRequestHandler):
    cloud: Cloud
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    rbufsize = 1 << 16

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.handle_call("GET")

    def do_POST(self) -> None:
        self.handle_call("POST")

    def do_PUT(self) -> None:
        self.handle_call("PUT")

    def handle_call(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        reply = self.cloud.handle(method, self.path, self.headers, body)
        if reply is None:
            self.close_connection = True
            self.connection.close()
            return
        self.send_response_only(reply.status)
        for name, value in {**reply.headers, "Content-Length": str(len(reply.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)
        self.wfile.flush()


def main() -> None:
    cloud = Cloud(keep="--keep" in sys.argv)
    with cloud.serve() as url:
        print(url, flush=True)  # noqa: T201 (whoever started it reads this)
        for line in sys.stdin:  # a question for the numbers of calls; its end is ours
            if line.strip() == "calls":
                print(json.dumps(cloud.calls), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
