"""From finished runs to statistics, tables and figures."""

from pareco.reporting.budgets import UnequalBudgets
from pareco.reporting.records import InvalidRecord
from pareco.reporting.report import Report, render_report, write_report

__all__ = ["InvalidRecord", "Report", "UnequalBudgets", "render_report", "write_report"]
