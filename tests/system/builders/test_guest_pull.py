"""The guest's script with a real containerd, which pulls from this process what only this process has a login for."""

from __future__ import annotations

import base64
import shutil
from functools import partial
from pathlib import Path

import pytest

from parbake.builders import Ingredients
from parbake.builders.guest import Console, user_data
from parbake.builders.image_server import serve
from parbake.containerd import Daemon
from parbake.core.errors import RegistryError
from parbake.core.events import Events
from parbake.core.model import GIB, Artefact, Base, Plan, Platform, RegistryOptions
from parbake.core.plan import make_plan
from parbake.core.reference import Reference
from parbake.images import pause
from parbake.images.registry import Layout, Registry, open_source
from standins.containerd_support import traces_of
from standins.every_layer_feature import busybox_layer
from standins.guests import SHELLS, Node
from standins.images import image, index, push
from standins.registry import DockerRegistry, certificates

pytestmark = pytest.mark.root

USER, WORD = "ann", "correct-horse-battery-staple"


def plan_of(registry: Registry, host: str, folder: Path) -> Plan:
    """Return the plan for an image behind a login and the pause image, which is in no registry."""
    platform = Platform.host()
    app = registry.resolve(Reference.parse(f"{host}/team/app:1"), platform)
    layout = pause.layout(folder / "pause", platform)
    sandbox = Layout(layout).resolve(Reference.parse(pause.REFERENCE), platform)
    return make_plan(
        name="node",
        platform=platform,
        base=Base(kind="file", identity="x", size=GIB),
        artefact=Artefact(kind="machine-image"),
        images=[app],
        sandbox=sandbox,
    )


def test_a_login_stays_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PARBAKE_USERNAME", USER)
    monkeypatch.setenv("PARBAKE_PASSWORD", WORD)
    node = Node(tmp_path / "node", SHELLS["dash"])
    with DockerRegistry(tmp_path / "registry", tls=certificates(tmp_path / "tls"), users={USER: WORD}) as store:
        shell = busybox_layer()
        both = index(image(shell), image(shell, platform="linux/arm64"))
        push(store.url, "team/app", both, "1", user=(USER, WORD), ca=store.ca)
        options = {store.host: RegistryOptions(ca=store.ca, credentials="environment")}
        with Registry(options) as registry, Daemon(tmp_path / "store", tmp_path / "run", cri=True) as daemon:
            plan = plan_of(registry, store.host, tmp_path)
            ctr = f'exec {shutil.which("ctr")} -a {tmp_path}/run/containerd.sock "$@"\n'
            node.program("ctr", ctr)
            ingredients = Ingredients(None, partial(open_source, registry), tmp_path, Events())
            with serve(plan, ingredients) as shop:
                server = f"http://127.0.0.1:{shop.port}/{shop.secret}"
                data = user_data(plan, "run-1", "bake", limit=600, registries={}, server=server)
                text = node.run(data)
                console = Console("run-1")
                console.read(text)
                console.judge(plan.all_images, text)
                with daemon.client() as client:
                    held = {each.name: each.target.digest for each in client.images.list()}
                planned = {name: each.target.digest for each in plan.all_images for name in each.names}
                assert held.items() >= planned.items()

                store.stop()
                with daemon.client() as client:
                    for name in held:
                        client.images.delete(name)
                again = Console("run-1")
                (node.folder / "console").unlink()
                again.read(node.run(data))
                assert again.failure
                assert isinstance(shop.failure, RegistryError), "what the guest cannot know"
    for path in (each for each in (tmp_path / "node").rglob("*") if each.is_file()):
        held_bytes = path.read_bytes()
        assert WORD.encode() not in held_bytes
        assert base64.b64encode(f"{USER}:{WORD}".encode()) not in held_bytes
    assert traces_of(str(tmp_path)) == []
