"""Runs all experiments of the paper and writes the ledger: `python -m experiments.sixt2020`."""

import sys

from experiments.runs import Paper
from experiments.sixt2020.claims import CLAIMS

PAPER = Paper(
    "sixt2020",
    '"When Explanations Lie: Why Many Modified BP Attributions Fail" (Sixt, Granz, Landgraf 2020)',
    CLAIMS,
    "A claim is confirmed if all of its criteria hold on every network that was tested, and "
    "refuted if one of them fails on one. Each criterion stands with its number, so that others "
    "can judge by other bounds. `published` sets every switch of "
    "`experiments/sixt2020/protocol.py` as the published code has it, `corrected` as the papers "
    "and the theory have it.",
)
main = PAPER.main

if __name__ == "__main__":
    sys.exit(main())
