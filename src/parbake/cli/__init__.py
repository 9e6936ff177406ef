"""The door: one module for each group of commands, all on one ``app``."""

from parbake.cli import (
    app,
    artefacts,
    coldstart,
    exports,
    fleet,
    fleet_reports,
    fleet_rollouts,
    fleet_runs,
    iam,
    lint,
    rollouts,
    snapshots,
)
from parbake.cli.app import main, run

__all__ = [
    "app",
    "artefacts",
    "coldstart",
    "exports",
    "fleet",
    "fleet_reports",
    "fleet_rollouts",
    "fleet_runs",
    "iam",
    "lint",
    "main",
    "rollouts",
    "run",
    "snapshots",
]
