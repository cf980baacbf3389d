"""From results (tidy CSV files) to reports: tables, claims, charts, one HTML page."""

from study.report.page import build_report

__all__ = ["build_report"]
