"""Logins to ECR by the role of an instance, with real runtimes: Packer's scripts, and the script of an instance.

What they pull starts when the registry is gone, and the token is nowhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from parbake.builders import packer
from parbake.builders.guest import Console, user_data
from parbake.containerd import Cri
from parbake.core.model import GIB, Artefact, Base, Image, LogProbe, Platform, RegistryOptions, Startup
from parbake.core.plan import make_plan
from parbake.core.reference import Reference
from parbake.core.run import run
from parbake.images import pause
from parbake.images.registry import Registry
from parbake.machine.vm import Machine, Ran
from parbake.verify import within
from standins import containerd_support, ecr
from standins.every_layer_feature import busybox_layer
from standins.images import Built, image, index, push
from standins.newer import MACHINES, NEWER, program_of
from standins.registry import DockerRegistry
from tests.system.builders.test_docker import Docker, docker
from tests.system.builders.test_packer_scripts import Instance, instance
from tests.system.containerd.test_versions import starts

__all__ = ["docker", "instance"]

pytestmark = pytest.mark.root

NAME = f"{ecr.HOST}/shop/app:1"
SCRIPTS = Path(packer.__file__).parent / "files/scripts"


def app(*command: str) -> Built:
    """An index, as registries have them."""
    config = {"Cmd": ["/bin/busybox", *command]}
    arm = image(busybox_layer(), platform="linux/arm64", config=config)
    return index(image(busybox_layer(), config=config), arm)


def serve(registry: DockerRegistry, built: Built) -> None:
    push(registry.url, "shop/app", built, "1", user=ecr.USER, ca=registry.ca)


def holders(folder: Path) -> list[str]:
    """Return the files that hold the token."""
    return run(["grep", "-rlFs", ecr.TOKEN, str(folder)], check=False).text.splitlines()


@pytest.mark.parametrize("which", [pytest.param(MACHINES, id="1.7"), pytest.param(NEWER, id="2")])
def test_packers_script_and_a_containerd(instance: Instance, tmp_path: Path, which: str) -> None:
    program, store = program_of(which), tmp_path / "store"
    options = {"cri": True, "sandbox_image": pause.REFERENCE, "containerd": program}
    with (
        ecr.private_ecr(tmp_path / "ecr") as registry,
        containerd_support.SeeingDaemon(store, tmp_path / "run", shown=instance.folder, **options) as daemon,
        daemon.client() as client,
    ):
        serve(registry, app("echo", "hello"))
        instance.program("ctr", f'exec {Path(program).with_name("ctr")} -a {tmp_path}/run/containerd.sock "$@"')
        (instance.bin / "nerdctl").unlink()
        login = instance.folder / "scripts/login.sh"  # containerd 2 itself reads what it writes
        login.write_text(login.read_text().replace("-d /run/", f"-d {instance.folder}/"))
        said = instance.bake(NAME)
        assert "runtime: containerd" in said
        assert f"baked {NAME}" in said
        registry.stop()
        cri = Cri(client.connection, cgroup_parent=daemon.cgroup_parent)
        containerd_support.fill(client, pause.REFERENCE, containerd_support.pause(), seen_by=cri)
        status = cri.image_status(NAME)
        assert status
        assert status.pinned
        assert starts(cri, NAME, daemon.folder / "logs")
    assert holders(store) == []


def test_packers_script_and_docker(docker: Docker, tmp_path: Path) -> None:
    docker.node.program("aws", ecr.AWS)
    with ecr.private_ecr(tmp_path / "ecr") as registry:
        serve(registry, app("echo", "hello"))
        said = docker.run("sh", str(SCRIPTS / "pull-docker.sh"), IMAGE=NAME)
        assert f"parbake: baked {NAME}\n" in said
        registry.stop()
        started = docker.run("docker", "run", "--rm", "--pull", "never", "--network", "host", NAME)
    assert started == "hello\n"
    assert holders(docker.home) == []


def test_the_script_of_an_instance_and_docker(docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine does not trust the registry by itself: the script brings the authority for the time of the bake."""
    docker.node.program("aws", ecr.AWS)
    (docker.node.root / "etc").mkdir()
    (docker.node.root / "etc/docker").symlink_to("/etc/docker")
    with ecr.private_ecr(tmp_path / "ecr", trusted=False) as registry:
        serve(registry, app("sh", "-c", "echo app is ready; exec /bin/busybox sleep 1000"))
        monkeypatch.setenv("PARBAKE_USERNAME", ecr.USER[0])
        monkeypatch.setenv("PARBAKE_PASSWORD", ecr.TOKEN)
        with Registry({registry.host: RegistryOptions(ca=registry.ca, credentials="environment")}) as ours:
            found = ours.resolve(Reference.parse(f"{registry.host}/shop/app:1"), Platform.host())
        plan = make_plan(
            name="node",
            platform=Platform.host(),
            base=Base(kind="file", identity="x", size=GIB),
            artefact=Artefact(kind="machine-image"),
            images=[_named(found)],
            sandbox=None,
        )
        options = {ecr.HOST: RegistryOptions(ca=registry.ca)}
        text = docker.node.run(user_data(plan, "run-1", "bake", limit=600, registries=options))
        console = Console("run-1")
        console.read(text)
        console.judge(plan.all_images, text)
        registry.stop()
        assert not Path("/etc/docker/certs.d").exists(), "whom to trust is forgotten again"
        docker.run("systemctl", "start", "docker")  # a reboot
        docker.run("sh", "-c", "until docker version >/dev/null 2>&1; do sleep 0.05; done")
        [proof] = [docker.prove(within.subject(each, plan)) for each in plan.images]
        [listed] = within.all_subjects(cast("Machine", Listing(docker)))  # as where there is no plan
        unplanned = docker.prove(listed)
    assert proof["problems"] == []
    assert proof["output"] == "app is ready"
    assert (listed["names"], unplanned["problems"], unplanned["output"]) == ([NAME], [], "app is ready")
    assert ecr.TOKEN not in text
    assert holders(docker.home) + [each for each in holders(docker.node.root) if "/run/" not in each] == []


class Listing:
    """A machine that is asked what its Docker has."""

    stretch = 1.0

    def __init__(self, docker: Docker) -> None:
        self._docker = docker

    @property
    def guest(self) -> Listing:
        return self

    def run(self, argv: Sequence[str], *, timeout: float) -> Ran:
        assert timeout > 1
        return Ran(0, self._docker.run(*argv))


def _named(found: Image) -> Image:
    startup = Startup(up=LogProbe(pattern="^app is ready"))
    return found.model_copy(update={"reference": Reference.parse(NAME), "also_by_digest": True, "startup": startup})
