"""Runs all experiments of the paper, writes its claims: `python -m experiments.spectral2025`."""

import sys

from experiments.runs import Paper
from experiments.spectral2025.claims import CLAIMS

PAPER = Paper(
    "spectral2025",
    '"Uncovering the Structure of Explanation Quality with Spectral Analysis" (Maess, Montavon, '
    "Nakajima, Mueller, Schnake 2025)",
    CLAIMS,
    "A claim is confirmed if all of its criteria hold on every network that was tested, and "
    "refuted if one of them fails on one. Each criterion stands with its number, so that others "
    "can judge by other bounds. There is no published code. `published` divides every column of "
    "the redistribution matrix by its sum, as the text has it; `corrected` has columns for the "
    "half of the outputs with the largest magnitudes, because a sum near zero makes a column "
    "explode that then decides all spectral numbers. All else is the same in both. The experiment "
    "`representation` has the units in front of the last layer instead of the classes.",
    "What differs from the paper, or is not said there: the values of gamma and of the noise, of "
    "table 1 and the sizes of the MNIST network are missing from the text at hand; grids and "
    "network are ours, after the first author's published notebooks. VGG-16 needs weights that "
    "were not at hand; SqueezeNet stands in for it, with LRP-gamma in the first half of its "
    "convolutions. Maps of SmoothGrad are multiplied by the input, because column sums mean "
    "nothing otherwise. Channels are summed before R is formed. PF-AUC is the mean probability of "
    "the predicted class while the first 5 % of the pixels are inpainted; numbers with logits and "
    "black pixels stand beside it. There are fewer photographs (the commands say how many).",
)
main = PAPER.main

if __name__ == "__main__":
    sys.exit(main())
