"""From finished runs to records, and from records to statistics, tables and figures."""

from pareco.reporting.reading import InvalidRecord
from pareco.reporting.records import Records, read_records
from pareco.reporting.statistics import UnequalBudgets

__all__ = ["InvalidRecord", "Records", "UnequalBudgets", "read_records"]
