"""The scripts of Packer's folder, run by the shell of a node: with stand-ins for the node's programs on PATH.

The stand-ins take down how they are called and keep a store in a file; they know nothing of registries. ``ctr`` and
``docker`` fail for what was not pulled, ``aws`` gives a token for one region.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from parbake.builders import packer
from parbake.core import run

pytestmark = pytest.mark.root

SCRIPTS = Path(packer.__file__).parent / "files" / "scripts"
DIGEST = "sha256:" + "a" * 64
ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
TOKEN = "the-token-of-twelve-hours"

NOTE = 'echo "$(basename "$0") $*" >> "$W/calls"\n'
PROGRAMS = {
    "systemctl": NOTE,
    "shutdown": NOTE,
    "cloud-init": NOTE,
    "mktemp": '/usr/bin/mktemp "$@" | tee -a "$W/secrets"',
    "kubelet": 'echo "Kubernetes v1.${MINOR:-30}.4-eks-1"',
    "aws": NOTE + f'[ "$*" = "ecr get-login-password --region eu-west-1" ] || exit 255\necho {TOKEN}',
    "nerdctl": NOTE
    + """case "$1" in
login) [ "$(cat)" = "$TOKEN" ] || exit 1; echo "{}" > "$DOCKER_CONFIG/config.json";;
--namespace) [ "$2 $3" = "k8s.io pull" ] || exit 1; [ -z "${FAIL:-}" ] || exit 1; echo "$5" >> "$W/store";;
esac""",
    "ctr": NOTE
    + """[ "$1" = version ] && exit 0
