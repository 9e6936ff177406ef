"""The guest's script in two shells on a node that keeps notes, and what is read from its console."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from parbake.aws import limits
from parbake.builders import seal
from parbake.builders.guest import Console, user_data
from parbake.core.errors import ArtefactFull, BakeFailed, InputError
from parbake.core.model import GIB, Artefact, Base, ExitProbe, Image, Plan, Platform, RegistryOptions, Startup
from parbake.core.plan import make_plan
from standins.guests import SHELLS, Node, bake
from standins.plans import image, layer

ECR = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"


def plan_of(*images: Image, **more: Any) -> Plan:
    usual: dict[str, Any] = {
        "name": "node",
        "platform": Platform(architecture="amd64"),
        "base": Base(kind="ami", identity="ami-1", size=20 * GIB),
        "artefact": Artefact(kind="machine-image", format="ami"),
        "images": images,
        "sandbox": None,
    }
    return make_plan(**{**usual, **more})


@pytest.fixture(params=SHELLS)
def node(request: pytest.FixtureRequest, tmp_path: Path) -> Node:
    return Node(tmp_path, SHELLS[request.param])


def read(text: str) -> Console:
    console = Console("run-1")
    console.read(text)
    return console


def test_a_bake_pulls_by_digest_names_pins_and_seals(node: Node) -> None:
    app = image("registry.example/app:1.4", also_by_digest=True)
    other = image("registry.example/b:2")
    node.holds(app, other)
    (node.root / "etc").mkdir()
    (node.root / "etc/machine-id").write_text("0123\n")
    text = node.run(bake(plan_of(app, other)))
    console = read(text)
    console.judge([app, other], text)
    assert console.baked[app.target.digest] == app.names
    digest = app.target.digest
    hosts = node.root / "run/parbake/hosts"
    pull = f"ctr images pull --platform linux/amd64 --hosts-dir {hosts} registry.example/app@{digest}"
    assert node.calls.count(pull) == 1
    named = {line.split()[0] for line in (node.fake / "images").read_text().splitlines()}
    assert named == {*app.names, *other.names}
    assert set((node.fake / "pinned").read_text().split()) == {*app.names, *other.names}
    assert (node.root / "etc/machine-id").read_text() == ""
    assert f"ctr content rm {app.layers[-1].digest}" in node.calls
    assert f"ctr content label {app.manifest.digest} containerd.io/gc.ref.content.l.0=" in node.calls
    stops = node.calls.index("systemctl stop containerd"), node.calls.index("systemctl poweroff --force")
    assert stops[0] < stops[1]
    assert "systemctl stop kubelet" in node.calls


def test_layers_are_discarded_by_the_plan_not_by_digests_nested_in_a_manifest(node: Node) -> None:
    """An image's author may write more digests into a manifest, such as those of another image's blobs."""
    two = (layer("a"), layer("b", below="a"))
    app, victim = image("registry.example/app:1", layers=two), image("registry.example/victim:1")
    nested = json.dumps({"digest": victim.config.digest}, separators=(",", ":"))
    layers = ",".join(f'{{"digest":"{each.digest}","annotations":{nested}}}' for each in two)
    (node.fake / "manifest").write_text(f'{{"config":{{"digest":"{app.config.digest}"}},"layers":[{layers}]}}')
    node.holds(app, victim)
    node.run(bake(plan_of(app, victim)))
    removed = {call.removeprefix("ctr content rm ") for call in node.calls if call.startswith("ctr content rm ")}
    assert removed == {each.digest for each in (*app.layers, *victim.layers)}
    label = f"ctr content label {app.manifest.digest}"
    assert [call for call in node.calls if call.startswith(label)] == [
        f"{label} containerd.io/gc.ref.content.l.0= containerd.io/gc.ref.content.l.1="
    ]


def test_an_image_without_layers_has_none_to_discard(node: Node) -> None:
    bare = image("registry.example/bare:1", layers=())
    node.holds(bare)
    text = node.run(bake(plan_of(bare)))
    read(text).judge([bare], text)
    assert not any("content rm" in call or "content label" in call for call in node.calls)


def test_a_bake_of_many_images_fits_into_user_data() -> None:
    many = [
        image(f"{ECR}/team/{number}:1", layers=tuple(layer(f"{number} {each}") for each in range(8)))
        for number in range(60)
    ]
    assert len(bake(plan_of(*many))) <= limits.USER_DATA_LIMIT


def test_layers_stay_when_they_are_to_be_kept(node: Node) -> None:
    node.run(bake(plan_of(image(), keep_layers=True)))
    assert not any("content" in call for call in node.calls)


REFUSALS = {
    "dial tcp 10.0.0.1:443: i/o timeout": "cannot be reached from here",
    "lookup registry.example: no such host": "name cannot be resolved",
    "unexpected status: 401 Unauthorized": "refuses this login",
    "no match for platform in manifest: not found": "no variant for linux/amd64",
    "write /var/lib/x: no space left on device": "raise size",
    "x509: certificate signed by unknown authority": "not trusted",
    "registry.example/app@sha256: not found": "no such image",
    "registry.example/app@sha256:a403b401: not found": "no such image",
    "unexpected status from GET request: 403 Forbidden": "refuses this login",
    "error pulling image: Access Denied": "refuses this login",
    "something else": "something else",
}


@pytest.mark.parametrize("said", REFUSALS)
def test_what_fails_is_said_in_one_line_with_the_log(node: Node, said: str) -> None:
    (node.fake / "refuse").write_text(f"ctr: {said}\n")
    text = node.run(bake(plan_of(image())))
    with pytest.raises(ArtefactFull if "no space" in said else BakeFailed) as caught:
        read(text).judge([image()], text)
    assert REFUSALS[said] in caught.value.message
    assert said in caught.value.message
    assert "systemctl poweroff --force" in node.calls
    pulls = [call for call in node.calls if "images pull" in call]
    assert len(pulls) == (5 if "cannot be re" in REFUSALS[said] else 1), "again only where the network is to blame"


def test_another_digest_is_refused(node: Node) -> None:
    text = node.run(bake(plan_of(image())), WRONG="sha256:" + "0" * 64)
    assert "what came is sha256:0000" in read(text).failure


def test_what_is_not_unpacked_is_refused(node: Node) -> None:
    text = node.run(bake(plan_of(image())), UNPACKED="false")
    assert "not unpacked" in read(text).failure


def test_a_bake_that_hangs_powers_itself_off(node: Node) -> None:
    node.program("ctr", 'case "$*" in *pull*) exec /bin/sleep 30 ;; esac; exit 0\n')
    node.program("sleep", '[ "$1" = 2 ] && exec /bin/sleep 0.5; exec /bin/sleep 0.02\n')
    text = node.run(bake(plan_of(image()), limit=2))
    assert "not done within 2 s" in read(text).failure


def test_the_instance_logs_in_to_ecr_and_leaves_no_login(node: Node) -> None:
    node.program("aws", '[ "$4" = eu-west-1 ] && echo SECRET\n')
    app = image(f"{ECR}/app:1")
    text = node.run(bake(plan_of(app)))
    read(text).judge([app], text)
    assert 'Authorization = ["Basic QVdTOlNFQ1JFVA=="]' in (node.fake / "seen-hosts").read_text()
    assert "SECRET" not in text + "\n".join(node.calls)
    left = [path for path in node.root.rglob("*") if path.is_file() and b"QVdTOlNFQ1JFVA" in path.read_bytes()]
    assert left == []


def test_a_credential_provider_serves_where_aws_is_missing(node: Node) -> None:
    node.program("aws", "exit 127\n")
    node.program("ecr-credential-provider", """echo '{"auth":{"*":{"username":"AWS","password":"SECRET"}}}'\n""")
    app = image(f"{ECR}/app:1")
    text = node.run(bake(plan_of(app)))
    read(text).judge([app], text)


LOGINS = {
    "Unable to locate credentials. You can configure credentials": "the instance has no role (aws.instance_profile)",
    "Connect timeout on endpoint URL": "the registry cannot be reached from here",
    "Could not connect to the endpoint URL": "the registry cannot be reached from here",
    "An error occurred (AccessDeniedException): not authorized": "the registry refuses this login (instance profile",
}


@pytest.mark.parametrize("said", LOGINS)
def test_a_login_that_fails_says_why(node: Node, said: str) -> None:
    node.program("aws", f'printf "\\n{said}\\n\\n" >&2; exit 255\n')
    text = node.run(bake(plan_of(image(f"{ECR}/app:1"))))
    assert f"no login for {ECR}: {LOGINS[said]}" in read(text).failure
    assert said in read(text).failure


DOCKER = """\
echo "docker $*" >>"$FAKE/calls"
case "$1" in
image) echo "[x@$(cat "$FAKE/digest")]" ;;
pull) echo "${2##*@}" >"$FAKE/digest" ;;
esac
"""


@pytest.mark.parametrize(("version", "docker"), [("v1.22.17-eks-1", True), ("v1.23.1", False), ("v1.33.0", False)])
def test_the_node_itself_says_whether_docker_runs_it(node: Node, version: str, docker: bool) -> None:
    node.program("kubelet", f"echo Kubernetes {version}\n")
    node.program("dockerd", "exit 0\n")
    node.program("docker", DOCKER)
    text = node.run(bake(plan_of(image())))
    console = read(text)
    console.judge([image()], text)
    assert any(call.startswith("docker pull") for call in node.calls) is docker
    assert any(call.startswith("ctr images pull") for call in node.calls) is not docker
    assert bool(console.warnings) is docker


DOCKERS_UNIT = """\
echo "systemctl $*" >>"$FAKE/calls"
[ "$1" = cat ] && printf 'ExecStart=/old\n\nExecStart=/usr/bin/dockerd -H fd:// $OPTIONS\n'
[ "$1" = poweroff ] && kill -9 0
exit 0
"""


@pytest.fixture
def docker_node(node: Node) -> Node:
    node.program("kubelet", "echo Kubernetes v1.21.14\n")
    node.program("dockerd", "exit 0\n")
    authorities = 'cat "$PARBAKE_ROOT"/etc/docker/certs.d/*/parbake.crt >"$FAKE/authority" 2>/dev/null\n'
    node.program("docker", authorities + DOCKER)
    node.program("systemctl", DOCKERS_UNIT)
    return node


def test_docker_is_led_to_this_process(docker_node: Node) -> None:
    """By options that are gone with the machine: the daemon knows no servers with a path."""
    images = [image("docker.io/library/busybox:1"), image("registry.example/app:1")]
    text = docker_node.run(bake(plan_of(*images), server="http://10.0.2.2:81/secret"))
    read(text).judge(images, text)
    options = docker_node.root / "run/systemd/system/docker.service.d/parbake.conf"
    assert options.read_text().splitlines() == [
        "[Service]",
        "ExecStart=",
        "ExecStart=/usr/bin/dockerd -H fd:// $OPTIONS --registry-mirror http://docker.io"
        " --insecure-registry registry.example",
        "Environment=HTTP_PROXY={0} HTTPS_PROXY={0} NO_PROXY=".format("http://parbake:secret@10.0.2.2:81"),
    ]
    assert options.stat().st_mode & 0o777 == 0o600
    assert "secret" not in text
    assert docker_node.calls.index("systemctl restart docker") < docker_node.calls.index(
        f"docker pull docker.io/library/busybox@{images[0].target.digest}"
    )
    text = docker_node.run(bake(plan_of(image("localhost:5000/app:1")), server="http://10.0.2.2:81/secret"))
    assert "Docker looks for localhost:5000 on its own machine" in text


def test_docker_pulls_without_tls_and_with_an_authority(docker_node: Node, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("an authority\n")
    options = {
        "plain.example": RegistryOptions(plain_http=True),
        "own.example": RegistryOptions(ca=str(tmp_path / "ca.pem")),
    }
    images = [image("plain.example/app:1"), image("own.example/app:1")]
    text = docker_node.run(bake(plan_of(*images), registries=options))
    read(text).judge(images, text)
    said = (docker_node.root / "run/systemd/system/docker.service.d/parbake.conf").read_text()
    assert "--insecure-registry plain.example\n" in said
    assert "PROXY" not in said
    assert (docker_node.fake / "authority").read_text().strip() == "an authority"
    assert not (docker_node.root / "etc/docker/certs.d").exists()


def test_a_docker_that_takes_no_options_says_so(docker_node: Node) -> None:
    docker_node.program("systemctl", f'[ "$1" = restart ] && {{ echo "Job failed" >&2; exit 1; }}\n{DOCKERS_UNIT}')
    text = docker_node.run(bake(plan_of(image()), registries={"registry.example": RegistryOptions(plain_http=True)}))
    assert "Docker does not start with --insecure-registry registry.example: Job failed" in read(text).failure


def test_a_login_that_docker_cannot_use_says_why(docker_node: Node) -> None:
    docker_node.program("aws", "echo token\n")
    refused = 'echo "Error response from daemon: Get https://x/v2/: unauthorized" >&2; exit 1'
    docker_node.program("docker", f'[ "$1" = login ] && {{ {refused}; }}\n{DOCKER}')
    text = docker_node.run(bake(plan_of(image(f"{ECR}/app:1"))))
    assert f"no login for {ECR}: the registry refuses this login" in read(text).failure


def test_verification_proves_what_is_there_and_pulls_nothing(node: Node) -> None:
    app = image("registry.example/app:1", startup=Startup(up=ExitProbe(), env={"A": "it's"}, args=("x y",)))
    (node.fake / "images").write_text(f"{app.names[0]} {app.target.digest}\n")
    (node.fake / "pinned").write_text(f"{app.names[0]}\n")
    text = node.run(user_data(plan_of(app), "run-1", "verify", limit=600, registries={}))
    console = read(text)
    console.judge([app], text, mode="verify")
    assert console.proved[app.names[0]]["problems"] == []
    asked = json.loads((node.root / "run/parbake/subjects").read_text())
    assert asked[0]["start"]["env"] == {"A": "it's"}
    assert asked[0]["start"]["args"] == ["x y"]
    assert not any("pull" in call for call in node.calls)


def test_verification_says_of_each_image_what_is_wrong(node: Node) -> None:
    app, gone = image("registry.example/app:1"), image("registry.example/gone:1")
    (node.fake / "images").write_text(f"{app.names[0]} {app.target.digest}\n")
    (node.fake / "code").write_text("3")
    text = node.run(user_data(plan_of(app, gone), "run-1", "verify", limit=600, registries={}))
    console = read(text)
    assert console.finished
    assert "ended with code 3" in console.proved[app.names[0]]["problems"][0]
    assert "no image of this name" in console.proved[gone.names[0]]["problems"][0]


def test_a_proof_that_breaks_off_is_no_proof(node: Node) -> None:
    node.program("python3", "echo Traceback: no memory >&2; exit 1\n")
    text = node.run(user_data(plan_of(image()), "run-1", "verify", limit=600, registries={}))
    assert "the verification program failed: Traceback: no memory" in read(text).failure


def test_a_proof_of_many_images_fits_into_user_data() -> None:
    many = [image(f"registry.example/{number}:1") for number in range(80)]
    data = user_data(plan_of(*many), "run-1", "verify", limit=600, registries={})
    assert len(data) <= limits.USER_DATA_LIMIT


FILES = (
    "etc/ssh/ssh_host_rsa_key", "etc/ssh/ssh_host_rsa_key.pub", "etc/ssh/sshd_config", "etc/machine-id", "etc/hostname",
    "etc/resolv.conf", "var/lib/cloud/data/x", "var/lib/cloud/instances/i-1/y", "var/lib/cloud/scripts/keep",
    "root/.bash_history", "home/ec2-user/.bash_history", "home/ec2-user/work", "root/.docker/config.json",
    "var/lib/kubelet/pods/a/b", "var/lib/kubelet/config.json", "var/lib/kubelet/other", "tmp/.hidden", "tmp/a b/c",
    "var/tmp/x", "var/log/messages", "var/log/journal/1/system.journal", "usr/bin/nodeadm",
    "etc/containerd/config.toml", "etc/kubernetes/kubelet/config.json.d/00", "var/lib/containerd/io/keep",
)  # fmt: skip


@pytest.mark.parametrize("left_out", [(), ("usr/bin/nodeadm",), ("etc/hostname", "tmp/.hidden")], ids=str)
def test_the_guest_seals_as_the_offline_builder_does(node: Node, tmp_path: Path, left_out: tuple[str, ...]) -> None:
    for name in FILES:
        if name not in left_out:
            path = node.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{name}\n")
    (node.root / "var/log/link").symlink_to("messages")
    other = tmp_path / "offline"
    shutil.copytree(node.root, other, symlinks=True)
    seal.seal(other)
    node.run(bake(plan_of(image())))
    shutil.rmtree(node.root / "run")
    (other / "run").rmdir() if (other / "run").is_dir() else None
    assert tree(node.root) == tree(other)


def tree(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None for path in sorted(root.rglob("*"))
    }


def test_registries_are_named_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("CERTIFICATE")
    images = [
        image(name) for name in ("nginx:1", "127.0.0.1:5000/a:1", f"{ECR}/b:1", "public.ecr.aws/c:1", "r.example/d:1")
    ]
    options = {"r.example": RegistryOptions(ca=str(tmp_path / "ca.pem"))}
    text = bake(plan_of(*images), registries=options).decode()
    for line in (
        "registry 127.0.0.1:5000 http://127.0.0.1:5000 -",
        f"registry {ECR} https://{ECR} ecr:eu-west-1",
        "registry docker.io https://registry-1.docker.io -",
        "registry public.ecr.aws https://public.ecr.aws -",
        "registry r.example https://r.example - CERTIFICATE",
    ):
        assert f"\n{line}\n" in text
    assert "repo_upgrade: none" in text


def test_user_data_fits_or_is_refused() -> None:
    many = [image(f"registry.example/{number}:1") for number in range(40)]
    data = bake(plan_of(*many))
    assert len(data) <= limits.USER_DATA_LIMIT
    assert b"#!/bin/sh" in (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    with pytest.raises(InputError, match="more than fit into EC2 user data"):
        bake(plan_of(*(image(f"registry.example/{number}:1") for number in range(400))))


def test_an_image_of_no_registry_cannot_be_pulled() -> None:
    local = image("localhost/a:1", layout="/here")
    with pytest.raises(InputError, match="not in a registry"):
        bake(plan_of(local))
    text = bake(plan_of(local, image("r.example/d:1")), server="http://10.0.2.2:4711/secret").decode()
    for host in ("localhost", "r.example"):
        assert f"\nregistry {host} http://10.0.2.2:4711/secret -\n" in text, "what serves stands for every registry"


LINES = "\n@parbake r 1 begin bake\n[  3.1] kernel@parbake r 2 stage pull x\n@parbake r 3 fail because\n"


@given(st.lists(st.integers(0, len(LINES)), max_size=6))
def test_a_console_is_read_once_however_often_it_is_shown(ends: list[int]) -> None:
    console = Console("r")
    stages = [stage for end in [*sorted(ends), len(LINES)] for stage in console.read(LINES[:end])]
    assert stages == ["pull x"]
    assert console.failure == "because"


def test_another_run_on_the_same_console_is_nobody() -> None:
    console = Console("r")
    console.read("@parbake q 1 done bake\n")
    assert not console.over


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Kernel panic", "printed nothing"),
        ("@parbake r 1 stage pull x\n", "its last stage was `pull x`"),
        ("@parbake r 1 done bake\n", "but not for"),
    ],
)
def test_a_machine_without_a_verdict_has_failed(text: str, expected: str) -> None:
    console = Console("r")
    console.read(text)
    with pytest.raises(BakeFailed, match=expected):
        console.judge([image()], text)
