"""The report: what is known of a record's cold start, as one page of HTML that needs nothing else."""

from parbake.cli.report.page import Subject, page

__all__ = ["Subject", "page"]
