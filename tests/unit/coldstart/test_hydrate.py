"""What runs on nodes to hydrate: the program as far as it needs no device, and the files that carry it."""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from parbake.aws import limits
from parbake.coldstart import hydrate
from parbake.coldstart.hydrate import export, install, user_data
from parbake.coldstart.trace import Part, Read, Trace, hydrate_list
from parbake.core.nodefiles import node_file
from standins.runs import parbake

LIST = (
    "parbake-hydrate 1\nuuid 00000000-0000-0000-0000-000000000001\nsize 4194304\nranges 2\n1048576 524288\n0 524288\n"
)


@pytest.fixture(scope="module")
def program() -> ModuleType:
    """The node's program, with what lies beside it."""
    spec = importlib.util.spec_from_file_location("hydrate", node_file("hydrate.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(node_file("hydrate.py").parent))
        spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", [*hydrate.PROGRAMS, "boost.py"])
def test_it_is_small_and_speaks_an_old_python(name: str) -> None:
    text = node_file(name).read_text()
    assert len(text.splitlines()) < 500
    ast.parse(text, feature_version=(3, 9))


def test_it_reads_what_parbake_writes(program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reads = (Read(0, 5000, 8), Read(1, 0, 8))
    trace = Trace(uuid="00000000-0000-0000-0000-000000000001", size=4 << 20, parts=(Part(name="a", reads=reads),))
    path = tmp_path / "list"
    path.write_text(hydrate_list(trace))
    head, ranges = program.read_list(path)
    assert head == {"uuid": trace.uuid, "size": "4194304", "ranges": "2"}
    assert ranges == [(2097152, 524288), (0, 524288)]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("text", "ranges", "said"),
    [
        (LIST[:-9], 1, "is not whole: 1 ranges of 2"),
        (LIST + "x y\n", 2, "bad line 'x y'"),
        (LIST.replace("0 524288\n", "-1 5\n"), 1, "bad line '-1 5'"),
        ("parbake-hydrate 1\n", 0, "is not whole"),
    ],
)
def test_a_damaged_list(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, ranges: int, said: str
) -> None:
    path = tmp_path / "list"
    path.write_text(text)
    assert len(program.read_list(path)[1]) == ranges
    assert said in capsys.readouterr().out


@given(data=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: f"parbake-hydrate 1\n{text}".encode()))
def test_any_list_is_read_or_refused(
    program: ModuleType, tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    try:
        _, ranges = program.read_list(path)
    except ValueError:
        assert not data.startswith(b"parbake-hydrate 1\n")
        return
    assert all(offset >= 0 and length > 0 for offset, length in ranges)


@pytest.mark.parametrize(
    ("touch", "ranges", "took", "asked"),
    [
        (0, 65, (0.25, 0.01), 4096),  # the end of each block was there
        (0, 65, (0.25, 0.24), 0),  # it was not
        (0, 65, (0.01, 0.01), 4096),  # all is there already
        (0, 64, (), 0),  # not worth a question
        (4096, 65, (), 4096),
        (524288, 65, (), 524288),
    ],
)
def test_it_finds_out_whether_one_touch_loads_a_block(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, touch: int, ranges: int,
    took: tuple[float, ...], asked: int,
) -> None:  # fmt: skip
    """With a device whose reads take what the case says; tests/system reads real ones."""
    clock, calls, left = [0.0], [], list(took)

    def read_all(
        _device: str, parts: Any, _threads: int, touch: int = 0, done: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], int]:
        calls.append((len(list(parts)), touch))
        clock[0] += left.pop(0) if left else 1.0
        done = {} if done is None else done
        done.update(bytes=0, ranges=0, errors=0)
        return done, 1 << 40

    monkeypatch.setattr(program, "read_all", read_all)
    monkeypatch.setattr(program, "find_device", lambda *_: "/dev/none")
    monkeypatch.setattr(program.time, "monotonic", lambda: clock[0])
    path = tmp_path / "list"
    trace = Trace(size=1 << 30, parts=(Part(name="a", reads=tuple(Read(0, n << 10, 8) for n in range(ranges))),))
    path.write_text(hydrate_list(trace))
    options = argparse.Namespace(list=str(path), wait=0.0, touch=touch, in_flight=32, rest=False, memory=0, hold=0.0)
    options.boost = False
    state = program.State()
    program.hydrate(options, state)
    assert (state.head["phase"], state.blocks["state"]) == ("done", "done")
    assert calls == [*[(16, 0)] * len(took), (ranges, asked)]


def test_its_state_tells_each_phase_and_how_far_it_is(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by whoever reads the file in the middle of a stage."""
    (tmp_path / "list").write_text(LIST)
    state, seen = program.State(str(tmp_path / "run/state"), str(tmp_path / "run/prom")), []

    def look() -> None:
        told = json.loads((tmp_path / "run/state").read_text())
        assert told["version"] == 1
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["since"])
        assert 0 < told["uptime"] <= program.uptime()
        seen.append((told["phase"], told.get("bytes"), told.get("wanted"), told.get("prefetch", {}).get("bytes")))

    def find_device(_name: str, _patience: float) -> str:
        look()
        return "/dev/none"

    def read_all(*given: Any) -> tuple[dict[str, Any], int]:
        given[4].update(bytes=524288, errors=0)
        state.write()  # as its thread does, each second
        look()
        return given[4], 1 << 40

    def prefetch(_options: Any, _device: str, _uuid: str, done: dict[str, Any]) -> None:
        deadline = time.monotonic() + 10
        while state.head["phase"] != "prefetching" and time.monotonic() < deadline:
            time.sleep(0.001)
        done.update(bytes=4096, state="done")
        state.write()
        look()

    for replaced in (find_device, read_all, prefetch):
        monkeypatch.setattr(program, replaced.__name__, replaced)
    options = argparse.Namespace(
        list=str(tmp_path / "list"),
        wait=0.0,
        touch=0,
        in_flight=1,
        rest=False,
        boost=False,
        memory=50,
        mounted=0.0,
        hold=0.0,
    )
    program.hydrate(options, state)
    look()
    assert seen == [
        ("waiting", None, None, None),
        ("loading", 524288, 1048576, None),
        ("prefetching", 524288, 1048576, 4096),
        ("done", 524288, 1048576, 4096),
    ]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["prom", "state"]  # no half of one


def test_a_node_without_the_disk_is_told_as_failed(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list").write_text(LIST)
    for words, state in ((["--wait", "0"], "no-device"), (["--list", str(tmp_path / "none")], "failed")):
        given = ["hydrate.py", "--list", str(tmp_path / "list"), "--state", str(tmp_path / "state"), *words]
        monkeypatch.setattr(sys, "argv", given)
        monkeypatch.setattr(program, "confine", lambda: None)
        program.main()
        told = json.loads((tmp_path / "state").read_text())
        assert (told["phase"], told["state"]) == ("failed", state)


def test_what_a_node_gets(tmp_path: Path) -> None:
    written = export(tmp_path / "out", LIST)
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / "out").iterdir())
    assert (tmp_path / "out/hydrate.list").read_text() == LIST
    assert export(tmp_path / "out", LIST) == written
    copied = re.search(r"COPY (.+) /parbake/", (tmp_path / "out/Containerfile").read_text())
    assert copied is not None
    assert all((tmp_path / "out" / name).exists() for name in copied[1].split())


def test_the_daemonset_may_do_no_more_than_read_disks() -> None:
    daemonset, policy = YAML(typ="safe").load_all(node_file("daemonset.yaml").read_text())
    pod = daemonset["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    (init,), (done,) = pod["initContainers"], pod["containers"]
    assert init["securityContext"]["readOnlyRootFilesystem"]
    written = [mount["mountPath"] for mount in init["volumeMounts"] if not mount.get("readOnly")]
    assert written == ["/run/parbake"]
    assert {volume["hostPath"]["path"] for volume in pod["volumes"]} == {"/dev", "/var/lib/containerd", *written}
    # What it reads counts as its own: a limit would throw it away again.
    assert "limits" not in init["resources"]
    assert done["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert policy["spec"]["podSelector"] == daemonset["spec"]["selector"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & set(policy["spec"])


def test_the_program_holds_no_capability_and_can_get_only_that_to_read(tmp_path: Path) -> None:
    """Seen from inside, after it has begun: root stays root, who owns the disks."""
    script = (
        "import runpy, sys\n"
        f"sys.path.insert(0, {str(node_file('hydrate.py').parent)!r})\n"
        f"hydrate = runpy.run_path({str(node_file('hydrate.py'))!r})\n"
        "hydrate['main'].__globals__['hydrate'] = lambda *_: print(open('/proc/self/status').read())\n"
        f"sys.argv[1:] = ['--state', {str(tmp_path / 'state')!r}]\n"
        "hydrate['main']()\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    found = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    assert {found[name] for name in ("CapEff", "CapInh", "CapAmb")} == {"0000000000000000"}
    assert found["CapPrm"] == "0000000000000004"  # CAP_DAC_READ_SEARCH
    assert found["NoNewPrivs"] == "1"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
@pytest.mark.parametrize("unit", ["parbake-hydrate.service", "parbake-misses.service"])
def test_the_hydrate_unit_is_confined_in_systemds_own_opinion(unit: str) -> None:
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--threshold=20",
        str(node_file(unit)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
    assert "Failed to parse" not in done.stderr
    assert "Unknown" not in done.stderr


def test_the_hydrate_unit_reads_disks_and_writes_none() -> None:
    lines = set(hydrate.confinement())
    assert {
        "DevicePolicy=closed",
        "DeviceAllow=block-* r",
        "NoNewPrivileges=yes",
        "CapabilityBoundingSet=CAP_DAC_READ_SEARCH",
        "ProtectSystem=strict",
        "PrivateNetwork=yes",
    } <= lines
    assert not [line for line in lines if line.startswith("DeviceAllow=") and line != "DeviceAllow=block-* r"]


@pytest.mark.parametrize("knows", [True, False])
def test_user_data_confines_as_the_service_is_where_systemd_knows_how(tmp_path: Path, knows: bool) -> None:
    """A stand-in for systemd-run keeps its words; one of an older systemd refuses a property that it does not know."""
    text = user_data(LIST).replace("/run/parbake", str(tmp_path / "run"))
    refuse = "" if knows else 'case "$*" in *ProtectClock*) exit 1 ;; esac\n'
    (tmp_path / "systemd-run").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" ended >>{tmp_path}/asked\n{refuse}')
    (tmp_path / "systemd-run").chmod(0o755)
    subprocess.run(["/bin/sh", "-eu"], input=text, text=True, check=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    asked = [part.splitlines() for part in (tmp_path / "asked").read_text().split("ended\n") if part]
    assert len(asked) == (1 if knows else 2)
    assert {f"--property={line}" for line in hydrate.confinement()} <= set(asked[0])
    assert asked[-1][-5:] == [
        "python3",
        "-u",
        "/run/parbake/hydrate.py",
        "--list",
        "/run/parbake/hydrate.list",
    ]


def without_docstrings(text: str) -> str:
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            del node.body[0]
    return ast.dump(tree)


def test_user_data_holds_program_and_list(tmp_path: Path) -> None:
    text = user_data(LIST)
    assert text.startswith("#cloud-boothook\n#!/bin/sh\n")
    (unpack,) = re.findall(r"^python3 - <<'END'\n(.*?)\nEND\n", text, re.DOTALL | re.MULTILINE)
    subprocess.run([sys.executable, "-c", unpack.replace("/run/parbake", str(tmp_path))], check=True)
    assert {path.name for path in tmp_path.iterdir()} == {"hydrate.py", "hydrate.list", "hydrate.sh"}
    assert (tmp_path / "hydrate.list").read_text() == LIST
    program, whole = (tmp_path / "hydrate.py").read_text(), node_file("hydrate.py").read_text()
    assert without_docstrings(program) == without_docstrings(whole), "it is the same program without what people read"
    assert len(program) < 0.9 * len(whole)
    assert len(text) < limits.USER_DATA_LIMIT
    assert user_data(LIST) == text


def test_only_nodes_with_raised_volumes_have_what_takes_them_back_and_a_network(tmp_path: Path) -> None:
    for boost in (True, False):
        folder = tmp_path / str(boost)
        folder.mkdir()
        unpack = user_data(LIST, boost=boost).partition("<<'END'\n")[2].partition("\nEND\n")[0]
        subprocess.run([sys.executable, "-c", unpack.replace("/run/parbake", str(folder))], check=True)
        start = (folder / "hydrate.sh").read_text()
        assert (folder / "boost.py").exists() is boost
        assert ("--list /run/parbake/hydrate.list --boost" in start) is boost
        assert ("--property=PrivateNetwork=yes" in start) is not boost
        assert ("AF_INET" in start) is boost
    assert len(user_data(LIST, boost=True)) < len(user_data(LIST)) + 2_600
    assert set(hydrate.confinement()) - set(hydrate.confinement(network=True)) == {
        "PrivateNetwork=yes",
        "RestrictAddressFamilies=none",
    }


def test_user_data_has_nothing_that_templates_take_for_their_own() -> None:
    """Terraform and Flux read ``${`` and ``%{``, Helm ``{{``, shells a backtick."""
    packed = user_data(LIST).partition('text = """')[2].partition('"""')[0]
    assert len(packed) > 5000
    assert not set(packed) & set("$%{}`\"'\\")


def test_the_program_works_without_what_looks_after_memory(tmp_path: Path) -> None:
    """As user data brings it: alone."""
    (tmp_path / "hydrate.py").write_text(node_file("hydrate.py").read_text())
    command = [sys.executable, str(tmp_path / "hydrate.py"), "--list", "/none", "--state", str(tmp_path / "state")]
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert json.loads((tmp_path / "state").read_text())["phase"] == "failed"


@pytest.mark.parametrize("fails", [False, True])
def test_a_raised_volume_goes_back_when_all_is_read_and_the_state_says_so(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    """Beside what the node waits for, also where reading fails."""
    (tmp_path / "list").write_text(LIST)
    order: list[str] = []

    def take_back(device: str, read: threading.Event, told: dict[str, str], *tell: Callable[[], None]) -> None:
        assert read.wait(30)
        order.append(f"take back {device}")
        told["state"] = "optimizing"
        tell[-1]()

    def prefetch(*_: object) -> None:
        order.append("prefetched")
        if fails:
            raise OSError("the disk is gone")

    monkeypatch.setattr(program, "take_back", take_back)
    monkeypatch.setattr(program, "confine", lambda: None)
    monkeypatch.setattr(program.State, "keep", lambda _: None)
    monkeypatch.setattr(program, "find_device", lambda *_: "/dev/nvme1n1")
    monkeypatch.setattr(program, "read_all", lambda *_: ({"bytes": 0, "errors": 0}, 1 << 40))
    monkeypatch.setattr(program, "prefetch", prefetch)
    state = tmp_path / "state"
    monkeypatch.setattr(sys, "argv", ["x", "--list", str(tmp_path / "list"), "--state", str(state), "--boost"])
    others = set(threading.enumerate())
    program.main()
    for thread in set(threading.enumerate()) - others:
        thread.join(30)
    told = json.loads(state.read_text())
    assert (told["phase"], told["boost"]) == ("failed" if fails else "done", {"state": "optimizing"})
    assert order == ["prefetched", "take back /dev/nvme1n1"]


def test_installing_into_a_root(tmp_path: Path) -> None:
    assert not install(tmp_path, LIST)  # no systemd
    (tmp_path / "usr/lib/systemd").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/systemd").touch()
    (tmp_path / "etc").symlink_to("/real-etc")  # as if it led out of the root
    for _ in range(2):
        assert install(tmp_path, LIST)
    assert (tmp_path / "real-etc/parbake/hydrate.list").read_text() == LIST
    link = tmp_path / "real-etc/systemd/system/sysinit.target.wants/parbake-hydrate.service"
    assert str(link.readlink()) == "/etc/systemd/system/parbake-hydrate.service"
    assert not Path("/real-etc").exists()


def test_the_unit_delays_nothing() -> None:
    unit = node_file("parbake-hydrate.service").read_text()
    assert "Type=simple" in unit  # what comes after it does not wait for its end
    assert "Before=containerd.service" in unit
    assert "DefaultDependencies=no" in unit
    assert not re.search(r"^(Requires|After|BindsTo|OnFailure)=", unit, re.MULTILINE)


def test_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "x.raw").touch()
    done = parbake("hydrate", tmp_path / "x.raw", tmp_path / "out", "--json")
    done.refused(2, "InputError", "has no start-up trace")
