"""What stands between parbake and a stand-in for AWS, in the same process: notes, faults, death, late answers.

Since all of AWS is in this process's memory, a fork is a copy of the whole world: ``killed_everywhere`` lets one die at
each call, and whoever looks after the dead one sees what it has left.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition, RLock, get_ident
from typing import Any

import botocore.client
import pytest
from botocore.exceptions import ClientError
from botocore.validate import ParamValidator

from standins.aws.eventual import Eventual
from standins.aws.iam_recorder import note
from standins.forks import fork, in_child
from standins.policies import Tags

READING = ("Describe", "Get", "List")
type Hook = Callable[[str, str, dict[str, Any]], None]


class Killed(BaseException):
    """The process is dead: it makes no further call and cleans nothing up."""


def refuse(code: str, message: str, operation: str = "") -> ClientError:
    """Return AWS's error."""
    return ClientError({"Error": {"Code": code, "Message": message}}, operation)


@dataclass
class Between:
    """Faults and memory. ``before`` and ``after`` are called with each service, operation and its arguments."""

    calls: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)
    before: list[Hook] = field(default_factory=list)
    after: list[Hook] = field(default_factory=list)
    eventual: Eventual | None = None
    """How late everybody hears of what was written; None: at once."""
    hooks: RLock = field(default_factory=RLock)
    """Held while ``before`` and ``after`` are called: by one thread at a time."""
    answered: Counter[int] = field(default_factory=Counter)
    """Threads that stand-ins answer right now, and hold locks of theirs: no copy of this process can free these."""
    changed: Condition = field(default_factory=Condition)
    """Held to change ``answered``."""
    _real: Any = None

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Stand between boto3 and what answers it."""
        self._real = botocore.client.BaseClient._make_api_call
        here = self

        def call(client: Any, operation: str, arguments: dict[str, Any]) -> Any:
            return here.call(client, operation, arguments)

        monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)

    def call(self, client: Any, operation: str, arguments: dict[str, Any]) -> Any:
        """Answer one call."""
        service, region = client.meta.service_model.service_name, client.meta.region_name
        validate(client, operation, arguments)
        return self.passing(
            service, operation, arguments, region, lambda: self._answer(client, service, operation, arguments)
        )

    def passing[T](
        self, service: str, operation: str, arguments: dict[str, Any], region: str, act: Callable[[], T]
    ) -> T:
        """Let a call go by, unless a hook has something against it."""
        with self.hooks:
            for hook in self.before:
                hook(service, operation, arguments)
        self.calls.append((service, operation, arguments))
        with self._answering():
            note(service, operation, arguments, region, self.tags_of)  # asks the cloud, whose lock a copy needs free
            answer = act()
        with self.hooks:
            for hook in self.after:
                hook(service, operation, arguments)
        return answer

    @contextmanager
    def _answering(self) -> Iterator[None]:
        with self.changed:
            self.answered[get_ident()] += 1
        try:
            yield
        finally:
            with self.changed:
                self.answered[get_ident()] -= 1
                self.changed.notify_all()

    def copied(self) -> int:
        """Copy this process, for a hook, as ``os.fork`` does, while no other thread is answered."""
        with self.changed:
            mine = get_ident()

            def alone() -> bool:
                return not any(count for thread, count in self.answered.items() if thread != mine)

            assert self.changed.wait_for(alone, 120), "a stand-in answers for two minutes"
            return fork()

    def _answer(self, client: Any, service: str, operation: str, arguments: dict[str, Any]) -> Any:
        def ask(operation: str, arguments: dict[str, Any]) -> Any:
            return self.real(client, service, operation, arguments)

        if self.eventual and service == "ec2":
            return self.eventual.answer(operation, arguments, ask, client.meta.region_name)
        answer = ask(operation, arguments)
        if self.eventual and service == "ebs":  # what it starts, EC2 knows later
            self.eventual.made(operation, arguments, answer)
        return answer

    def real(self, client: Any, _service: str, operation: str, arguments: dict[str, Any]) -> Any:
        """Ask the stand-in itself."""
        return self._real(client, operation, arguments)

    def tags_of(self, resource: str) -> Tags:
        """Return the tags of a resource."""
        raise NotImplementedError


def validate(client: Any, operation: str, arguments: Mapping[str, Any]) -> None:
    """Fail where boto3 would not take the arguments."""
    model = client.meta.service_model.operation_model(operation)
    known = {key: value for key, value in arguments.items() if key != "UserData"}
    if model.input_shape is not None:
        report = ParamValidator().validate(known, model.input_shape)
        missing_token = "Missing required parameter" in report.generate_report()
        assert not report.has_errors() or missing_token, report.generate_report()


def killed_everywhere(
    cloud: Between,
    run: Callable[[], object],
    check: Callable[[], object],
    *,
    also_before: tuple[str, ...] = (),
    files: Path | None = None,
) -> list[str]:
    """Run once; after each call that changes something, a copy of this process dies, and ``check`` looks at it.

    Between two such calls nothing changes in AWS, so that a kill before one is a kill after the one before it; for the
    sake of what changes on this machine meanwhile, ``also_before`` names calls that it dies before as well, where
    something in the folder ``files`` has changed since it last died (None: always). Returns the calls, in order; a copy
    that fails says why on its own.
    """
    calls: list[str] = []
    seen: list[object] = [None]

    def changed() -> bool:
        before, seen[0] = seen[0], _state(files) if files else None
        return not files or seen[0] != before

    def die(operation: str, when: str) -> None:
        def act() -> None:
            # This thread holds the others, and perhaps is not the one that goes on.
            cloud.hooks, cloud.changed, cloud.answered = RLock(), Condition(), Counter()
            cloud.before.remove(on_the_way_there)
            cloud.after.remove(on_the_way_back)
            check()

        assert in_child(act, copied=cloud.copied) == 0, f"killed {when} call {len(calls)}, {operation}"

    def on_the_way_there(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if operation in also_before and changed():
            die(operation, "before")

    def on_the_way_back(_service: str, operation: str, _arguments: dict[str, Any]) -> None:
        if not operation.startswith(READING):
            calls.append(operation)
            changed()
            die(operation, "after")

    cloud.before.append(on_the_way_there)
    cloud.after.append(on_the_way_back)
    try:
        run()
    finally:
        cloud.before.remove(on_the_way_there)
        cloud.after.remove(on_the_way_back)
    return calls


def _state(folder: Path) -> frozenset[tuple[str, int, int, int]]:
    """Return what tells whether any file below a folder was written, made, renamed or removed."""
    found = set()
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # another thread removes it
            stat = path.lstat()
            found.add((str(path), stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return frozenset(found)


def throttled_everywhere(
    cloud: Between,
    run: Callable[[], object],
    judge: Callable[[Exception | None, Counter[str]], object],
    *,
    not_these: Container[str] = ("PutSnapshotBlock", "GetSnapshotBlock"),
) -> set[str]:
    """Run again and again; each run meets throttling at a call from a place in parbake that has not met it yet.

    In that run the operation is refused from there on, each refusal standing for all tries of botocore's; ``judge`` is
    called with what came of it (None: it ended well) and how often the operation was asked for. What a run leaves, the
    next one finds. The last one meets nothing. ``not_these`` have a policy of their own. Returns the operations.
    """
    met: set[tuple[str, ...]] = set()
    throttled: Counter[str] = Counter()

    def throttle(service: str, operation: str, _arguments: dict[str, Any]) -> None:
        place = (operation, *_places())
        if operation in throttled or (not throttled and operation not in not_these and place not in met):
            met.add(place)
            throttled[operation] += 1
            raise refuse(_THROTTLED.get(service, "ThrottlingException"), "Rate exceeded", operation)

    cloud.before.append(throttle)
    while True:
        throttled.clear()
        came: Exception | None = None
        try:
            run()
        except Exception as error:  # noqa: BLE001 (whatever came of it is looked at)
            came = error
        if throttled:
            judge(came, throttled)
        elif came:
            raise came
        else:
            cloud.before.remove(throttle)
            return {operation for operation, *_ in met}


def _places() -> Iterator[str]:
    """Yield where in parbake this is called from."""
    frame = sys._getframe()
    while frame.f_back:
        frame = frame.f_back
        if "/src/parbake/" in frame.f_code.co_filename:
            yield f"{frame.f_code.co_filename}:{frame.f_lineno}"


_THROTTLED = {"ec2": "RequestLimitExceeded", "ebs": "RequestThrottledException"}
