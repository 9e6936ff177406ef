"""A real Docker on this machine, in folders of its own: the guest's script leads it to this process, Packer's pulls,
and the prover starts what came, when nothing can be pulled any more."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from parbake.builders import Ingredients, packer
from parbake.builders.guest import Console, user_data
from parbake.builders.image_server import serve
from parbake.core import nodefiles
from parbake.core.events import Events
from parbake.core.model import GIB, Artefact, Base, Image, LogProbe, MountedProbe, Platform, RegistryOptions, Startup
from parbake.core.plan import make_plan
from parbake.core.reference import Reference
from parbake.images.registry import Registry, open_source
from parbake.verify import within
from standins import started_as
from standins.containerd_support import traces_of
from standins.every_layer_feature import busybox_layer, file
from standins.guests import SHELLS, Node
from standins.images import image, index, push
from standins.newer import FOLDER, NEWER, program_of
from standins.registry import DockerRegistry, certificates

pytestmark = pytest.mark.root

SAYING = {b"etc/passwd": started_as.PASSWD}
NOBODY = started_as.HOW.model_copy(update={"user": "games"})  # a user of this machine
USER, WORD = "ann", "correct-horse-battery-staple"
SAYS = ("/bin/busybox", "sh", "-c", "echo $WORD is ready; exec /bin/busybox sleep 1000")
# What systemd does for it: starts what the unit says, with the file in /run that comes on top.
SYSTEMCTL = """\
echo "systemctl $*" >>"$FAKE/calls"
D=$FAKE/docker
own=$PARBAKE_ROOT/run/systemd/system/docker.service.d/parbake.conf
stop() { [ ! -f "$D/pid" ] || { kill "$(cat "$D/pid")"; while [ -f "$D/pid" ]; do /bin/sleep 0.05; done; }; }
case "$1 $2" in
"cat docker") cat "$D/unit" ;;
"start docker" | "restart docker")
    [ "$1" = start ] && [ -f "$D/pid" ] && exit 0
    stop
    unit=$D/unit
    [ ! -f "$own" ] || unit=$own
    command=$(sed -n 's/^ExecStart=//p' "$unit" | tail -n 1)
    env=$(sed -n 's/^Environment=//p' "$unit")
    # Its containers' sockets lie below /run/containerd, whatever it is told: in one of its own.
    apart='mkdir -p /run/containerd; mount -t tmpfs tmpfs /run/containerd; exec "$@"'
    PATH=/usr/sbin:/usr/bin:/sbin:/bin setsid unshare -m --propagation private \\
        sh -c "$apart" sh env $env $command >>"$D/log" 2>&1 & ;;
