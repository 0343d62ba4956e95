"""Which explanations of a model can be trusted: all audits in one run, and their verdict."""

from tfexplain.audits.judging import Cell, Thresholds
from tfexplain.report.data import Data, load_data
from tfexplain.report.outcome import Outcome, load
from tfexplain.report.run import IMAGES, Plan, audit
from tfexplain.report.verdict import Row, Verdict, judge

__all__ = [
    "IMAGES",
    "Cell",
    "Data",
    "Outcome",
    "Plan",
    "Row",
    "Thresholds",
    "Verdict",
    "audit",
    "judge",
    "load",
    "load_data",
]
