"""Instances of Bottlerocket on EC2's stand-in, and the Systems Manager that reaches them: a script really runs.

Each command's script runs in /bin/sh (and only there: no shell of the control container's), on a PATH that begins with
``apiclient``; that takes ``exec admin sheltie PROGRAM …`` and nothing else, and runs a host's program: ``ctr`` and
``host-ctr`` keep notes of a store, which is what the data volume holds; ``systemctl``, ``rm`` and ``sync`` are noted.
As documented: the agent is online only after a while and only with a role, a command is not known at once, its output
comes when it has ended, cut to 24,000 characters; ``host-ctr pull-image`` pulls by the role and leaves images of ECR
under a second name; ``ctr tasks delete`` ends with a container's own code.

Not modelled: the control and admin containers' file systems and SELinux, ``nsenter``, a real containerd (snapshots,
labels that its CRI sets by itself), commands of Systems Manager that are cancelled, and time.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3

from standins.aws.ec2 import Cloud, refuse
from standins.aws.instances import Machine, Notes

APICLIENT = """\
[ "$1 $2 $3" = "exec admin sheltie" ] || { echo "apiclient: no $*" >&2; exit 2; }
[ -f "$FAKE/no-admin" ] && { echo 'ctr: container "admin" in namespace "default": not found' >&2; exit 1; }
shift 3
echo "$*" >>"$FAKE/calls"
program=$1; shift
exec "$FAKE/../host/$program" "$@"
"""
CTR = """\
[ "$1 $2 $3 $4" = "-a /run/containerd/containerd.sock -n k8s.io" ] || exit 3
shift 4
named() { name=${1#name==\\"}; name=${name%\\"}; grep "^$name " "$FAKE/images"; }
case "$1 $2" in
"version ") printf 'Client:\n  Version: 1\n\nServer:\n  Version:  2.1.6\n' ;;
"images mount") grep -q "^$3 " "$FAKE/images" && echo "$4" >>"$FAKE/mounted" ;;
"images ls")
    [ "$3" = -q ] && { cut -d ' ' -f 1 "$FAKE/images"; exit 0; }
    echo "REF TYPE DIGEST SIZE PLATFORMS LABELS"
    named "$3" | while read -r n d; do
        p=$(grep -qx "$n" "$FAKE/pinned" && echo io.cri-containerd.pinned=pinned)
        echo "$n type $d 1 MiB linux/amd64 $p"; done ;;
"images check") echo "REF TYPE DIGEST STATUS SIZE UNPACKED"; named "$3" >/dev/null &&
    echo "x y z complete (3/3) 1.0 MiB/1.0 MiB $([ -f "$FAKE/packed" ] && echo false || echo true)" ;;
"images tag") put "$5" "$(grep "^$4 " "$FAKE/images" | cut -d ' ' -f 2)" ;;
"images label") echo "$3" >>"$FAKE/pinned" ;;
"images rm") grep -v "^$3 " "$FAKE/images" >"$FAKE/rest"; mv "$FAKE/rest" "$FAKE/images" ;;
"run --detach") [ -f "$FAKE/no-start" ] && { echo "ctr: exec format error" >&2; exit 1; }
    shift 3
    for word; do echo "<$word>"; done >>"$FAKE/started"
    while :; do case "$1" in --env | --user | --cwd | --mount) shift 2 ;; --read-only) shift ;; *) break ;; esac; done
    grep -q "^$1 " "$FAKE/images" || { echo "ctr: image \\"$1\\": not found" >&2; exit 1; }
    echo "$2" >"$FAKE/task" ;;
"tasks ls") echo "TASK PID STATUS"
    echo "$(cat "$FAKE/task") 7 $([ -f "$FAKE/stays" ] && echo RUNNING || echo STOPPED)" ;;
"tasks delete") [ -f "$FAKE/code" ] && exit "$(cat "$FAKE/code")" ;;
esac
exit 0
"""
PUT = """\
put() { grep -v "^$1 " "$FAKE/images" >"$FAKE/rest"; mv "$FAKE/rest" "$FAKE/images"; echo "$1 $2" >>"$FAKE/images"; }
"""
HOST_CTR = """\
[ "$1 $2 $3" = "--containerd-socket=/run/containerd/containerd.sock --namespace=k8s.io pull-image" ] || exit 3
[ -f "$FAKE/refuse" ] && { cat "$FAKE/refuse" >&2; exit 1; }
source=${4#--source=}
case $source in *.dkr.ecr.*)
    put "ecr.aws/arn:aws:ecr:eu-west-1:123456789012:repository/x@${source##*@}" "${source##*@}" ;; esac
put "$source" "${source##*@}"
"""
HOST = {"ctr": PUT + CTR, "host-ctr": PUT + HOST_CTR, "systemctl": "exit 0\n", "rm": "exit 0\n", "sync": "exit 0\n",
        "mkdir": "exit 0\n", "test": '[ "${2##*/}" = weights ]\n'}  # fmt: skip
SLEEP = '[ "$1" -ge 300 ] && exec /bin/sleep 0; exec /bin/sleep 0\n'
_MOST = 24_000


class Bottles(Notes):
    """Machines that do nothing by themselves."""

    def look(self, machine: Machine) -> None:
        machine.looks += 1


type Answer = tuple[int, str, str, str]
"""A script's code, its two outputs, and the store as it has left it."""


