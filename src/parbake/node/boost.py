"""Take a volume that was launched raised back to what every gp3 has, once a start has read its fill, or after a while.

With the credentials of the instance's role (IMDSv2), on the volume behind the device that this node reads: NVMe devices
of EBS say its id. No pod waits for it, and whatever AWS says is told in the state file and the log. It first looks what
was asked for last, so that it asks once, also after a reboot, or where it was killed.

Sources: EC2 API reference, ModifyVolume (four changes in 24 hours, the next one when the last is completed) and
DescribeVolumesModifications; EC2 user guide, "Use IMDSv2"; IAM user guide, "Signature Version 4". For Python 3.9 or
later, alone, and short: it goes into user data.
"""

import hashlib
import hmac
import itertools
import json
import os
import re
import time
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import urlencode

BACK = {"Iops": "3000", "Throughput": "125"}
LEAST = 60.0  # seconds since boot: so long is paid for anyway
UNREAD = 600.0  # seconds after which it goes back though files are still being read
GIVE_UP = 3600.0  # seconds of trying: `parbake clean --aws` finds the volume
PAUSES = (5, 15, 30, 60, 120, 240)  # seconds between looks; the last one again and again
METADATA = "169.254.169.254"
FINAL = r"Invalid|Unauthorized|VolumeModificationRateExceeded"
"""Refusals that the next hour does not change. Of others nobody knows: of a volume that initializes, for one."""


class Ec2Error(Exception):
    """EC2 says no: a code of its own, and why."""


def volume_of(device, devices="/sys/class/block"):
    """Return the id of the EBS volume behind a device or a partition of it; empty where it is another disk."""
    place = Path(os.path.realpath(f"{devices}/{Path(device).name}"))
    for folder in (place / "device", place.parent / "device"):
        with suppress(OSError):
            found = re.fullmatch("vol-?([0-9a-f]{8,17})", (folder / "serial").read_text().strip())
            if found and "Amazon Elastic Block Store" in (folder / "model").read_text():
                return f"vol-{found[1]}"
    return ""


def send(connection, method, path, body="", head=None):
    """Send a request, through no proxy and after no redirect; return whether all is well, and the answer's text."""
    try:
        connection.request(method, path, body, head or {})
        answer = connection.getresponse()
        return answer.status == 200, answer.read(1 << 18).decode(errors="replace")
    finally:
        connection.close()


def metadata(path, method="GET", head=None):
    """Return what the instance's metadata service says."""
    well, text = send(HTTPConnection(METADATA, timeout=5), method, f"/latest/{path}", head=head)
    if not well:
        raise OSError(f"the metadata service has no {path}")
    return text.strip()


def ask(action, **words):
    """Return EC2's answer, in the region of this instance, by its role; raise Ec2Error."""
    head = {"X-aws-ec2-metadata-token-ttl-seconds": "60"}
    head = {"X-aws-ec2-metadata-token": metadata("api/token", "PUT", head)}
    region, domain, roles = (
        metadata(f"meta-data/{path}", head=head)
        for path in ("placement/region", "services/domain", "iam/security-credentials/")
    )
    keys = json.loads(metadata(f"meta-data/iam/security-credentials/{roles.split()[0]}", head=head))
    host, body = f"ec2.{region}.{domain}", urlencode({"Action": action, "Version": "2016-11-15", **words})
    well, text = send(HTTPSConnection(host, timeout=10), "POST", "/", body, signed(host, region, body, keys))
    if not well:
        raise Ec2Error(f"{value(text, 'Code')}: {value(text, 'Message')}")
    return text


def value(text, name):
    """Return the first value of an XML answer by its name, on one line; empty where there is none."""
    found = re.search(f"<{name}>([^<]*)<", text)
    return " ".join(found[1].split())[:300] if found else ""


def signed(host, region, body, keys, now=None):
    """Return the headers of a request to EC2, signed (version 4)."""
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    head = {
        "content-type": "application/x-www-form-urlencoded",
        "host": host,
        "x-amz-date": date,
        "x-amz-security-token": keys["Token"],
    }
    names, lines = ";".join(head), "".join(f"{name}:{text}\n" for name, text in head.items())
    request = "\n".join(("POST", "/", "", lines, names, hashlib.sha256(body.encode()).hexdigest()))
    scope, kind = f"{date[:8]}/{region}/ec2/aws4_request", "AWS4-HMAC-SHA256"
    text = "\n".join((kind, date, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = f"AWS4{keys['SecretAccessKey']}".encode()
    for part in (*scope.split("/"), text):
        key = hmac.new(key, part.encode(), "sha256").digest()
    by = f"Credential={keys['AccessKeyId']}/{scope}, SignedHeaders={names}, Signature={key.hex()}"
    return {**head, "authorization": f"{kind} {by}"}


def last_change(volume):
    """Return the state of a volume's last change, what it made of it, and of what; three empty ones: there was none."""
    try:
        text = ask("DescribeVolumesModifications", **{"VolumeId.1": volume})
    except Ec2Error as error:
        if "NotFound" not in str(error):
            raise
        text = ""
    to, of = ({name: value(text, when + name) for name in BACK} for when in ("target", "original"))
    return value(text, "modificationState"), to, of


def take_back(device, ready, told, uptime, tell):
    """Wait until files are read (``ready`` is set), then take a device's volume back; ``told`` has what came of it."""

    def say(state, said=""):
        if told.get("state") != state:
            print(f"boost: {told['volume'] or device} is {state} {said}")
        told.update(state=state, said=said)
        tell()

    try:
        told["volume"] = volume_of(device)
        if not told["volume"]:
            return say("failed", "the device does not say which volume it is: it stays raised")
        say("raised")
        ready.wait(UNREAD)
        time.sleep(max(0.0, LEAST - uptime()))
        lower(told, say, time.monotonic() + GIVE_UP)
    except Exception as error:  # noqa: BLE001 - whatever it is, the node goes on
        say("failed", repr(error))


def lower(told, say, until):
    """Ask until the volume is as every gp3, somebody else has decided, or nothing is to be hoped for."""
    for pause in itertools.chain(PAUSES, itertools.repeat(PAUSES[-1])):
        try:
            state, to, of = last_change(told["volume"])
            ours, under_way = to == BACK, state in {"modifying", "optimizing"}
            asked = told.get("asked", 0)
            if ours and (state in {"optimizing", "completed"} or (state == "failed" and asked > 1)):
                return say(state)
            if state == "completed" and to != of:
                return say("foreign", f"somebody else has made it {to}")
            if under_way:
                say(state if ours else "busy", "" if ours else f"somebody else makes it {to}")
            else:
                told["asked"] = asked + 1
                ask("ModifyVolume", VolumeId=told["volume"], **BACK)
                say("modifying")
        except (Ec2Error, OSError, ValueError, LookupError, HTTPException) as error:
            say("refused", str(error))
            if isinstance(error, Ec2Error) and re.match(FINAL, str(error)):
                return None
        if time.monotonic() > until:
            return say("gave-up", told["said"])
        time.sleep(pause)
    return None
