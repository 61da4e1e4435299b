"""What a person reads of a run: `write_report` makes the page, `table` the rows on screen."""

from pipeline.report.page import write_report
from pipeline.report.table import table

__all__ = ["table", "write_report"]