"stop docker") stop ;;
"poweroff --force") kill -9 0 ;;
esac
exit 0
"""


class Docker:
    """A daemon in a folder, which the programs of a node start, stop and ask."""

    def __init__(self, folder: Path, short: Path) -> None:
        program_of(NEWER)
        self.node = Node(folder / "node", SHELLS["dash"])
        self.home = self.node.fake / "docker"
        self.home.mkdir()
        self.socket = f"unix://{short}/d.sock"
        words = [
            str(FOLDER / "usr/sbin/dockerd"), "-H", self.socket, "--data-root", f"{self.home}/data", "--exec-root",
            f"{short}/exec", "--pidfile", f"{self.home}/pid", "--config-file", f"{self.home}/none",
            "--iptables=false", "--ip6tables=false", "--bridge=none", "--userland-proxy=false",
            "--cgroup-parent=parbake-docker",
        ]  # fmt: skip
        (self.home / "none").write_text("{}")
        (self.home / "unit").write_text(f"[Service]\nExecStart={' '.join(words)}\n")
        self.node.program("systemctl", SYSTEMCTL)
        self.node.program("kubelet", "echo Kubernetes v1.22.17-eks-1\n")
        self.node.program("dockerd", "exit 1\n")
        self.node.program("docker", f'exec {FOLDER}/usr/bin/docker -H {self.socket} "$@"\n')

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{self.node.folder / 'bin'}:/usr/bin:/bin",
            "FAKE": str(self.node.fake),
            "PARBAKE_ROOT": str(self.node.root),
        }

    def run(self, *command: str, code: int = 0, **env: str) -> str:
        done = subprocess.run(
            command, env={**self.environment, **env}, capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def prove(self, subject: dict[str, Any], **more: Any) -> dict[str, Any]:
        path = self.home / "subjects"
        path.write_text(json.dumps([{**subject, **more}]))
        program = [sys.executable, "-SE", str(nodefiles.node_file("prove.py")), "docker", str(path)]
        said = self.run(*program, PARBAKE_PLACES=str(self.home / "places"))
        proof: dict[str, Any] = json.loads(said.splitlines()[-1].partition(" ")[2])
        return proof


@pytest.fixture
def docker(tmp_path: Path) -> Iterator[Docker]:
    with TemporaryDirectory(dir="/tmp") as short:  # the path of a socket has at most 107 bytes
        made = Docker(tmp_path, Path(short))
        yield made
        made.run("systemctl", "stop", "docker")
    assert traces_of(str(tmp_path)) == []


def test_what_a_login_of_this_host_pulls_starts_without_a_registry(
    docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARBAKE_USERNAME", USER)
    monkeypatch.setenv("PARBAKE_PASSWORD", WORD)
    config = {"Entrypoint": SAYS, "Env": ["WORD=app"]}
    with DockerRegistry(tmp_path / "registry", tls=certificates(tmp_path / "tls"), users={USER: WORD}) as store:
        layer = busybox_layer(*(file(name, data) for name, data in SAYING.items()))
        built = index(image(layer, config=config), image(layer, platform="linux/arm64", config=config))
        push(store.url, "team/app", built, "1", user=(USER, WORD), ca=store.ca)
        options = {store.host: RegistryOptions(ca=store.ca, credentials="environment")}
        with Registry(options) as registry:
            found = registry.resolve(Reference.parse(f"{store.host}/team/app:1"), Platform.host())
            # Docker asks no proxy for names of the loopback: pods know the image by another.
            names = {name: f"{name}/team/app:1" for name in ("registry.example", "docker.io")}
            apps = [_named(found, name) for name in names.values()]
            plan = make_plan(
                name="node",
                platform=Platform.host(),
                base=Base(kind="file", identity="x", size=GIB),
                artefact=Artefact(kind="machine-image"),
                images=apps,
                sandbox=None,
            )
            source = open_source(registry, found)
            with serve(plan, Ingredients(None, lambda _: source, tmp_path, Events())) as shop:
                server = f"http://127.0.0.1:{shop.port}/{shop.secret}"
                data = user_data(plan, "run-1", "bake", limit=600, registries={}, server=server)
                text = docker.node.run(data)
    console = Console("run-1")
    console.read(text)
    console.judge(plan.all_images, text)
    assert WORD not in text

    (docker.node.root / "run/systemd/system/docker.service.d/parbake.conf").unlink()  # a reboot
    docker.run("systemctl", "start", "docker")
    docker.run("sh", "-c", "until docker version >/dev/null 2>&1; do sleep 0.05; done")
    subjects = [within.subject(app, plan) for app in plan.images]
    for subject in subjects:
        assert len(subject["names"]) == 2, "by tag, and by digest"
        proof = docker.prove(subject)
        assert proof["problems"] == []
        assert proof["output"] == "app is ready"
        assert proof["runtime"].startswith("docker 26.")
        assert proof["start_seconds"] >= 0
    for how, said in (
        (started_as.HOW, started_as.SAYS),
        (started_as.ASKED, None),
        (started_as.BY_NUMBER, started_as.SAYS_BY_NUMBER),
    ):
        proof = docker.prove(subjects[0], start=how.model_dump(mode="json"))
        assert proof["problems"] == []
        assert said in {None, started_as.lines(proof["output"])}
    assert docker.prove(subjects[0], start=started_as.NEVER.model_dump(mode="json"))["problems"] == [
        "not up within 1 s"
    ]
    [problem] = docker.prove(subjects[0], start=NOBODY.model_dump(mode="json"))["problems"]
    assert "unable to find user games" in problem
    mounted = docker.prove(subjects[0], start=Startup(up=MountedProbe()).model_dump(mode="json"))
    assert "needs containerd 2.1 or later, and this is docker 26." in mounted["problems"][0]
    assert "no image of this name" in docker.prove(subjects[0], names=["registry.example/none:1"])["problems"][0]
    assert "the plan says" in docker.prove(subjects[0], config="sha256:00")["problems"][0]


def _named(found: Image, reference: str) -> Image:
    startup = Startup(up=LogProbe(pattern="^app is ready"))
    return found.model_copy(
        update={"reference": Reference.parse(reference), "also_by_digest": True, "startup": startup}
    )


def test_packers_script_pulls_and_names(docker: Docker, tmp_path: Path) -> None:
    with DockerRegistry(tmp_path / "registry") as store:  # Docker asks its own machine without TLS
        digest = push(store.url, "team/app", image(busybox_layer(), config={"Cmd": ["/bin/busybox", "true"]}), "1")
        name = f"{store.host}/team/app:1"
        script = Path(packer.__file__).parent / "files/scripts/pull-docker.sh"
        said = docker.run("sh", str(script), IMAGE=f"{name}@{digest} {store.host}/team/app:1")
    assert said.count(f"parbake: baked {name}\n") == 2
    assert docker.run("docker", "run", "--rm", "--pull", "never", "--network", "host", name) == ""
    assert docker.run("docker", "image", "inspect", "--format", "{{.RepoDigests}}", name).strip() == (
        f"[{name.removesuffix(':1')}@{digest}]"
    )
