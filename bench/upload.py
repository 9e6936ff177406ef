"""Compare parbake's upload of a disk to EBS with a plain boto3 loop, and count what an incremental one asks. No root.

    make bench-upload [BENCH_ROUNDS=3]

4 GiB of which 40 % are zeros (half of those holes, as in a trimmed disk, half written), against the stand-in for EBS's
direct API of the tests, in a process of its own on the loopback, which checks every checksum. Both sides take turns,
and both hash what they send within the timing; parbake also makes its list of blocks and its journal. The last line of
standard output is one JSON object: ``full_mib_s`` and ``plain_mib_s`` (MiB of data sent a second, medians), ``ratio``,
``incremental_requests`` (all of them) and ``changed_blocks`` of an upload with 5 % of the blocks changed,
``peak_rss_mib`` of parbake.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from parbake.aws import Stamp, ebs
from parbake.core.events import Events
from parbake.core.model import EBS_BLOCK, GIB, MIB
from parbake.machine.disk import ZEROS

ROOT = Path(__file__).parents[1]
SIZE = 4 * GIB
CHANGED = 0.05
REGION = "eu-west-1"
THREADS = 64


def say(text: str) -> None:
    """Write progress to standard error."""
    print(text, file=sys.stderr, flush=True)


class StandIn:
    """The server in its own process; ``calls`` asks it how often it was called."""

    def __init__(self, stdin: IO[str], stdout: IO[str]) -> None:
        self._stdin, self._stdout = stdin, stdout
        self.url = stdout.readline().strip()

    def calls(self) -> dict[str, int]:
        self._stdin.write("calls\n")
        self._stdin.flush()
        found: dict[str, int] = json.loads(self._stdout.readline())
        return found


@contextmanager
def stand_in() -> Iterator[StandIn]:
    command = [sys.executable, "-m", "standins.ebs_direct_server"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        try:
            yield StandIn(process.stdin, process.stdout)
        finally:
            process.stdin.close()


def make_disk(path: Path, size: int) -> None:
    """Write data, zeros and holes in turns: 6, 2 and 2 of 10 blocks."""
    noise = random.Random(4)  # noqa: S311 (the same bytes each time)
    with path.open("wb") as file:
        file.truncate(size)
        for index in range(size // EBS_BLOCK):
            if index % 10 < 6:
                os.pwrite(file.fileno(), noise.randbytes(EBS_BLOCK), index * EBS_BLOCK)
            elif index % 10 < 8:
                os.pwrite(file.fileno(), ZEROS, index * EBS_BLOCK)
    os.sync()


def change(path: Path, share: float) -> None:
    """Change some bytes in a part of the blocks, all over the disk."""
    step = round(1 / share)
    with path.open("r+b") as file:
        for index in range(0, path.stat().st_size // EBS_BLOCK, step):
            os.pwrite(file.fileno(), os.urandom(64), index * EBS_BLOCK + 4096)


def plain(path: Path, name: str) -> float:
    """Upload as a first program against the API would: boto3 as it is, a pool of threads; return the seconds."""
    import boto3

    started = time.monotonic()
    client = boto3.client("ebs", region_name=REGION)
    size = path.stat().st_size
    snapshot = client.start_snapshot(VolumeSize=size // GIB or 1, Description=name)["SnapshotId"]
    digests: dict[int, bytes] = {}

    def put(index: int) -> None:
        data = os.pread(handle, EBS_BLOCK, index * EBS_BLOCK)
        if data == ZEROS:
            return
        digests[index] = hashlib.sha256(data).digest()
        client.put_snapshot_block(
            SnapshotId=snapshot, BlockIndex=index, BlockData=data, DataLength=len(data),
            Checksum=base64.b64encode(digests[index]).decode(), ChecksumAlgorithm="SHA256",
        )  # fmt: skip

    handle = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(put, range(size // EBS_BLOCK)):
                pass
    finally:
        os.close(handle)
    whole = hashlib.sha256(b"".join(digests[index] for index in sorted(digests))).digest()
    client.complete_snapshot(
        SnapshotId=snapshot, ChangedBlocksCount=len(digests), Checksum=base64.b64encode(whole).decode(),
        ChecksumAlgorithm="SHA256", ChecksumAggregationMethod="LINEAR",
    )  # fmt: skip
    return time.monotonic() - started


def ours(path: Path, name: str, parent: ebs.ParentSnapshot | None = None) -> tuple[float, ebs.UploadResult]:
    """Upload with parbake, which makes the list of blocks as it sends; return the seconds and what came of it."""
    started = time.monotonic()
    request = ebs.UploadRequest(path, path.with_suffix(f".{name}"), Stamp(name, "bench", name), name, REGION, parent)
    sent = ebs.upload(request, Events())
    return time.monotonic() - started, sent


def measure(size: int, rounds: int, work: Path) -> dict[str, float | int]:
    """Let both sides upload in turn, then upload what has changed; return the figures."""
    path = work / "disk.raw"
    say(f"writing {size // MIB} MiB, 40 % zeros")
    make_disk(path, size)
    full, bare = list[tuple[float, ebs.UploadResult]](), list[float]()
    with stand_in() as server:
        _configure(server.url)
        for number in range(rounds):
            full.append(ours(path, f"full {number}"))
            bare.append(plain(path, f"plain {number}"))
            say(f"round {number + 1}: parbake {full[-1][0]:.2f} s, plain {bare[-1]:.2f} s")
        whole = full[-1][1]
        change(path, CHANGED)
        before = server.calls()
        taken, part = ours(path, "incremental", ebs.ParentSnapshot(whole.snapshot, whole.blocks))
        asked = server.calls()
        say(f"incremental: {taken:.2f} s")
    requests = sum(asked[name] - before.get(name, 0) for name in asked if name != "EC2")
    sent = whole.changed * EBS_BLOCK / MIB
    mine, theirs = statistics.median(taken for taken, _ in full), statistics.median(bare)
    return {
        "full_mib_s": round(sent / mine, 1),
        "plain_mib_s": round(sent / theirs, 1),
        "ratio": round(theirs / mine, 2),
        "incremental_requests": requests,
        "changed_blocks": len(part.blocks.changed_since(whole.blocks)),
    }


def _configure(url: str) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        del os.environ[name]
    os.environ.update({"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"})
    os.environ.update({"AWS_CONFIG_FILE": os.devnull, "AWS_EC2_METADATA_DISABLED": "true"})


def peak_alone(size: int, work: Path) -> float:
    """Return what a process that only uploads with parbake holds at most, in MiB."""
    command = [sys.executable, "-m", "bench.upload", "--alone", str(work / "disk.raw"), "--mib", str(size // MIB)]
    with stand_in() as server:
        _configure(server.url)
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return float(done.stdout)


def main() -> None:
    """Run the benchmark."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--mib", type=int, default=SIZE // MIB)
    arguments.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    chosen = arguments.parse_args()
    if chosen.alone:
        ours(chosen.alone, "alone")
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    with tempfile.TemporaryDirectory(prefix="parbake-bench-", dir="/var/tmp") as folder:
        result = measure(chosen.mib * MIB, chosen.rounds, Path(folder))
        result["peak_rss_mib"] = round(peak_alone(chosen.mib * MIB, Path(folder)), 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
