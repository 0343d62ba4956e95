"""Runs all experiments of the paper and writes the ledger: `python -m experiments.koopman2022`."""

import sys

from experiments.koopman2022.claims import CLAIMS
from experiments.runs import Paper

PAPER = Paper(
    "koopman2022",
    '"Credit Assignment for Trained Neural Networks Based on Koopman Operator Theory" (Liang, '
    "Zhao, Liu, Xue, Yang, Pang 2022)",
    CLAIMS,
    "A claim",
)
main = PAPER.main

if __name__ == "__main__":
    sys.exit(main())
