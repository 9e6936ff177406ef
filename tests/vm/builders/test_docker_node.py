"""A node whose kubelet uses Docker, with a real one: `builder: qemu`, the script of an instance, and Packer's scripts.

One machine pulls by all of them from registries with a password; another, without a network, starts what they pulled.
Packer's scripts pull into both generations of containerd as well, while there is a machine.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from parbake import records
from parbake.builders import packer
from parbake.builders.guest import Console, user_data
from parbake.core import run
from parbake.core.errors import MachineError
from parbake.core.events import Events
from parbake.core.model import (
    Base,
    Descriptor,
    Image,
    Layer,
    Plan,
    Platform,
    RegistryOptions,
    Verdict,
)
from parbake.machine import disk
from parbake.machine.disk import formats
from parbake.machine.vm import Machine, agent_credentials, console
from parbake.verify import Verification
from tests.fakes.base import default_base
from tests.fakes.every_layer_feature import busybox_layer
from tests.fakes.images import Built, image, index, push
from tests.fakes.newer import install_docker, program, programs_of_newer
from tests.fakes.registry import Certificates, DockerRegistry, certificates
from tests.fakes.runs import bake, bakefile, private_places, traces

__all__ = ["default_base", "private_places"]

pytestmark = [pytest.mark.root, pytest.mark.vm, pytest.mark.slow(300)]

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
TOKEN = "the-token-of-twelve-hours"
USER, WORD = "ann", "correct-horse-battery-staple"
AUTHORITIES = "etc/ssl/certs/ca-certificates.crt"
BUSYBOX = ("/bin/busybox", "sh", "-c")


def app(word: str, **config: object) -> Built:
    """An index, as registries have them, of an image that says a word."""
    says = {"Entrypoint": [*BUSYBOX, f"echo {word} is ready; exec /bin/busybox sleep 1000"], **config}
    return index(image(busybox_layer(), config=says), image(busybox_layer(), platform="linux/arm64", config=says))


@dataclass(frozen=True)
class Outcome:
    """What was said of the bakes, and of what they left."""

    scripts: Mapping[str, str]
    instance: Console
    listed: str
    secrets: str
    baked: Verdict
    everything: Verdict
    containerd: Mapping[str, str]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """An address of this host that is not its loopback's usual one, which no proxy is asked for (RFC 5737)."""
    found = f"198.51.100.{1 + os.getpid() % 250}"
    run.run(["ip", "address", "replace", f"{found}/32", "dev", "lo"])
    yield found
    run.run(["ip", "address", "delete", f"{found}/32", "dev", "lo"])


def node_image(default_base: Path, path: Path, authority: Path) -> Path:
    """Make the disk of a node with Docker, which trusts a company's authority and gets its token for ECR by a role."""
    disk.copy_sparse(default_base, path, Events())
    with disk.private_mounts():
        root = disk.find_root(path)
        at, kind = path.with_suffix(".mnt"), root.filesystem
        with disk.mount(path, at, offset=root.start, size=root.size, filesystem=kind) as mounted:
            install_docker(mounted.path)
            asked = '[ "$1 $2 $3 $4" = "ecr get-login-password --region eu-west-1" ]'
            program(mounted.path / "usr/local/bin/aws", f"{asked} || exit 255\necho {TOKEN}")
            with (mounted.path / AUTHORITIES).open("ab") as file:
                file.write(authority.read_bytes())
            with (mounted.path / "etc/hosts").open("a") as file:
                file.write(f"127.0.0.1 {ECR}\n")
            newer = mounted.path / "opt/newer"
            newer.mkdir()
            for each in programs_of_newer():
                (newer / each.name).write_bytes(each.read_bytes())
                (newer / each.name).chmod(0o755)
    return path


def described(reference: str, built: Built) -> Image:
    """Return an image as a plan has it, whose content a registry has."""
    chosen = built.children[0]
    root, manifest, config = (
        Descriptor(media_type=each.media_type, digest=each.digest, size=each.size)
        for each in (built.root, chosen.root, chosen.config)
    )
    layers = tuple(
        Layer(media_type=each.media_type, digest=each.digest, size=each.size, diff_id=diff, chain_id=diff)
        for each, diff in zip(chosen.layers, chosen.diff_ids, strict=True)
    )
    return Image(
        reference=reference, platform=Platform.host(), target=root, manifest=manifest, config=config, layers=layers,
        also_by_digest=True,
    )  # fmt: skip


