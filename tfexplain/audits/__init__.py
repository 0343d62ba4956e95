"""Audits: what an owner of a model can ask about its explanations, as labelled Datasets.

`AUDITS` holds them by name; `register` enters one of your own. The functions ask one question each.

What an audit is stands in `base`, what it is asked about in `case`, what it says of a method in
`judging`, what it shows in `drawings`, and `registry` is `AUDITS`. A module that is imported below
is an audit, or shows its maps (`cascades`, of `parameter_randomization`); the others compute for
them: `direction_counts` for `cosine_convergence`, `randomization_steps` and `random_weights` for
`parameter_randomization`, `redistribution` and `singular_values` for `spectrum` and
`spectral_terms`, `amplification` for `layer_norms`, `rank_one` for `pattern_spectrum`.

Audits import TensorFlow, Keras, xarray and matplotlib inside of functions only, and `Case` is
imported when it is asked for: a verdict is read, and an audit defined, without them. The help of
the command line lists the audits by `tfexplain.names.REPORTED_AUDITS` and imports none.
"""

from typing import TYPE_CHECKING, Any

from tfexplain.audits.base import PRESETS, Arrays, Audit, Work
from tfexplain.audits.cascades import cascade_maps
from tfexplain.audits.cosine_convergence import CosineConvergence, cosine_convergence
from tfexplain.audits.drawings import Drawing, Gallery, Grid, Labels, Tile
from tfexplain.audits.entropy import Entropy, entropy
from tfexplain.audits.examples import Examples, examples
from tfexplain.audits.judging import Cell, Check, Thresholds
from tfexplain.audits.koopman import Koopman
from tfexplain.audits.layer_norms import LayerNorms, layer_norms
from tfexplain.audits.parameter_randomization import (
    ParameterRandomization,
    parameter_randomization,
)
from tfexplain.audits.pattern_spectrum import PatternSpectrum, pattern_spectrum
from tfexplain.audits.pixel_flipping import PixelFlipping, pixel_flipping
from tfexplain.audits.random_logit import RandomLogit, random_logit
from tfexplain.audits.registry import AUDITS, register
from tfexplain.audits.spectral_terms import SpectralTerms, spectral_terms
from tfexplain.audits.spectrum import Spectrum, spectrum

if TYPE_CHECKING:
    from tfexplain.audits.case import Case

__all__ = [
    "AUDITS",
    "PRESETS",
    "Arrays",
    "Audit",
    "Case",
    "Cell",
    "Check",
    "CosineConvergence",
    "Drawing",
    "Entropy",
    "Examples",
    "Gallery",
    "Grid",
    "Koopman",
    "Labels",
    "LayerNorms",
    "ParameterRandomization",
    "PatternSpectrum",
    "PixelFlipping",
    "RandomLogit",
    "SpectralTerms",
    "Spectrum",
    "Thresholds",
    "Tile",
    "Work",
    "cascade_maps",
    "cosine_convergence",
    "entropy",
    "examples",
    "layer_norms",
    "parameter_randomization",
    "pattern_spectrum",
    "pixel_flipping",
    "random_logit",
    "register",
    "spectral_terms",
    "spectrum",
]

# In the order in which a report runs and shows them; then those that take no part in one.
for _cls in (
    Examples,
    ParameterRandomization,
    RandomLogit,
    CosineConvergence,
    Spectrum,
    PixelFlipping,
    Entropy,
    Koopman,
    LayerNorms,
    SpectralTerms,
    PatternSpectrum,
):
    register(_cls)


def __getattr__(name: str) -> Any:
    """Imports `Case`, which needs TensorFlow, when it is asked for."""
    if name == "Case":
        from tfexplain.audits.case import Case

        return Case
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
