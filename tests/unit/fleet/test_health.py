"""What the doctor of fleets says of workers, and what workers say of themselves."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from parbake import __version__, cli
from parbake.core.errors import BadContent, WrongStore
from parbake.fleet.engine.facts import Facts, Pollers, fingerprint, need_root
from parbake.fleet.engine.health import Here, Seen, judge
from parbake.fleet.stores import need_identity
from parbake.records.store import identity_of, open_store

KEY = b"k" * 32
ALL = frozenset({"root", "loops", "kvm"})
GOOD = Facts("1@here", __version__, fingerprint(KEY), ALL)
HERE = Here("here", (fingerprint(KEY),), "s3://bucket/fleet", verify=True)


def said(worker: Facts, here: Here = HERE, queue: str = "bake") -> list[str]:
    seen = Seen("127.0.0.1:7233", {queue: (worker,)})
    return [f"{each.status}: {each.found}" for each in judge(seen, here)][1:]


def test_a_worker_says_what_it_is() -> None:
    mine = Facts.of_this(KEY)
    assert Facts.read(mine.identity()) == mine
    assert mine.name.startswith(f"{os.getpid()}@")
    assert mine.version == __version__
    assert KEY.hex() not in mine.identity()
    assert fingerprint(KEY) != fingerprint(bytes(32))
    assert Facts.read("7@old") == Facts("7@old")


def test_where_all_is_ext4_volumes_no_worker_needs_root() -> None:
    ordinary = replace(GOOD, can=frozenset({"kvm"}))
    assert said(ordinary, replace(HERE, needs_root=False)) == ["ok: 1@here"]


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, "ok: 1@here"),
        ({"key": "0" * 8}, "missing: 1@here: its key differs from the one here"),
        ({"version": "0.0.1"}, f"warn: 1@here: it is parbake 0.0.1, and this is {__version__}"),
        ({"can": frozenset({"kvm"})}, "missing: 1@here: it has no loop devices, it is not root"),
        ({"can": ALL - {"kvm"}}, "warn: 1@here: it has no /dev/kvm, so verification is slow"),
    ],
)
def test_what_is_wrong_with_a_worker(changed: dict[str, Any], found: str) -> None:
    worker = replace(GOOD, **changed)
    assert said(worker) == [found]


def test_whoever_lets_a_task_wait_takes_none() -> None:
    """The engine remembers for minutes who has asked for tasks; who works on one does not ask meanwhile."""
    ago = {"idle": 50.0, "dead": 200.0, "busy": 400.0}
    asked = {name: timedelta(seconds=seconds) for name, seconds in ago.items()}
    assert Pollers(asked, timedelta(seconds=5)).alive() == set(ago), "nobody can tell yet"
    assert Pollers(asked, timedelta(seconds=11)).alive({"busy", "stranger"}) == {"busy"}
    assert Pollers({**asked, "new": timedelta(seconds=3)}, timedelta(hours=1)).alive() == {"new"}


def test_who_cannot_bake_takes_no_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would fail each of them, until its key is in quarantine."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    (tmp_path / "fleet.yaml").write_text("version: 1\nstore: store\nbakefiles: [a/parbake.yaml]\n")
    where = ["-f", str(tmp_path / "fleet.yaml")]
    for words in (["worker"], ["worker", "--queues", "control, bake"], ["up", "--workers", "1"]):
        assert cli.run(["fleet", *words, *where]) == 1
        said = capsys.readouterr().err
        assert "a worker here cannot bake: it is not root" in said
        assert "--queues control,roll" in said
    assert not (tmp_path / ".fleet").exists()
    assert cli.run(["fleet", "worker", "--queues", "control", *where]) == 2
    assert "there is no key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "root"),
    [
        ("base: none", False),
        ("base: none\nbuilder: ebs", False),
        ("base: none\nartefact: {kind: volume, filesystem: xfs}", True),
        ("base: debian", True),
        ("base: none\nimages: [{reference: 'localhost/app:1', build: .}]", True),
        ("base: nonsense", True),
    ],
)
def test_bakes_of_a_fleet_take_root_where_something_is_mounted_or_built(tmp_path: Path, keys: str, root: bool) -> None:
    images = "" if "images" in keys else "images: [registry.example/app:1]\n"
    (tmp_path / "Containerfile").write_text("FROM scratch\n")
    (tmp_path / "parbake.yaml").write_text(f"version: 1\nname: app\n{images}{keys}\n")
    (tmp_path / "fleet.yaml").write_text("version: 1\nstore: store\nbakefiles: [parbake.yaml]\n")
    assert need_root(tmp_path / "fleet.yaml") == root


def test_who_only_plans_needs_no_root() -> None:
    planner = Facts("1@here", __version__, fingerprint(KEY))
    assert said(planner, queue="control") == ["ok: 1@here"]


def test_what_is_not_verified_needs_no_kvm() -> None:
    here = Here(HERE.host, HERE.keys, HERE.store, verify=False)
    assert said(Facts("1@here", __version__, fingerprint(KEY), ALL - {"kvm"}), here) == ["ok: 1@here"]


def test_a_folder_must_be_that_of_all_machines() -> None:
    here = Here("another", HERE.keys, "/srv/fleet", verify=True)
    assert said(GOOD, here) == ["warn: 1@here: it is on another machine, which must mount /srv/fleet"]


def test_a_queue_without_workers_and_a_schedule_that_is_held_are_named() -> None:
    checks = judge(Seen("engine:7233", {"control": (GOOD,), "bake": ()}, held="drained"), HERE)
    assert [(each.name, each.status) for each in checks] == [
        ("engine", "ok"),
        ("schedule", "warn"),
        ("control", "ok"),
        ("bake", "missing"),
    ]
    assert checks[1].found == "held: drained"
    assert checks[-1].found == "no worker takes tasks of the queue bake"
    assert checks[-1].hint == "run one: `parbake fleet worker --queues bake`"


def test_a_store_has_a_word_of_its_own(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert identity_of(open_store(str(one))) == ""
    word = identity_of(open_store(str(one)), make=True)
    assert identity_of(open_store(str(one)), make=True) == word
    need_identity(str(one), word)
    need_identity(str(two), "")
    with pytest.raises(WrongStore, match=r"two on this machine is not the one where the run was begun"):
        need_identity(str(two), word)
    identity_of(open_store(str(two)), make=True)
    with pytest.raises(WrongStore, match=r"is another store than the one where the run was begun"):
        need_identity(str(two), word)
    (two / "identity").write_text("a word\n")
    with pytest.raises(BadContent, match="is not a valid store identity"):
        identity_of(open_store(str(two)))