@dataclass
class Node:
    """A control container, and behind it a host; ``store`` is what its data volume holds."""

    folder: Path
    home: int = field(default_factory=os.getpid)
    """Whose folder it is: a copy of that process would spoil it."""

    @property
    def fake(self) -> Path:
        return self.folder / "fake"

    @property
    def calls(self) -> list[str]:
        return (self.fake / "calls").read_text().splitlines()

    def run(self, script: str, store: str) -> Answer:
        """Run a script."""
        assert os.getpid() == self.home
        for name, programs in {"bin": {"apiclient": APICLIENT, "sleep": SLEEP}, "host": HOST}.items():
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            for program, text in programs.items():
                path = self.folder / name / program
                path.write_text(f"#!/bin/sh\n{text}")
                path.chmod(0o755)
        images, _, pinned = store.partition("---\n")
        for name, text in (("images", images), ("pinned", pinned)):
            (self.fake / name).write_text(text)
        (self.fake / "calls").touch()
        path = self.folder / "_script.sh"
        path.write_text(script)
        root = self.folder / "root"
        environment = {"FAKE": str(self.fake), "PARBAKE_ROOT": str(root), "PARBAKE_PAUSE": "0"}
        environment["PATH"] = f"{self.folder / 'bin'}:/usr/bin:/bin"
        done = subprocess.run(
            ["/bin/sh", str(path)],
            env=environment,
            check=False,
            timeout=60,
            capture_output=True,
            text=True,
            start_new_session=True,
        )
        kept = f"{(self.fake / 'images').read_text()}---\n{(self.fake / 'pinned').read_text()}"
        return done.returncode, done.stdout[:_MOST], done.stderr[:_MOST], kept


@dataclass
class Rockets(Cloud):
    """EC2 with Systems Manager. ``prepare`` is called with each instance's node before its first command."""

    folder: Path = Path("/tmp")
    """What nodes' folders lie in, also those of copies of the process."""
    hardware: Any = field(default_factory=Bottles)
    prepare: Callable[[Node], object] = lambda _node: None
    nodes: dict[str, Node] = field(default_factory=dict)
    known: dict[tuple[str, ...], Answer] | None = None
    """What scripts said that ran before, on a node like this after the same ones; None: each runs for real."""
    asked_of: dict[str, tuple[str, ...]] = field(default_factory=dict)
    agent_after: int = 2
    """How often the agent is asked for before it answers."""
    commands: dict[str, dict[str, Any]] = field(default_factory=dict)
    scripts: list[str] = field(default_factory=list)
    asked: int = 0

    def rocket(self, region: str) -> str:
        """Make a base AMI of Bottlerocket's."""
        made = self.base(region, "bottlerocket-aws-k8s-1.33-x86_64-v1.50.0-0")
        data = {"DeviceName": "/dev/xvdb", "Ebs": {"VolumeSize": 20}}
        self.details[made]["BlockDeviceMappings"] = [*self.details[made]["BlockDeviceMappings"], data]
        return made

    def _ssm_DescribeInstanceInformation(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        [identity] = arguments["Filters"][0]["Values"]
        assert client.meta.region_name == self.machines[identity].region
        self.asked += 1
        if self.asked <= self.agent_after:
            return {"InstanceInformationList": []}
        return {"InstanceInformationList": [{"InstanceId": identity, "PingStatus": "Online"}]}

    def _ssm_SendCommand(self, client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        [identity] = arguments["InstanceIds"]
        assert arguments["DocumentName"] == "AWS-RunShellScript"
        ec2 = boto3.client("ec2", client.meta.region_name)
        assert self._instance(ec2, identity)["State"]["Name"] == "running"
        [script] = arguments["Parameters"]["commands"]
        assert len(script) < 64 << 10
        assert "{{" not in script, "Systems Manager puts parameters in there"
        machine = self.machines[identity]
        self.scripts.append(script)
        code, out, err, machine.volumes["/dev/xvdb"] = self._answer_of(identity, script, machine.volumes["/dev/xvdb"])
        command = f"00000000-0000-0000-0000-{len(self.commands):012}"
        answer = {"Status": "Success" if code == 0 else "Failed", "StatusDetails": "", "ResponseCode": code}
        self.commands[command] = answer | {"StandardOutputContent": out, "StandardErrorContent": err, "looks": 0}
        return {"Command": {"CommandId": command}}

    def _answer_of(self, identity: str, script: str, store: str) -> Answer:
        if self.known is None:
            return self._node(identity).run(script, store)
        found = re.search(r"^PARBAKE_RUN=(\S+)$", script, re.MULTILINE)
        assert found
        run = found.group(1)
        asked = self.asked_of[identity] = (*self.asked_of.get(identity, (store,)), script.replace(run, "RUN"))
        if asked not in self.known:
            code, out, err, left = self._node(identity).run(script, store)
            self.known[asked] = (code, out.replace(run, "RUN"), err.replace(run, "RUN"), left)
        code, out, err, left = self.known[asked]
        return code, out.replace("RUN", run), err.replace("RUN", run), left

    def _node(self, identity: str) -> Node:
        if identity not in self.nodes:
            self.nodes[identity] = Node(Path(tempfile.mkdtemp(prefix="bottle-", dir=self.folder)))
            self.nodes[identity].fake.mkdir()
            self.prepare(self.nodes[identity])
        return self.nodes[identity]

    def _ssm_GetCommandInvocation(self, _client: Any, arguments: dict[str, Any]) -> Any:  # noqa: N802
        answer = self.commands[arguments["CommandId"]]
        answer["looks"] += 1
        if answer["looks"] == 1:
            raise refuse("InvocationDoesNotExist", "", "GetCommandInvocation")
        if answer["looks"] == 2:
            return {**answer, "Status": "InProgress", "StandardOutputContent": "", "StandardErrorContent": ""}
        return answer
