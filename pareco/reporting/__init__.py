"""From finished runs to records, and from records to statistics, tables and figures."""

from pareco.reporting.budgets import UnequalBudgets
from pareco.reporting.records import InvalidRecord, Records, read_records

__all__ = ["InvalidRecord", "Records", "UnequalBudgets", "read_records"]
