"""How close pattern and weight matrices are to rank one: ratios of their singular values."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfexplain.audits.base import Audit

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.analyzers import Analyzer
    from tfexplain.audits.case import Case


@dataclass(frozen=True)
class PatternSpectrum(Audit):
    """How close patterns are to rank one; see `pattern_spectrum`."""

    name = "pattern_spectrum"
    function = "tfexplain.audits.pattern_spectrum"
    title = "Rank of patterns"
    question = "How close are the matrices of patterns and weights to rank one?"
    references = ("sixt2020when",)
    in_report = False
    by_samples = False

    @classmethod
    def refuses(cls, analyzer: Analyzer, case: Case) -> str:
        """Needs patterns."""
        return "" if analyzer.fits else "it has no patterns"

    def check(self, case: Case) -> None:
        """Takes one analyzer."""
        if len(case.analyzers) > 1:
            raise ValueError(
                f"The patterns of one analyzer are compared, received {len(case.analyzers)} "
                f"({', '.join(case.analyzers)}). Give each a case of its own."
            )
        super().check(case)

    def compute(self, case: Case, path: str | os.PathLike | None) -> xr.Dataset:
        """Returns the singular values; the samples have no part in them."""
        from tfexplain import runs

        settings = runs.settings(self.name, case.analyzers, [], {}, with_data=path is not None)
        return runs.in_blocks(
            lambda block, advance: {},
            lambda blocks: pattern_spectrum(case.first),
            title=self.name.replace("_", " "),
            count=1,
            block_size=1,
            steps=1,
            settings=settings,
            path=path,
        )


def pattern_spectrum(analyzer: Any) -> xr.Dataset:
    """Compares the two leading singular values of patterns A, weights W and products A * W.

    A chain of matrices of rank one sends every relevance into one direction: sigma_1 / sigma_2 says
    how close a matrix is to that (section 2.3 and fig. 3 of [sixt2020when]; A is that of Eq. 9,
    A * W the matrix of PatternAttribution in Eq. 11). All matrices are (inputs, outputs), of the
    effective kernels, into which batch normalisations are folded:

    * of A the whole kernel, reshaped to (taps * input channels, output channels) (fig. 3a);
    * of W and A * W a slice that belongs to one position (fig. 3b): the centre tap of a
      convolution, the centre position of the map that a Dense layer reads behind Flatten, the whole
      kernel of other Dense layers. The centre of `size` taps is number (size - 1) // 2;
    * for a slice M_l = U_l S_l V_l and the one that reads its output (fig. 3c), T_l =
      sqrt(S_l) V_l U_(l+1) sqrt(S_(l+1)).

    The weights are the model's current ones. Computed in float64. Large matrices (of more entries
    than `rank_one.GRAM_ENTRIES`) go through the Gram matrix of their smaller side, of n rows: the
    relative error of sigma_1 is about n * 1e-16, that of sigma_2 about n * 1e-16 * (sigma_1 /
    sigma_2)^2, so that ratios beyond 1e6 are only known to be large. All slices are decomposed as
    they are; where the number of channels changes, S is padded with zeros.

    Args:
        analyzer: A fitted `pattern.net` or `pattern.attribution`.

    Returns:
        Dataset with, all without a unit,

        * `singular_value` (quantity, layer, rank): sigma_1 and sigma_2; not a number where a matrix
          has no second one. Rank counts from 1;
        * `ratio` (quantity, layer): sigma_1 / sigma_2, infinite for sigma_2 = 0;
        * `interlayer_singular_value` (quantity, pair, rank) and `interlayer_ratio` (quantity,
          pair): of T_l; not a number for A. `first` and `second` (pair) are the two layers.

        The quantities are "A", "W" and "A*W", layers the names of calls. Attributes: `analyzer`,
        `estimator` and `output_mean` (the analyzer's options, which patterns given to it need not
        have followed), `seed` ("none"), `versions` (JSON text) and `notes`: which layers and pairs
        were left out and why.

    Raises:
        TypeError: If it is no pattern analyzer.
        ValueError: If it has no patterns yet, or the model no layer with such a matrix.
    """
    from tfexplain.analyzers.patterns import PatternAnalyzer
    from tfexplain.audits.rank_one import leading_values

    if not isinstance(analyzer, PatternAnalyzer):
        raise TypeError(
            "pattern_spectrum needs a pattern.net or pattern.attribution analyzer, received "
            f"{type(analyzer).__name__}."
        )
    if analyzer.patterns is None:
        raise ValueError(
            f"{analyzer.name} has no patterns yet: call analyzer.fit(x) on training data first."
        )
    return leading_values(analyzer)
