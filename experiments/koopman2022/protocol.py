"""The two protocols, the definitions of credit, and the sizes of a run.

There is no published code, and the paper leaves out what decides most. `published` is the text
taken literally; `corrected` has what makes the operators identifiable (K11) and keeps iterates at
the size of the data (K13). The codes of what the paper leaves open, as comments in this package
name it:

* K1: theorem 3 is misprinted; the least value is ||M M^+ N - N||.
* K10: whether operators are fitted from one input or from many.
* K11: one trajectory does not determine an operator outside of what its snapshots span.
* K13: iterates leave the data, grow, or come to a standstill.
* K14: how the random matrix of the alignment is drawn and scaled.
* K15: the mean over random alignments shrinks an operator that widens.
* K17: zero eigenvalues of a matrix that is not normal do not count its rank; singular values do.
* K18: volumes of different dimensions are compared.
* K19: determinants depend on the scale of the activations.
* K22: credit of kernels is not defined.
* K23: operators are averaged before or after they are multiplied.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr

# Whether activations have unit variance between blocks (K19).
SCALES = {"as they are": False, "unit variance": True}
AS_THEY_ARE, UNIT_VARIANCE = SCALES


@dataclass(frozen=True)
class Protocol:
    """How operators are fitted; see `tfexplain.koopman.credit`.

    Args:
        name: "published" or "corrected".
        single: From one trajectory, not from many inputs.
        alignment: "gaussian" or "orthonormal".
        rescale: Keep the mean norm of a block's iterates.
    """

    name: str
    single: bool
    alignment: str
    rescale: bool

    def __str__(self) -> str:
        """Says what is fitted."""
        inputs = "one trajectory of one digit" if self.single else "many digits"
        scale = "scaled to the norm of the input" if self.rescale else "not scaled"
        return f"{inputs}, {self.alignment} alignment, {scale}"

    def options(self) -> dict[str, object]:
        """Returns arguments of `koopman.credit`."""
        return {"alignment": self.alignment, "rescale": self.rescale}


PUBLISHED = Protocol("published", True, "gaussian", False)
CORRECTED = Protocol("corrected", False, "orthonormal", True)
PROTOCOLS = {protocol.name: protocol for protocol in (PUBLISHED, CORRECTED)}


@dataclass(frozen=True)
class Definition:
    """One number that is to say how much credit a block has.

    Args:
        variable: A variable of the Dataset of `koopman.credit`.
        scale: One of `SCALES`.
        protocols: Names of the protocols that have it.
    """

    variable: str
    scale: str = AS_THEY_ARE
    protocols: tuple[str, ...] = tuple(PROTOCOLS)

    @property
    def rank(self) -> str:
        """The variable that has the rank of the operator."""
        return "least_squares_rank" if self.variable.startswith("least_squares") else "rank"

    def of(self, dataset: xr.Dataset) -> np.ndarray:
        """Returns the credits of all blocks, natural logarithms; NaN for an operator that is 0.

        Args:
            dataset: What `blocks.measured` returned.
        """
        chosen = dataset.sel(scale=self.scale)
        return np.where(chosen[self.rank].values > 0, chosen[self.variable].values, np.nan)


# One input has no variance, a single principal component and the least squares of rank 1.
_MANY = (CORRECTED.name,)
# "log-volume" is the paper's.
DEFINITIONS = {
    "log-volume": Definition("log_volume"),
    "per dimension": Definition("log_volume_per_dimension"),
    "fixed rank": Definition("log_volume_fixed_rank", protocols=_MANY),
    "mean of log-volumes": Definition("log_volume_mean"),
    "least squares": Definition("least_squares_log_volume", protocols=_MANY),
    "least squares per dimension": Definition(
        "least_squares_log_volume_per_dimension", protocols=_MANY
    ),
    "normalised log-volume": Definition("log_volume", UNIT_VARIANCE, _MANY),
    "normalised per dimension": Definition("log_volume_per_dimension", UNIT_VARIANCE, _MANY),
    "normalised fixed rank": Definition("log_volume_fixed_rank", UNIT_VARIANCE, _MANY),
    "normalised least squares per dimension": Definition(
        "least_squares_log_volume_per_dimension", UNIT_VARIANCE, _MANY
    ),
}


def definitions(protocol: str) -> dict[str, Definition]:
    """Returns the definitions of credit that a protocol has, by name."""
    return {
        name: definition
        for name, definition in DEFINITIONS.items()
        if protocol in definition.protocols
    }


@dataclass(frozen=True)
class Sizes:
    """How much is computed.

    Args:
        held_out: Digits that nothing is fitted on.
        repeats: Random alignments that are averaged, 10 in the paper.
        few_repeats: The same where many inputs are fitted and a tensor is reduced: each takes
            minutes.
        kernel_repeats: The same for operators of single kernels.
        max_dimension: Tensors that are larger are reduced to principal components, if there are
            many inputs; one input has a single one.
        max_values: Numbers in the snapshots of a block; trajectories are cut to as many. The
            paper's have 2d steps.
        runs: Independent runs of `averaging`.
        seeds: Random matrices of each size in `theorems`.
        alignments: Random alignments whose mean `theorems` compares with (p / q) W.
        draws: Random perturbations of each level in `meaning`.
    """

    held_out: int
    repeats: int
    few_repeats: int
    kernel_repeats: int
    max_dimension: int
    max_values: int
    runs: int
    seeds: int
    alignments: int
    draws: int


FULL = Sizes(1000, 10, 3, 1, 2048, 10_000_000, runs=20, seeds=20, alignments=500, draws=3)
TINY = Sizes(12, 2, 2, 1, 30, 5_000, runs=2, seeds=1, alignments=2, draws=1)


def sizes(tiny: bool) -> Sizes:
    """Returns the sizes of a run."""
    return TINY if tiny else FULL
