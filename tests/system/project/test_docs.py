"""The documents, followed to the letter: every shell block runs, and what they show is what comes out.

Short-cuts, so that this takes a minute and not twenty: commands are copies of a parbake that has loaded already, but
for those in the background, which documents kill; ``bake`` gets ``--no-verify``, but for the tutorial, which tests/vm
follows since it boots a machine; commands that install or test parbake itself are only looked at. Clusters and package
tools are stand-ins on PATH, registries are on the loopback, and names of hosts and ports are replaced by theirs.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from parbake import aws, records
from parbake.core import run
from parbake.core.workspace import cache_folder
from standins import clusters, disks, documents, images
from standins.base import default_base
from standins.documents import ROOT, shapes
from standins.ebs_direct_server import Cloud, Snapshot
from standins.kubernetes import observed
from standins.loopback import free_port
from standins.preloaded import Preloaded
from standins.registry import DockerRegistry, certificates
from tests.vm.machine.vm.test_machine import PRINT

__all__ = ["CASES", "TUTORIAL", "default_base", "follow", "world"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow]

PARBAKE = Path(sys.executable).with_name("parbake")
GOLDEN = ROOT / "tests/unit/cli/cases"
PASSWORD = "a word"
PROGRAMS = '"fleet up" | "fleet worker" | "fleet codec"'
"""What runs in the background until it is killed: a program of its own always."""
# The machine's logins.
NOT_THEIRS = ("DOCKER_", "REGISTRY_", "XDG_")


@dataclass(frozen=True)
class Case:
    """A document that is followed in a folder of its own.

    ``shortcuts``: the commands of parbake that are cut short. ``after``: a document that is followed there before.
    ``own_cache`` keeps the user's cache out of it; ``afresh`` begins every block in the folder, as readers of a README
    do. Another test follows blocks that hold the words ``elsewhere``. ``cut_short``: golden files of what the commands
    that are cut short would say. ``proven``: verifications say yes without booting a machine. ``preloaded``: commands
    are no programs that load parbake anew.
    """

    document: str
    shortcuts: frozenset[str] = frozenset({"bake", "verify", "demo"})
    after: str = ""
    own_cache: bool = False
    afresh: bool = False
    elsewhere: str = "\0"
    cut_short: tuple[str, ...] = ()
    proven: bool = False
    preloaded: bool = True


NOTHING: frozenset[str] = frozenset()
# Where they lead to is a stand-in of its own, in standins/kubernetes and tests/aws.
IN_EC2 = frozenset({"bake in EC2"})
ROLLOUTS = frozenset({"rollout", "rollback", "status", "freeze", "thaw", "watch"})
TUTORIAL = Case("docs/tutorial.md", shortcuts=NOTHING, preloaded=False)
"""It boots a machine: tests/vm follows it."""
MIGRATE = Case("docs/how-to/migrate.md", shortcuts=NOTHING)
EKS = Case("docs/how-to/eks.md", shortcuts=NOTHING)
KARPENTER = Case("docs/how-to/karpenter.md", shortcuts=NOTHING)
"""They bake in EC2 or for EBS: tests/aws follows them, on stand-ins of its own process."""
ENGINE = Case("docs/how-to/fleet-engine.md", shortcuts=NOTHING)
"""It needs an engine: tests/system/fleet/test_pages.py follows it on one that is there."""
HERE = (
    Case(
        "README.md",
        shortcuts=frozenset({"bake", "demo"}) | ROLLOUTS,
        afresh=True,
        elsewhere="init --for eks",
        cut_short=("bake", "demo"),
    ),
    Case(
        "docs/reference/cli.md",
        shortcuts=frozenset({"init", "bake", "demo", "copy", "fetch", "export", "fleet", "suggest"}) | ROLLOUTS,
        proven=True,
    ),
    Case("docs/how-to/rollout.md", shortcuts=IN_EC2 | ROLLOUTS),
    Case("docs/how-to/gitops.md", shortcuts=IN_EC2),
    Case("docs/how-to/files.md", shortcuts=IN_EC2),
    Case("docs/how-to/asg.md", shortcuts=IN_EC2 | ROLLOUTS),
    Case("docs/how-to/nodegroups.md", shortcuts=IN_EC2 | ROLLOUTS),
    Case("docs/how-to/ocean.md", shortcuts=IN_EC2 | ROLLOUTS),
    Case("docs/how-to/parameters.md", shortcuts=IN_EC2 | ROLLOUTS),
    Case("docs/how-to/watch.md", shortcuts=ROLLOUTS),
    Case("docs/how-to/retention.md", shortcuts=frozenset({"prune"})),
    Case("docs/how-to/manifests.md"),
    Case("docs/how-to/private-registries.md"),
    Case("docs/how-to/signing.md", shortcuts=NOTHING, proven=True),
    Case("docs/how-to/volume.md"),
    Case("docs/how-to/without-root.md", shortcuts=frozenset({"bake", "verify"}) | ROLLOUTS),
    Case("docs/how-to/own-base.md"),
    Case("docs/how-to/failed-verification.md", shortcuts=frozenset({"bake"}), after="docs/how-to/own-base.md"),
    Case("docs/how-to/arm64.md", shortcuts=frozenset({"bake"})),
    Case("docs/how-to/keep-layers.md"),
    Case("docs/how-to/ci.md", own_cache=True),
    Case("docs/how-to/fleet.md", proven=True),
    Case("docs/tutorial-fleet.md", shortcuts=NOTHING, proven=True),
    Case("docs/how-to/clean-up.md", own_cache=True),
    Case("docs/how-to/metrics.md"),
    Case("docs/how-to/ebs.md"),
    Case("docs/how-to/ec2.md"),
    Case("docs/how-to/packer.md"),
    Case("docs/how-to/lint.md"),
    Case("docs/how-to/observe.md"),
    Case("docs/how-to/suggest.md"),
    Case("docs/how-to/other-clouds.md", shortcuts=frozenset({"bake", "export"})),
)
CASES = (TUTORIAL, MIGRATE, EKS, KARPENTER, ENGINE, *HERE)

SHORTCUTS = {
    # The base matters in none of the documents in which `init` is cut short: a volume is made in a second.
    "init": 'init) {parbake} "$@"; sed -i "s/^#base: .*/base: none/" "$2/parbake.yaml"; exit ;;',
    "bake": 'bake) shift; set -- bake --no-verify "$@" ;;',
    "bake in EC2": "bake) set -- bake --help ;;",  # there is no AWS here
    # Options and arguments are read, then help is shown.
    "verify": "verify) set -- verify --help ;;",
    "demo": "demo) set -- demo --help ;;",
    # Nothing is verified here.
    "export": 'export) case $2 in packer | kubelet-config) ;; *) set -- "$@" --force ;; esac ;;',
    "suggest": 'suggest) set -- "$@" --help ;;',  # docs/how-to/suggest.md has a history
    "copy": 'copy) set -- "$@" --help ;;',  # there is no AWS here
    "fetch": 'fetch) set -- "$@" --help ;;',  # there is no AWS here
    # Nothing is rolled out here: docs/tutorial-fleet.md does.
    "fleet": 'fleet) case $2 in rollout | gate | approve | rollback | logs) set -- "$@" --help ;; esac ;;',
    **{name: f'{name}) set -- "$@" --help ;;' for name in (*ROLLOUTS, "prune")},
}

DEPLOYMENT = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "app", "namespace": "shop"},
    "spec": {
        "template": {
            "spec": {
                "initContainers": [{"name": "migrate", "image": "registry.example.com/team/tool:2"}],
                "containers": [{"name": "app", "image": "registry.example.com/team/app:1.4"}],
            }
        }
    },
}

# Programs that a machine under test lacks, or must not run.
STAND_INS = {
    "kubectl": """[ ! -e "$HOME/cluster" ] || exec cat "$HOME/cluster/$2.json"\ncat <<'END'\n{manifests}\nEND""",
    "helm": "cat <<'END'\n{manifests}\nEND",
    "kustomize": "cat <<'END'\n{manifests}\nEND",
    "docker": '[ "$1 $2 $4" = "login --username --password-stdin" ] || exit 1\nmkdir -p "$HOME/.docker"\n'
    """printf '{{"auths": {{"%s": {{"auth": "%s"}}}}}}' "$5" "$(printf '%s:%s' "$3" "$(cat)" | base64)" """
    '> "$HOME/.docker/config.json"',
    "docker-credential-pass": """[ "$1" = get ] && printf '{{"Username": "ann", "Secret": "{password}"}}'""",
    "sudo": 'echo "$@" > "{folder}/sudo.log"',
    "uv": '[ "$*" = "tool install --compile-bytecode .[aws]" ]',
    "packer": 'exec {python} {root}/standins/packer_program.py "$@"',
    "gcloud": 'echo "$@"',
    "az": 'echo "$@"',
    "azcopy": 'echo "$@"',
    "make": 'exec {make} --dry-run -C {root} "$@"',
}


@dataclass(frozen=True)
class World:
    """What the documents find around them."""

    folder: Path
    hosts: Mapping[str, str]
    authority: str
    parbake: str
    cloud: Cloud
    access: Mapping[str, str]

    def place(self, text: str) -> str:
        """Put the names of our registries into a text."""
        for name, host in self.hosts.items():
            text = text.replace(name, host)
        return text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, default_base: Path) -> Iterator[World]:
    assert default_base.exists()
    folder = tmp_path_factory.mktemp("docs")
    users, tls = {"ann": PASSWORD}, certificates(folder)
    with (
        DockerRegistry(folder / "public") as public,
        DockerRegistry(folder / "private", tls=tls, users=users) as private,
        (cloud := Cloud()).serve() as url,
        Preloaded(folder) as preloaded,
    ):
        program = {"bin/": None, "bin/app": (Path(run.need("busybox"))).read_bytes()}
        amd64, arm64 = (
            images.image(images.layer(program), platform=platform, config={"Cmd": ["/bin/app", "sleep", "60"]})
            for platform in ("linux/amd64", "linux/arm64")
        )
        images.push(public.url, "team/app", images.index(amd64, arm64), tag="1.4")
        images.push(public.url, "team/tool", amd64, tag="2")
        images.push(private.url, "team/app", amd64, tag="1.4", user=("ann", PASSWORD), ca=private.ca)
        hosts = {
            "registry.example.com": public.host,
            "private.example.com": private.host,
            "127.0.0.1:5000": f"127.0.0.1:{free_port()}",
            **{port: str(free_port()) for port in ("27271", "28271")},  # of the engine in docs/tutorial-fleet.md
        }
        access = {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}
        yield World(folder, hosts, private.ca, preloaded.script, cloud, access)


@pytest.mark.parametrize("case", HERE, ids=lambda case: case.document)
def test_it_can_be_followed(case: Case, world: World) -> None:
    follow(case, world)


def follow(case: Case, world: World) -> None:
    """Run the commands of a document; fails where one fails, or does not say what the document shows."""
    outside = world.folder / Path(case.document).stem
    folder = outside / "here"
    folder.mkdir(parents=True)
    env = environment(case, outside, world)
    prepare(case.document, folder, world)
    if case.after:
        documents.run(documents.read(ROOT / case.after), folder, env, change=world.place)
    blocks = [each for each in documents.read(ROOT / case.document) if case.elsewhere not in each.text]
    said = shapes(documents.run(blocks, folder, env, change=world.place, afresh=case.afresh))
    for golden in case.cut_short:
        said |= shapes((GOLDEN / f"{golden}.txt").read_text())
    for block, following in pairwise(blocks):
        if block.runs and following.language == "text":
            lacking = shapes(world.place(following.text)) - said
            assert not lacking, f"{case.document}, line {following.line}: no run says {sorted(lacking)}"
    if case.document == "README.md":
        packages = [line for line in (ROOT / "packages.apt").read_text().splitlines() if line and line[0] != "#"]
        wanted = ["apt-get", "install", "--no-install-recommends", *packages]
        assert (outside / "sudo.log").read_text().split() == wanted


def environment(case: Case, outside: Path, world: World) -> dict[str, str]:
    """Make programs and a home for a reader."""
    bin_, home = outside / "bin", outside / "home"
    bin_.mkdir()
    home.mkdir()
    manifests = world.place(json.dumps({"apiVersion": "v1", "kind": "List", "items": [DEPLOYMENT]}))
    words = {
        "manifests": manifests,
        "password": PASSWORD,
        "folder": outside,
        "root": ROOT,
        "make": run.need("make"),
        "python": sys.executable,
        "parbake": world.parbake if case.preloaded else PARBAKE,
    }
    cut = "\n".join(SHORTCUTS[name].format(**words) for name in sorted(case.shortcuts))
    alone = f'case "$1 $2" in {PROGRAMS}{" | bake* | verify*" if case.proven else ""}) exec {PARBAKE} "$@" ;; esac'
    programs = {**STAND_INS, "parbake": f'case $1 in\n{cut}\nesac\n{alone}\nexec {{parbake}} "$@"'}
    for name, script in programs.items():
        path = bin_ / name
        path.write_text(f"#!/bin/sh\nset -e\n{script.format(**words)}\n")
        path.chmod(0o755)
    kept = {key: value for key, value in os.environ.items() if not key.startswith(NOT_THEIRS)}
    return {
        **kept,
        "PATH": f"{bin_}:{PARBAKE.parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "PARBAKE_CACHE": str(outside / "cache" if case.own_cache else cache_folder()),
        "XDG_STATE_HOME": os.environ["XDG_STATE_HOME"],  # the key of what is in that cache
        "REGISTRY_PASSWORD": PASSWORD,
        **({"PYTHONPATH": str(ROOT / "standins/proven")} if case.proven else {}),
        **(world.access if Path(case.document).stem in {"gitops", "files"} else {}),
    }


def lies_in(cloud: Cloud, record: records.Record) -> None:
    """Put the AMI of a record into the stand-in of AWS, as its bake had made it."""
    tags = {aws.KEY: record.key, aws.MANAGED: aws.ARTEFACT, aws.VERIFIED: "2026-11-24T00:02:00Z"}
    for region, there in record.published.items():
        [disk] = there.snapshots
        cloud.snapshots[disk.id] = Snapshot(disk.id, 8, tags, region=region, state="completed")
        said = {"Architecture": "x86_64", "RootDeviceName": disk.device}
        image = {"id": there.image, "name": "node", "attributes": said, "snapshot": disk.id, "device": disk.device}
        cloud.images[there.image] = {**image, "tags": tags, "looks": 0, "region": region}


def prepare(document: str, folder: Path, world: World) -> None:
    """Lay out what a reader of a document has already."""
    match Path(document).stem:
        case "README":
            shutil.copy(ROOT / "packages.apt", folder)
            (folder / ".venv").mkdir()
            (folder / ".venv/bin").symlink_to(folder.parent / "bin")
        case "private-registries":
            shutil.copy(world.authority, folder / "company-ca.pem")
        case "own-base" | "failed-verification":
            make_node_image(folder)
        case "observe":
            (folder / "artefacts").mkdir()
            records.write(folder / "artefacts", observed.MADE)
            observed.as_files(observed.shop(), folder.parent / "home/cluster")
        case "suggest":
            write_pods(folder.parent / "home/cluster", world.hosts["registry.example.com"])
        case "gitops" | "files" | "metrics":  # what is rolled out there
            (folder / "artefacts").mkdir()
            made = clusters.machine_image("node", "ami-0123456789abcdef0")
            records.write(folder / "artefacts", made)
            lies_in(world.cloud, made)
        case "without-root" | "ec2":  # the page begins with a Bakefile, or wants one
            blocks = (block.text for block in documents.read(ROOT / document) if block.language == "yaml")
            image = f"{world.hosts['registry.example.com']}/team/app:1.4"
            text = next(blocks, f"version: 1\nbase: none\nimages: ['{image}']\n")
            (folder / "parbake.yaml").write_text(text)
        case "clean-up":
            left = folder / "artefacts/.parbake/0123456789ab.1.ffffffff"
            left.mkdir(parents=True)
            (left / "disk.raw").write_bytes(b"half an artefact")


def write_pods(cluster: Path, registry: str) -> None:
    """Write what kubectl prints of the pods of two images on three nodes."""
    pods = [
        {
            "metadata": {"namespace": "shop", "name": f"{name}-{node}", "creationTimestamp": at},
            "spec": {"nodeName": node, "containers": [{"image": f"{registry}/team/{name}"}]},
        }
        for node in ("ip-10-0-0-10", "ip-10-0-0-11", "ip-10-0-0-12")
        for name, at in (("app:1.4", "2026-11-30T08:00:00Z"), ("tool:2", "2026-12-01T08:00:00Z"))
    ]
    cluster.mkdir(parents=True, exist_ok=True)
    for kind in ("pods", "events"):
        (cluster / f"{kind}.json").write_text(json.dumps({"kind": "List", "items": pods}))


def make_node_image(folder: Path) -> None:
    """Make the least that is a base, with a boot sector that panics at once."""
    tree = disks.root_tree(folder.parent / "tree")
    (tree / "usr/bin").mkdir()
    (tree / "usr/bin/containerd").touch()
    disk = disks.machine(folder.parent / "node.raw", "dos", "ext4", tree)
    with disk.open("r+b") as file:
        file.write(PRINT + b"Kernel panic - not syncing: no init found\r\n\0")
    run.run(["qemu-img", "convert", "-O", "qcow2", str(disk), str(folder / "node.qcow2")])
