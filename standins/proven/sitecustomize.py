"""On PYTHONPATH, parbake's verification says yes without booting anything: for documents that are followed quickly.

What it says in truth is tested in tests/vm.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, override


class _Proven(Loader):
    def __init__(self, real: Loader) -> None:
        self._real = real

    @override
    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    @override
    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        module.verify = _verify  # type: ignore[attr-defined]


class _Finder(MetaPathFinder):
    @override
    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname != "parbake.verify":
            return None
        spec = PathFinder.find_spec(fullname, path)
        assert spec
        assert spec.loader
        spec.loader = _Proven(spec.loader)
        return spec


def _verify(*_: object, **__: object) -> Any:
    from parbake.core.model import Verdict

    return Verdict(passed=True, accelerator="tcg", boot_seconds=1.0, verified_at="2026-01-01T00:00:00Z")


sys.meta_path.insert(0, _Finder())