[ "$1 $2" = "--namespace k8s.io" ] || exit 1
case "$4" in
pull) if [ "$5" = --hosts-dir ]; then cat "$6"/*/hosts.toml > "$W/hosts"; shift 2; fi; echo "$5" >> "$W/store";;
tag) grep -qxF "$6" "$W/store" || exit 1; echo "$7" >> "$W/store";;
label) grep -qxF "$5" "$W/store" && [ "$6" = io.cri-containerd.pinned=pinned ];;
check) echo "REF TYPE DIGEST STATUS SIZE UNPACKED"
    grep -qxF "${5#name==}" "$W/store" && echo "${5#name==} x y complete (2/2) 1/1 ${UNPACKED:-true}";;
esac""",
    "docker": NOTE
    + """case "$1" in
version) ;;
login) [ "$(cat)" = "$TOKEN" ] && touch "$DOCKER_CONFIG/config.json";;
pull) [ -e "$DOCKER_CONFIG/config.json" ] || [ -z "${PRIVATE:-}" ] || exit 1; echo "$3" >> "$W/store";;
tag) grep -qxF "$2" "$W/store" && echo "$3" >> "$W/store";;
image) grep -qxF "$3" "$W/store";;
esac""",
}


class Instance:
    """A folder with the scripts, and the programs that they find."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        (folder / "secrets").touch()
        for name, text in PROGRAMS.items():
            self.program(name, text)
        shutil.copytree(SCRIPTS, folder / "scripts")
        # This machine is no instance: sealing has a test of its own.
        (folder / "scripts/seal.sh").write_text('echo "sealed $1" >> "$W/calls"\n')

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\nset -e\n{text}\n")
        (self.bin / name).chmod(0o755)

    def bake(self, images: str, *, code: int = 0, **env: str) -> str:
        done = subprocess.run(
            ["/bin/sh", str(self.folder / "scripts/bake.sh")],
            env={
                "PATH": f"{self.bin}:/usr/bin:/bin",
                "W": str(self.folder),
                "TOKEN": TOKEN,
                "IMAGE": images,
                **env,
            },
            capture_output=True,
            text=True,
            check=False,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert TOKEN not in said
        secrets = (self.folder / "secrets").read_text().split()
        assert secrets or code, "no folder was made"
        assert not any(Path(each).exists() for each in secrets), "a folder of secrets stayed"
        return said

    @property
    def store(self) -> list[str]:
        return (self.folder / "store").read_text().split()

    @property
    def calls(self) -> str:
        calls = (self.folder / "calls").read_text()
        assert TOKEN not in calls, "a token in the arguments of a program"
        return calls


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    return Instance(tmp_path)


def test_containerd_by_nerdctl(instance: Instance) -> None:
    said = instance.bake(f"{ECR}/shop/api:1.4@{DIGEST} {ECR}/shop/web:2 busybox quay.io/a/b@{DIGEST}")
    assert instance.store == [
        f"{ECR}/shop/api@{DIGEST}",
        f"{ECR}/shop/api:1.4",
        f"{ECR}/shop/web:2",
        "docker.io/library/busybox:latest",
        f"quay.io/a/b@{DIGEST}",
    ]
    assert said.count("parbake: baked ") == 5
    assert said.endswith("parbake: done\n")
    assert instance.calls.count("aws ecr") == 1
    assert instance.calls.count("images label") == 5
    # The time limit is set before anything else and lifted at the end, after sealing.
    assert instance.calls.startswith("shutdown -P +90")
    assert instance.calls.endswith("sealed containerd\nshutdown -c\n")
    assert not (instance.folder / "scripts").exists()


def test_containerd_by_ctr(instance: Instance) -> None:
    (instance.bin / "nerdctl").unlink()
    instance.bake(f"{ECR}/shop/api:1.4 docker.io/team/x:1", MINUTES="7")
    assert instance.store == [f"{ECR}/shop/api:1.4", "docker.io/team/x:1"]
    hosts = (instance.folder / "hosts").read_text()
    assert f'[host."https://{ECR}"]' in hosts
    packed = hosts.split("Basic ")[1].split('"')[0]
    assert run.run(["base64", "-d"], stdin=packed.encode()).text == f"AWS:{TOKEN}"
    assert instance.calls.startswith("shutdown -P +7 ")


def test_docker_on_old_nodes(instance: Instance) -> None:
    said = instance.bake(f"{ECR}/shop/api:1.4@{DIGEST}", MINOR="22", PRIVATE="1")
    assert "runtime: docker" in said
    assert instance.store == [f"{ECR}/shop/api@{DIGEST}", f"{ECR}/shop/api:1.4"]
    assert "nerdctl" not in instance.calls
    assert "sealed docker" in instance.calls


def test_runtimes_are_chosen_by_the_node(instance: Instance) -> None:
    shutil.copytree(instance.folder / "scripts", instance.folder / "kept")
    for minor, chosen in (("9", "docker"), ("22", "docker"), ("23", "containerd"), ("34", "containerd")):
        assert f"runtime: {chosen}" in instance.bake("busybox", MINOR=minor)
        shutil.copytree(instance.folder / "kept", instance.folder / "scripts")
    assert "runtime: containerd" in instance.bake("busybox", MINOR="22", RUNTIME="containerd")
    shutil.copytree(instance.folder / "kept", instance.folder / "scripts")
    assert "RUNTIME is podman" in instance.bake("busybox", code=1, RUNTIME="podman")


@pytest.mark.parametrize(
    ("images", "env", "said"),
    [
        ("", {}, "IMAGE is empty"),
        ("busybox", {"FAIL": "1"}, ""),
        ("busybox", {"UNPACKED": "false"}, "docker.io/library/busybox:latest is not complete and unpacked"),
        (f"{ECR.replace('eu-west-1', 'us-east-1')}/a:1", {}, "ECR gives no token in us-east-1"),
    ],
)
def test_a_bake_that_fails_ends_before_sealing(images: str, env: dict[str, str], said: str, instance: Instance) -> None:
    told = instance.bake(images, code=1, **env)
    assert said in told
    assert not images or "sealed" not in instance.calls


def test_sealing(tmp_path: Path) -> None:
    """In a root of its own, with busybox for its programs."""
    root = tmp_path / "root"
    for folder in ("bin", "dev", "run/systemd/netif/leases", "root/.docker", "home/ec2-user/.docker", "tmp"):
        (root / folder).mkdir(parents=True)
    shutil.copy(run.need("busybox"), root / "bin/busybox")
    for applet in ("sh", "rm", "find", "sync", "echo"):
        (root / "bin" / applet).symlink_to("busybox")
    (root / "bin/systemctl").write_text('#!/bin/sh\necho "$@" >> /tmp/units\n')
    (root / "bin/systemctl").chmod(0o755)
    gone = (
        "etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub", "root/.bash_history", "root/.docker/config.json",
        "home/ec2-user/.docker/config.json", "var/lib/cloud/instances/i-1/x", "var/lib/kubelet/cpu_manager_state",
        "var/lib/kubelet/pods/p/x",
    )  # fmt: skip
    kept = ("etc/ssh/sshd_config", "var/lib/cloud/scripts/x", "var/lib/containerd/db", "home/ec2-user/notes")
    for name in (*gone, *kept, "var/log/messages", "etc/machine-id"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("something")
    shutil.copy(SCRIPTS / "seal.sh", root / "tmp/seal.sh")
    (root / "bin/fstrim").write_text("#!/bin/sh\nexit 1\n")  # a file system that cannot be trimmed is no fault
    (root / "bin/fstrim").chmod(0o755)
    done = subprocess.run(
        ["/usr/sbin/chroot", str(root), "/bin/sh", "/tmp/seal.sh", "containerd"],
        env={"PATH": "/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert [name for name in gone if (root / name).exists()] == []
    assert [name for name in kept if not (root / name).exists()] == []
    assert [(root / name).stat().st_size for name in ("var/log/messages", "etc/machine-id")] == [0, 0]
    assert "stop kubelet\nstop containerd\n" in (root / "tmp/units").read_text()
