from __future__ import annotations

import platform as host
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from parbake.core.errors import InputError
from parbake.core.model import Platform
from parbake.core.reference import Reference
from parbake.core.run import Deadline
from parbake.images import pause
from parbake.images.registry import Layout

RUNNERS = {"amd64": "qemu-x86_64", "arm64": "qemu-aarch64"}
NATIVE = {"x86_64": "amd64", "aarch64": "arm64"}.get(host.machine())
_RT_SIGTIMEDWAIT = {"amd64": "128", "arm64": "137"}.get(NATIVE or "")


def _command(architecture: str, program: Path) -> list[str]:
    if architecture == NATIVE:
        return [str(program)]
    runner = shutil.which(RUNNERS[architecture])
    if runner is None:
        pytest.skip(f"{RUNNERS[architecture]} is not installed (apt-get install qemu-user)")
    return [runner, str(program)]


def _until(holds: Callable[[], bool]) -> None:
    deadline = Deadline(120, "what is waited for")
    while not holds():
        deadline.sleep(0.01)


def _waits_for_signals(pid: int) -> bool:
    """Before that, a signal ends the program: it has not said yet which it waits for."""
    return Path(f"/proc/{pid}/syscall").read_text().split()[0] == _RT_SIGTIMEDWAIT


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_program_runs_and_ends_when_told(tmp_path: Path, architecture: str, number: signal.Signals) -> None:
    path = tmp_path / "pause"
    path.write_bytes(pause.program(architecture))
    path.chmod(0o755)
    with subprocess.Popen(_command(architecture, path)) as process:
        _until(lambda: _waits_for_signals(process.pid))
        process.send_signal(signal.SIGCHLD)
        process.send_signal(signal.SIGUSR1)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.2)
        process.send_signal(number)
        assert process.wait(120) == 0


@pytest.mark.skipif(NATIVE is None, reason="no native pause program")
def test_the_program_reaps_orphans(tmp_path: Path) -> None:
    """As the first process of a PID namespace it inherits orphans; none may stay a zombie."""
    path = tmp_path / "pause"
    path.write_bytes(pause.program(NATIVE or ""))
    path.chmod(0o755)
    script = f"for n in 1 2 3; do (sleep 0.1 &) ; done; exec {path}"
    isolated = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "sh", "-c", script]
    if subprocess.run([*isolated[:-3], "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    with subprocess.Popen(isolated) as process:
        _until(lambda: len(_children(process.pid)) == 1)
        (first,) = _children(process.pid)
        _until(lambda: Path(f"/proc/{first}/exe").readlink() == path)
        _until(lambda: not _children(first))
        assert process.poll() is None
        process.kill()


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_the_image_is_the_same_on_any_machine(tmp_path: Path, architecture: str) -> None:
    platform = Platform(architecture=architecture)
    folder = pause.layout(tmp_path, platform)
    assert pause.layout(tmp_path, platform) == folder
    image = Layout(folder).resolve(Reference.parse(pause.REFERENCE), platform)
    assert (
        image.target.digest
        == {
            "amd64": "sha256:c11448e1c6156928420071b8ad22896b2194323ba27250c2c174ce0ed8a7f34f",
            "arm64": "sha256:acb9c28a2bf665c8d207cd077c5d83ab7d2660aaa88ae6cb8794aac22e24874b",
        }[architecture]
    )
    assert str(image.reference) == pause.REFERENCE


def test_other_platforms_have_none(tmp_path: Path) -> None:
    assert not pause.available(Platform(architecture="s390x"))
    with pytest.raises(InputError, match="no pause program for s390x"):
        pause.layout(tmp_path, Platform(architecture="s390x"))
