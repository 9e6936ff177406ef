"""The reports: a record's cold start, a fleet's cells and waves; each one page of HTML that needs nothing else."""

from parbake.cli.report.page import Subject, page

__all__ = ["Subject", "page"]
