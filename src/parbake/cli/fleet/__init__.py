"""All commands of fleets: loading this package puts them into their group."""

from parbake.cli.fleet import operate, reports, rollouts, runs

__all__ = ["operate", "reports", "rollouts", "runs"]