class Node:
    """A machine that reaches one registry, under ECR's name."""

    def __init__(self, machine: Machine, port: int) -> None:
        self.machine, self.guest, self.within = machine, machine.guest, 300 * machine.stretch
        reached = "until ip -4 -o address | grep -q ' 10\\.0\\.2\\.'; do sleep 0.3; done"
        self.guest.check(["sh", "-c", reached], timeout=self.within)
        self.guest.check([
            "systemd-run", "--unit=ecr", "--socket-property=ListenStream=127.0.0.1:443",
            "/usr/lib/systemd/systemd-socket-proxyd", f"10.0.2.2:{port}",
        ])  # fmt: skip

    def packer(self, images: str, runtime: str) -> str:
        """Run the scripts of Packer's folder, as its template does; return what they say."""
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as archive:
            archive.add(Path(packer.__file__).parent / "files/scripts", ".")
        words = [f"IMAGE={images}", f"RUNTIME={runtime}", "MINUTES=30"]
        for _ in range(5):
            self.guest.check(["sh", "-c", "mkdir -p /tmp/parbake && tar -x -C /tmp/parbake"], stdin=tar.getvalue())
            ran = self.guest.run(["env", *words, "sh", "/tmp/parbake/bake.sh"], timeout=self.within)
            if ran.code == 0:
                return ran.output
            # ten seconds, which an emulated machine may need
            assert "TLS handshake timeout" in ran.output, ran.output
        raise AssertionError("no handshake with the registry in five tries")

    def containerd(self, folder: str) -> None:
        """Let the programs of a folder be the node's containerd, and keep its own."""
        self.guest.check([
            "sh", "-c", "systemctl stop docker docker.socket containerd; mkdir -p /opt/older; cd /usr/bin; "
            f"[ -e /opt/older/ctr ] || cp containerd* ctr /opt/older; cp -f {folder}/* .; systemctl start containerd",
        ], timeout=self.within)  # fmt: skip

    def instance(self, plan: Plan, authority: str) -> Console:
        """Run the script of an instance to the machine's power-off; return what it said."""
        options = {ECR: RegistryOptions(ca=authority)}
        data = user_data(plan, "run-1", "bake", limit=self.within, registries=options)
        text = (gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data).decode()
        script = text.partition("text/x-shellscript")[2].partition("\n\n")[2].rpartition("\n--==parbake==")[0]
        self.guest.check(["sh", "-c", "cat >/run/script"], stdin=script.encode())
        with suppress(MachineError):  # the power may be off before it answers
            self.guest.run(["systemd-run", "--no-block", "sh", "/run/script"])
        self.machine.wait_off(self.within)
        said = Console("run-1")
        said.read(console.clean(console.read(self.machine.console_log)))
        return said


def qemu_bake(folder: Path, base: Path, host: str, authority: Certificates) -> tuple[Path, Plan]:
    """Bake with the machine that pulls from parbake alone; return the artefact and its plan."""
    path = bakefile(
        folder,
        [{"reference": f"{host}/team/app:1", "startup": {"up": {"log": "^app is ready"}}}],
        builder="qemu",
        base={"file": str(base)},
        artefact="raw",
        registries={host: {"ca": str(authority.ca)}},
    )
    document = bake(path)
    return Path(document["artefact_path"]), records.read(Path(document["record_path"])).plan


