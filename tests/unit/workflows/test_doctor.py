"""What the doctor says: judged purely from facts, one file a case in tests/unit/workflows/cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from parbake.core.model import GIB
from parbake.core.programs import PROGRAMS, package_of, table
from parbake.workflows.doctor import Check, Facts, examine, judge

GOLDEN = Path(__file__).parent / "cases"
EVERY_PROGRAM = {program.name: program.oldest or "9.9" for program in PROGRAMS if program.name != "docker"}
COMPLETE = Facts(
    root=True,
    programs=EVERY_PROGRAM,
    filesystems=frozenset({"ext4", "xfs", "overlay"}),
    loop_devices=True,
    mount_namespaces=True,
    accelerator="kvm",
    uefi_firmware=frozenset({"amd64", "arm64"}),
    boto3="1.2.3",
    free={"output": 100 * GIB, "cache": 100 * GIB},
    folders={"output": "/out", "cache": "/cache"},
)


def but(**changes: object) -> Facts:
    return COMPLETE.model_copy(update=changes)


def without(*names: str) -> dict[str, str]:
    return {name: version for name, version in EVERY_PROGRAM.items() if name not in names}


CASES = {
    "complete": COMPLETE,
    "bare": Facts(root=False, boto3_by="make -C /parbake setup"),
    "bare-arm": Facts(root=False, machine="arm64", boto3_by="make -C /parbake setup"),
    "container": but(loop_devices=False, mount_namespaces=False, filesystems=frozenset({"ext4", "overlay"})),
    "no-builder": but(programs=without("buildah", "podman")),
    "one-architecture": but(
        programs=without("qemu-system-aarch64", "qemu-aarch64"), uefi_firmware=frozenset({"amd64"})
    ),
    "podman-only": but(programs=without("buildah")),
    "old-tools": but(programs={**EVERY_PROGRAM, "mke2fs": "1.47.0", "containerd": "1.4.13", "sfdisk": ""}),
    "containerd-of-ones-own": but(programs=without("containerd"), containerd="bin/containerd"),
    "slow-and-full": but(
        accelerator="tcg",
        uefi_firmware=frozenset({"arm64"}),
        boto3="",
        boto3_by="make -C /parbake setup",
        free={"output": 3 * GIB, "cache": GIB},
    ),
}


def show(checks: tuple[Check, ...]) -> str:
    """Only what is not plainly fine, so that a case shows its point."""
    lines = [
        f"{check.status}: {check.name} [{', '.join(check.needed_by)}] {check.found or '-'} | {check.hint}"
        for check in checks
        if check.status != "ok" or " or " in check.name
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_judgement(case: str) -> None:
    assert show(judge(CASES[case])) == (GOLDEN / f"{case}.txt").read_text()


def test_every_check_is_explained() -> None:
    for check in judge(CASES["bare"]):
        assert check.purpose
        assert check.needed_by
        assert (check.status == "ok") == (not check.hint)


def test_a_base_that_came_with_parbake_takes_nothing_that_makes_one() -> None:
    user = but(
        root=False, programs=without("fakechroot", "fakeroot", "grub-mkimage", "mkfs.vfat", "mmdebstrap", "sfdisk")
    )
    for facts, status in ((user, "missing"), (user.model_copy(update={"base_packed": True}), "ok")):
        checks = {check.name: check for check in judge(facts)}
        assert checks["rehearse and verify ext4 volumes"].status == status


def test_this_machine(tmp_path: Path) -> None:
    checks = {check.name: check for check in examine(output=tmp_path / "to be made", cache=tmp_path)}
    assert checks["setpriv"].status == "ok"
    assert checks["setpriv"].found[0].isdigit()
    assert checks["space for output"].found.endswith("to be made")
    assert json.loads(json.dumps([check.model_dump(mode="json") for check in checks.values()]))


def test_every_program_has_its_package() -> None:
    for program in PROGRAMS:
        assert program.package
        assert program.purpose
        assert package_of(program.name) == program.package
    assert {row[0] for row in table()} == {program.name for program in PROGRAMS}
    assert [package_of(name) for name in ("ctr", "something")] == ["containerd", "something"]


def test_doctor_says_which_containerd_it_is() -> None:
    [check] = [each for each in judge(but(containerd="/opt/new/bin/containerd")) if each.name == "containerd"]
    assert (check.status, check.found) == ("ok", "1.6 (/opt/new/bin/containerd)")
