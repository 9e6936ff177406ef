"""Show how far a node's hydrate program is, as conditions of the node: ``parbake.dev/Hydrating`` and ``…/Hydrated``.

It reads one small file (see ``State`` in ``hydrate.py``) and patches the status of one node, from a pod with no other
right. ``Hydrating`` is true while something is still to come, and false as soon as nothing is, however that ended: who
waits, waits for that. ``Hydrated`` says whether all of it came. What starts read besides, where the node has found out
(``misses.py``), goes into the log. Whatever fails is logged and tried again: nothing waits for this program itself.
For ``python3 -I``, 3.9 or later, alone; without a change it writes every five minutes.

Sources: Kubernetes' API reference, Node v1 (conditions merge by their type); accessing the API from within a pod.
"""

import argparse
import http.client
import json
import os
import re
import signal
import ssl
import sys
import time
from pathlib import Path

VERSION = 1
PREFIX = "parbake.dev/"
LARGEST, LARGEST_TRACE = 64 << 10, 4 << 20  # bytes of the state, and of a trace
DIED = 30.0  # seconds without a word, of a program that writes every second
HEARTBEAT, LONGEST_WAIT = 300.0, 60.0
COMING = {"waiting": "Waiting", "loading": "Loading", "prefetching": "Prefetching"}
AS_GOOD = ("done", "bounded", "no-list", "")  # all that there was room for is in memory
SINCE = r"\d{4}-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\dZ"
SERVER = "kubernetes.default.svc"  # a name that every API server's certificate has; addresses of proxies it may not
OPTIONS = (
    ("--state", "/run/parbake/hydrate.json", "the state of the node's hydrate program"),
    ("--misses", "/run/parbake/misses.trace", "what starts read besides: put into the log, once, as it is"),
    ("--account", "/var/run/secrets/kubernetes.io/serviceaccount", "the folder with the pod's token and authority"),
    ("--node", os.environ.get("NODE_NAME", ""), "the node that this is"),
    ("--every", 1.0, "seconds between two looks, while something is still to come"),
    ("--patience", 60.0, "seconds to wait for the state of a program that has not begun"),
)


def read_state(path):
    """Return the state that a node's program has left; {} where there is none, or nothing that is one."""
    try:
        with Path(path).open("rb") as file:
            state = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    return state if isinstance(state, dict) else {}


def read_misses(path):
    """Return the line that tells what starts read besides their list, and when it was written; "" for nothing."""
    try:
        with Path(path).open("rb") as file:
            text = file.read(LARGEST_TRACE + 1).decode(errors="replace").strip()
            return ("" if len(text) > LARGEST_TRACE or "\n" in text else text), os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return "", 0


def uptime():
    """Return the seconds since this machine booted: the node's clock, in containers as well."""
    return float(Path("/proc/uptime").read_text().split()[0])


def judged(state, now, expected):
    """Return what a state means: whether something is still to come, whether all came, the reason, and a sentence.

    ``now`` is the uptime; ``expected`` says whether a program that has told nothing may still begin. Pure.
    """
    phase, written = state.get("phase"), state.get("uptime")
    if not state:
        return expected, False, "NotStarted", "no hydrate program has told its state on this node"
    if state.get("version") != VERSION or not isinstance(phase, str) or not isinstance(written, (int, float)):
        return False, False, "UnknownVersion", "the state is of another version of parbake"
    if phase in COMING:
        if -1 <= now - written <= DIED:
            return True, False, COMING[phase], told(state)
        return False, False, "Died", "the hydrate program has ended, or hangs, without a word: " + told(state)
    ends = [state.get("state", "failed"), files_of(state).get("state", "")]
    reason = next((end for end in ends if end not in AS_GOOD), ends[1] or "done")
    words = "".join(part.capitalize() for part in str(reason).split("-"))
    return False, all(end in AS_GOOD for end in ends), words if words.isalpha() else "Failed", told(state)


def files_of(state):
    """Return what a state says of files."""
    files = state.get("prefetch")
    return files if isinstance(files, dict) else {}


def told(state):
    """Return in words what has been loaded."""
    known = ((state, "blocks loaded"), (files_of(state), "files in memory"))
    words = []
    for figures, what in known:
        done, wanted = (
            figures.get("resident", figures.get("bytes")),
            figures.get("wanted"),
        )  # what stayed, if it says so
        if isinstance(done, int) and isinstance(wanted, int):
            words.append(f"{done >> 20} of {wanted >> 20} MiB of {what}")
    return ", ".join(words)[:300] or "nothing loaded"


def conditions(judgement, since, now):
    """Return a node's conditions; ``since`` is when they became what they are, ``now`` the time. RFC 3339. Pure."""
    coming, all_came, reason, message = judgement
    return [
        {
            "type": PREFIX + name,
            "status": str(value),
            "reason": reason,
            "message": message,
            "lastTransitionTime": since,
            "lastHeartbeatTime": now,
        }
        for name, value in (("Hydrating", coming), ("Hydrated", all_came))
    ]


def patch(node, account, found):
    """Write conditions into the status of a node; raises OSError, HTTPException, or RuntimeError with the answer."""
    token = Path(account, "token").read_text().strip()  # it is replaced by the kubelet before it expires
    context = ssl.create_default_context(cafile=str(Path(account, "ca.crt")))
    # EKS' authorities lack the key identifier that Python 3.13 asks for (kubernetes-client/python#2394).
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], int(os.environ.get("KUBERNETES_SERVICE_PORT", "443"))
    client = http.client.HTTPConnection(host, port, timeout=10)
    try:
        client.connect()
        client.sock = context.wrap_socket(client.sock, server_hostname=SERVER)
        headers = {
            "Authorization": f"Bearer {token}",
            "Content-Type": "application/strategic-merge-patch+json",
            "User-Agent": "parbake-agent",
        }
        body = json.dumps({"status": {"conditions": found}})
        client.request("PATCH", f"/api/v1/nodes/{node}/status?fieldManager=parbake-agent", body, headers)
        answer = client.getresponse()
        text = answer.read(1 << 20)
        if answer.status != 200:
            raise RuntimeError(f"the API server says {answer.status}: {text[:300].decode(errors='replace')}")
    finally:
        client.close()


def main():
    """Look and write until this is ended; what fails is tried again, later each time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, what in OPTIONS:
        parser.add_argument(name, default=default, type=type(default), help=what)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # the first process of a container has no default
    began, written, wrote, wait, known = time.monotonic(), None, 0.0, options.every, 0
    while True:
        line, told_at = read_misses(options.misses)
        if line and told_at != known:
            print(line)
            known = told_at
        state = read_state(options.state)
        try:
            judgement = judged(state, uptime(), time.monotonic() - began < options.patience)
            what = judgement[:3]
            if what != written or time.monotonic() - wrote >= HEARTBEAT:
                now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
                since = state.get("since")
                is_time = isinstance(since, str) and re.fullmatch(SINCE, since, re.ASCII)
                patch(options.node, options.account, conditions(judgement, since if is_time else now, now))
                if what != written:
                    print(
                        f"condition: hydrating {judgement[0]}, hydrated {judgement[1]}: {judgement[2]}: {judgement[3]}"
                    )
                written, wrote = what, time.monotonic()
            wait = options.every if judgement[0] else max(options.every, 15.0)
        except Exception as error:  # noqa: BLE001 - whatever it is, the next try may go well
            wait = min(LONGEST_WAIT, max(options.every, wait) * 2)
            print(f"condition: cannot write the conditions of {options.node}, next try in {wait:.0f} s: {error}")
        time.sleep(wait)


if __name__ == "__main__":
    main()
