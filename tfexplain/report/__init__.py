"""Which explanations of a model can be trusted: all audits in one run, and their verdict."""

from tfexplain.report.outcome import Audit, load
from tfexplain.report.run import Plan, audit
from tfexplain.report.verdict import Cell, Row, Thresholds, Verdict, judge

__all__ = [
    "Audit",
    "Cell",
    "Plan",
    "Row",
    "Thresholds",
    "Verdict",
    "audit",
    "judge",
    "load",
]
