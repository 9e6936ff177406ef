"""All commands of fleets: loading this module puts them into their group."""

from parbake.cli import fleet_operate, fleet_reports, fleet_rollouts, fleet_runs

__all__ = ["fleet_operate", "fleet_reports", "fleet_rollouts", "fleet_runs"]
