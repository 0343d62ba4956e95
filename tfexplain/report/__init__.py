"""Which explanations of a model can be trusted: all audits in one run, and their verdict."""

from tfexplain.report.data import Data, load_data
from tfexplain.report.outcome import Audit, load
from tfexplain.report.parts import IMAGES
from tfexplain.report.run import Plan, audit
from tfexplain.report.verdict import Cell, Row, Thresholds, Verdict, judge

__all__ = [
    "IMAGES",
    "Audit",
    "Cell",
    "Data",
    "Plan",
    "Row",
    "Thresholds",
    "Verdict",
    "audit",
    "judge",
    "load",
    "load_data",
]
