"""The two protocols, and the grids of settings.

There is no published code. The protocols differ in the outputs that have a column in the
redistribution matrix: all of them, as the text has it, or those with a magnitude of at least the
median. Dividing by a column sum near zero makes a column explode, and one such column decides
sigma_1, sensitivity and SSM whatever the method does (trap 8.1).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Protocol:
    """Which outputs have a column; see `tfexplain.audits.spectrum`.

    Args:
        name: "published" or "corrected".
        policy: "literal" or "quantile".
        quantile: The quantile of the policy of that name.
    """

    name: str
    policy: str
    quantile: float = 0.0

    def __str__(self) -> str:
        """Says which outputs there are."""
        if self.policy == "literal":
            return "all outputs"
        return f"outputs with a magnitude of at least quantile {self.quantile:g} of all"


PUBLISHED = Protocol("published", "literal")
CORRECTED = Protocol("corrected", "quantile", 0.5)
PROTOCOLS = {protocol.name: protocol for protocol in (PUBLISHED, CORRECTED)}


@dataclass(frozen=True)
class Grid:
    """Settings of all methods. The text at hand has lost the values of the paper.

    Args:
        gammas: Values of LRP-gamma's gamma, rising from 0.
        noises: Noise scales of SmoothGrad, in units of the input range, rising from 0.
        evaluations: Gradients that SmoothGrad and integrated gradients average.
        cycles: Random orders of Shapley sampling; 0: without the method.
        radius: The radius of inpainting, in pixels.
        images_of_norms: How many images have norms of layers.
        columns: Outputs that are measured in each layer.
    """

    gammas: tuple[float, ...]
    noises: tuple[float, ...] = (0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 1)
    evaluations: int = 10
    cycles: int = 0
    radius: int = 5
    images_of_norms: int = 0
    columns: int = 64


# The range of the grid of the first author's notebooks, with fewer points.
MNIST = Grid(
    (0, 0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.15, 0.25, 0.5, 1, 2, 4, 16, 64, 256, 1024),
    cycles=25,
    radius=3,
    images_of_norms=10,
)
IMAGENET = Grid((0, 0.03, 0.1, 0.25, 1, 4, 64))
TINY_MNIST = Grid(
    (0, 0.1, 1, 1024), (0, 0.1, 1), evaluations=3, cycles=2, radius=3, images_of_norms=2, columns=4
)
TINY_IMAGENET = Grid((0, 0.1, 64), (0, 0.1, 1), evaluations=3)
