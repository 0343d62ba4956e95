"""Runs all experiments of the paper, writes its claims: `python -m experiments.koopman2022`."""

import sys

from experiments.koopman2022.claims import CLAIMS
from experiments.runs import Paper

PAPER = Paper(
    "koopman2022",
    '"Credit Assignment for Trained Neural Networks Based on Koopman Operator Theory" (Liang, '
    "Zhao, Liu, Xue, Yang, Pang 2022)",
    CLAIMS,
    "A claim is confirmed if all of its criteria hold wherever it was tested, and refuted if "
    "one of them fails once. Where the paper leaves a definition open, each definition and "
    "each way to fit stands as a finding of its own, behind the name of the network, so that "
    "the columns `confirmed on` and `refuted on` say under which a claim holds. Each "
    "criterion stands with its number, so that others can judge by other bounds. `published` "
    "fits operators on one trajectory of one digit with normal random matrices that are not "
    "scaled, and takes theorems as they are printed; `corrected` fits them on many digits, "
    "with orthonormal matrices, keeps the norm of iterates, and takes theorems as they have "
    "to be.\n\n"
    "What differs from the paper, or is not said there: the sizes of LeNet-5, all "
    "activations, the training and the inputs of the fit are ours; weights come with the "
    "project. Digits are of the test part of MNIST, others to fit on than to measure on. "
    "Trajectories end where they stand still or leave a factor of 1000 of their first norm. "
    "In `corrected` the 4704 numbers behind the first convolution of LeNet-5 are reduced to "
    "principal components and fewer alignments are averaged; the findings say how many, and "
    "what the reduction leaves out. Bars of the paper are ranks without numbers, so that only "
    "orders are compared. K-C10 and K-C11 are what the paper concludes from its figures, here "
    "with measurements of their own.",
)
main = PAPER.main

if __name__ == "__main__":
    sys.exit(main())