@pytest.fixture(scope="module")
def outcome(default_base: Path, tmp_path_factory: pytest.TempPathFactory, address: str) -> Iterator[Outcome]:
    folder = tmp_path_factory.mktemp("docker")
    authority = certificates(folder / "tls", names=f"IP:{address},IP:127.0.0.1,DNS:{ECR}")
    registries = (
        DockerRegistry(folder / "own", tls=authority, users={USER: WORD}, address=address),
        DockerRegistry(folder / "ecr", tls=authority, users={"AWS": TOKEN}),
    )
    api = app("api")
    with registries[0] as own, registries[1] as ecr, pytest.MonkeyPatch.context() as patch:
        push(own.url, "team/app", app("app"), "1", user=(USER, WORD), ca=own.ca)
        for word in ("packed", "old", "new"):
            push(ecr.url, f"shop/{word}", app(word), "1", user=("AWS", TOKEN), ca=ecr.ca)
        push(ecr.url, "shop/api", api, "1", user=("AWS", TOKEN), ca=ecr.ca)
        login = base64.b64encode(f"{USER}:{WORD}".encode()).decode()
        (folder / "login").mkdir()
        (folder / "login/config.json").write_text(json.dumps({"auths": {own.host: {"auth": login}}}))
        patch.setenv("DOCKER_CONFIG", str(folder / "login"))
        patch.setenv("PARBAKE_CACHE", str(folder / "cache"))
        base = node_image(default_base, folder / "node.raw", authority.ca)
        artefact, plan = qemu_bake(folder / "here", base, own.host, authority)

        port = int(ecr.host.rpartition(":")[2])
        scripts = {}
        with Machine(artefact, folder / "vm", credentials=agent_credentials(), network=(port,)) as machine:
            machine.wait_agent()
            node = Node(machine, port)
            scripts["docker"] = node.packer(f"{ECR}/shop/packed:1", "auto")
            scripts["old"] = node.packer(f"{ECR}/shop/old:1", "containerd")
            node.containerd("/opt/newer")
            scripts["new"] = node.packer(f"{ECR}/shop/new:1", "containerd")
            node.guest.check(
                ["systemctl", "start", "containerd"], timeout=node.within
            )  # Packer's scripts have sealed it
            listed = node.guest.check(["ctr", "-n", "k8s.io", "images", "ls"], timeout=node.within)
            node.containerd("/opt/older")
            # A node that does not trust the authority by itself: the script brings it for the time of the bake.
            node.guest.check(["sh", "-c", f": >/{AUTHORITIES}"])
            secrets = node.guest.run([
                "sh", "-c", f"grep -rls -e {TOKEN} -e {WORD} -e {base64.b64encode(f'AWS:{TOKEN}'.encode()).decode()} "
                "/etc /root /run /tmp /var/lib/docker /var/lib/containerd/io.containerd.metadata.v1.bolt /var/log",
            ], timeout=node.within).output  # fmt: skip
            wanted = plan.model_copy(update={"images": (described(f"{ECR}/shop/api:1", api),)})
            instance = node.instance(wanted, ecr.ca)
        formats.commit(artefact, "raw", folder / "vm/root.qcow2")

    containerd = {}
    plan = plan.model_copy(update={"base": Base(kind="debian")})  # which needs no cloud-init, as it did to bake
    with Verification(artefact, plan, events=Events(), folder=folder / "offline") as rehearsal:
        baked = rehearsal.verdict()
        rehearsal.plan = None
        everything = rehearsal.verdict()
        machine = rehearsal.node.machine
        for word in ("old", "new"):
            words = ["ctr", "-n", "k8s.io", "run", "--rm", f"{ECR}/shop/{word}:1", word, "/bin/busybox", "echo", word]
            containerd[word] = machine.guest.check(words, timeout=120 * machine.stretch)
    yield Outcome(scripts, instance, listed, secrets, baked, everything, containerd)
    assert traces(folder) == []


def test_a_bake_of_qemus_is_proven_through_docker(outcome: Outcome) -> None:
    """What a login of this host pulled starts after a reboot, without a network, under both of its names."""
    verdict = outcome.baked
    assert verdict.passed, verdict
    assert verdict.runtime.startswith("docker 26.")
    [proof] = verdict.images
    assert proof.output == "app is ready"
    assert proof.start_seconds is not None
    assert "Docker runs this node" in verdict.warnings[0]


def test_an_instance_logs_in_and_pulls(outcome: Outcome) -> None:
    """By the token of its role, from a registry whose authority the Bakefile names."""
    console = outcome.instance
    assert console.finished, (console.failure, console.log)
    [names] = console.baked.values()
    assert [name.partition("@")[0] for name in names] == [f"{ECR}/shop/api:1", f"{ECR}/shop/api"]


def test_packers_scripts_pull_by_each_runtime(outcome: Outcome) -> None:
    assert "runtime: docker" in outcome.scripts["docker"], "as the kubelet says"
    for word, runtime in (("old", "containerd"), ("new", "containerd")):
        assert f"runtime: {runtime}" in outcome.scripts[word]
        assert f"baked {ECR}/shop/{word}:1" in outcome.scripts[word]
        [line] = [line for line in outcome.listed.splitlines() if line.startswith(f"{ECR}/shop/{word}:1 ")]
        assert "io.cri-containerd.pinned=pinned" in line
        assert outcome.containerd[word].strip() == word, "with the containerd that came with the node"


def test_all_of_it_starts_offline(outcome: Outcome) -> None:
    verdict = outcome.everything
    assert verdict.passed, verdict
    started = {each.reference.rpartition("/")[2]: each.output for each in verdict.images}
    assert started == {"app:1": "app is ready", "packed:1": "packed is ready", "api:1": "api is ready"}


def test_no_password_stays(outcome: Outcome) -> None:
    assert outcome.secrets == ""
