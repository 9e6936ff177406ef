"""What EC2 does with ModifyVolume and DescribeVolumesModifications, over HTTP too, beside metadata.

Sources: EC2 API reference, ModifyVolume: four changes in a rolling 24 hours, each after the last one is completed; gp3
has 3,000 to 80,000 IOPS and 125 to 2,000 MiB/s. EBS user guide, "General Purpose SSD volumes": 500 IOPS for each GiB,
0.25 MiB/s for each of them; "Monitor the progress of volume modifications": modifying, optimizing, completed, failed.
Not known of AWS, and here to be chosen: whether a volume that initializes may be changed, how long a state lasts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Self, override
from urllib.parse import parse_qsl

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from standins.aws.metadata import Metadata

DAY = 24 * 3600.0
REGION, KEY, SECRET, TOKEN = "eu-west-1", "ASIAEXAMPLE", "a/secret+key", "a token=="


class No(Exception):
    """EC2 refuses: its code, and why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


@dataclass
class Change:
    """A change of a volume: what it is to be (IOPS, MiB/s), what it was, and when that began."""

    to: tuple[int, int]
    of: tuple[int, int]
    began: float
    fails: bool = False


@dataclass
class Volumes:
    """Volumes of one account, by their ids; times are those of ``now``, in seconds."""

    now: Callable[[], float]
    modifying: float = 20.0
    optimizing: float = 600.0
    has: dict[str, tuple[int, int]] = field(default_factory=dict)
    gib: int = 100
    initializes_until: float = 0.0
    fails: int = 0
    """So many changes from now on fail."""
    changes: dict[str, list[Change]] = field(default_factory=dict)

    def state(self, change: Change) -> str:
        """Return how far a change is."""
        age = self.now() - change.began
        if age < self.modifying:
            return "modifying"
        if change.fails:
            return "failed"
        return "optimizing" if age < self.modifying + self.optimizing else "completed"

    def last(self, volume: str) -> Change:
        """Return the last change of a volume."""
        self._known(volume)
        if not self.changes.get(volume):
            raise No("InvalidVolumeModification.NotFound", f"Modification for volume '{volume}' does not exist")
        return self.changes[volume][-1]

    def modify(self, volume: str, iops: int, throughput: int) -> Change:
        """Begin a change, or refuse it."""
        self._known(volume)
        if not (3_000 <= iops <= 80_000 and 125 <= throughput <= 2_000):
            raise No("InvalidParameterValue", f"gp3 does not have {iops} IOPS and {throughput} MiB/s")
        if iops > max(3_000, 500 * self.gib) or throughput > iops / 4:
            raise No("InvalidParameterCombination", "the ratio is too high")
        if self.now() < self.initializes_until:
            raise No("IncorrectState", f"Volume '{volume}' is initializing")
        done = self.changes.setdefault(volume, [])
        if done and self.state(done[-1]) not in {"completed", "failed"}:
            raise No("IncorrectModificationState", f"cannot modify '{volume}' in state {self.state(done[-1]).upper()}")
        if len([each for each in done if each.began > self.now() - DAY]) >= 4:
            raise No("VolumeModificationRateExceeded", "You've reached the maximum modification rate per volume limit.")
        change = Change((iops, throughput), self.has[volume], self.now(), fails=self.fails > 0)
        self.fails -= change.fails
        done.append(change)
        if not change.fails:
            self.has[volume] = change.to
        return change

    def _known(self, volume: str) -> None:
        if volume not in self.has:
            raise No("InvalidVolume.NotFound", f"The volume '{volume}' does not exist.")


class Instance:
    """Instance metadata and EC2 on one port of this machine, for a program on a node; each request must be signed.

    ``calls`` are the actions that were asked for; ``before`` is told of each, and may refuse it.
    """

    def __init__(self, volumes: Volumes, folder: Path) -> None:
        self.calls: list[str] = []
        self.before: Callable[[str], object] = lambda _: None
        keys = {"AccessKeyId": KEY, "SecretAccessKey": SECRET, "Token": TOKEN, "Expiration": "2099-01-01T00:00:00Z"}
        tree = {
            "meta-data/placement/region": REGION,
            "meta-data/services/domain": "amazonaws.com",
            "meta-data/iam/security-credentials/": "nodes",
            "meta-data/iam/security-credentials/nodes": json.dumps(keys),
        }
        (folder / "tree.json").write_text(json.dumps(tree))
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler(volumes, folder))
        self.address = f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handler(self, volumes: Volumes, place: Path) -> type[Metadata]:
        here = self

        class Handler(Metadata):
            folder = place

            def do_POST(self) -> None:  # noqa: N802 - http.server's name
                body = self.rfile.read(int(self.headers["Content-Length"]))
                words = dict(parse_qsl(body.decode()))
                status, text = 200, ""
                try:
                    if self.headers["Authorization"] != _signature(dict(self.headers.items()), body):
                        raise No("AuthFailure", "AWS was not able to validate the provided access credentials")
                    here.calls.append(words["Action"])
                    here.before(words["Action"])
                    text = answer(volumes, words)
                except No as no:
                    status = 400
                    error = f"<Error><Code>{no.code}</Code><Message>{no.message}</Message></Error>"
                    text = f"<Response><Errors>{error}</Errors></Response>"
                self.send_response(status)
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            @override
            def log_message(self, format: str, *arguments: object) -> None:
                pass

        return Handler


def _signature(head: dict[str, str], body: bytes) -> str:
    """Sign a request as botocore does: with the same date and the same headers."""
    given = {name.lower(): text for name, text in head.items()}
    names = given["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    request = AWSRequest("POST", f"https://{given['host']}/", {name: given[name] for name in names}, body)
    request.context["timestamp"] = given["x-amz-date"]
    auth = SigV4Auth(Credentials(KEY, SECRET, TOKEN), "ec2", REGION)
    canonical = auth.canonical_request(request)
    signature = auth.signature(auth.string_to_sign(request, canonical), request)
    by = f"Credential={auth.scope(request)}, SignedHeaders={';'.join(sorted(names))}, Signature={signature}"
    return f"AWS4-HMAC-SHA256 {by}"


def answer(volumes: Volumes, words: dict[str, Any]) -> str:
    """Answer one of the two calls, in EC2's XML."""
    if words["Action"] == "ModifyVolume":
        made = volumes.modify(words["VolumeId"], int(words["Iops"]), int(words["Throughput"]))
        return f"<ModifyVolumeResponse>{_told('volumeModification', volumes, made)}</ModifyVolumeResponse>"
    assert words["Action"] == "DescribeVolumesModifications"
    item = _told("item", volumes, volumes.last(words["VolumeId.1"]))
    name = "DescribeVolumesModificationsResponse"
    return f"<{name}><volumeModificationSet>{item}</volumeModificationSet></{name}>"


def _told(name: str, volumes: Volumes, change: Change) -> str:
    figures = "".join(
        f"<{when}Iops>{iops}</{when}Iops><{when}Throughput>{throughput}</{when}Throughput>"
        for when, (iops, throughput) in (("target", change.to), ("original", change.of))
    )
    return f"<{name}><modificationState>{volumes.state(change)}</modificationState>{figures}</{name}>"
