"""On PYTHONPATH, parbake's verification says yes without booting anything: for documents that are followed quickly.

What it says in truth is tested in tests/vm.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, override


class _Proven(Loader):
    def __init__(self, real: Loader, replaced: dict[str, Any]) -> None:
        self._real, self._replaced = real, replaced

    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    @override
    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        vars(module).update(self._replaced)


class _Finder(MetaPathFinder):
    @override
    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _REPLACED:
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec
        assert spec.loader
        spec.loader = _Proven(spec.loader, _REPLACED[fullname])
        return spec


def _verify(*_: object, **__: object) -> Any:
    from parbake.core.model import Verdict

    return Verdict(passed=True, accelerator="tcg", boot_seconds=1.0, verified_at="2026-01-01T00:00:00Z")


_REPLACED: dict[str, dict[str, Any]] = {
    "parbake.verify": {"verify": _verify},
    # The documents' images are small files without a program: what a rehearsal finds of them ends no bake.
    "parbake.workflows.bake.rehearsal": {"rehearsal_decides": lambda _: False},
}
if os.geteuid():  # an ordinary user rehearses in a machine, which would boot
    _REPLACED["parbake.workflows.bake.rehearsal"]["rehearses"] = lambda *_: False
sys.meta_path.insert(0, _Finder())
