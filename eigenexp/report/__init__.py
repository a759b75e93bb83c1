"""A run, or several side by side, as one HTML file that opens anywhere."""

from eigenexp.report.page import render_report
from eigenexp.report.score import render_score, write_score_report
from eigenexp.report.sources import load_run, load_runs, report_from, write_report
from eigenexp.report.view import ReportRun

__all__ = [
    "ReportRun",
    "load_run",
    "load_runs",
    "render_report",
    "render_score",
    "report_from",
    "write_report",
    "write_score_report",
]
