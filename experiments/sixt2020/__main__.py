"""Runs all experiments of the paper, writes its claims: `python -m experiments.sixt2020`."""

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
    "What differs from the paper: its VGG-16 and ResNet-50 need weights that were not at hand. "
    "GoogLeNet, SqueezeNet, MobileNet and ResNet-20 for CIFAR-10 stand in for them, so a claim "
    "that is refuted here may hold on the networks of the paper; each finding says on which "
    "network. The CIFAR-10 network has the paper's architecture, but weights from images in JPEG "
    "form. There are fewer images (the commands say how many), and CIFAR-10 images are of the "
    "training part. Random numbers are ours. Words without a number, such as `almost all`, got "
    "bounds, which stand in the criteria. Runs of VGG-16 and ResNet-50 with random weights are in "
    "`experiments/results/sixt2020_random_weights`; nothing of them counts here.",
)
main = PAPER.main

if __name__ == "__main__":
    sys.exit(main())
