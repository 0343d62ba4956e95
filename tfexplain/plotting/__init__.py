"""Pictures of attributions and audits, on given axes or on Figures of their own: no pyplot."""

from tfexplain.plotting.audits import (
    boxes,
    cascade,
    entropy_boxes,
    pixel_flipping_curves,
    random_logit_boxes,
    randomization_curves,
)
from tfexplain.plotting.class_contrasts import two_classes
from tfexplain.plotting.convergence import (
    convergence_curves,
    convergence_histogram,
    convergence_lines,
    convergence_shares,
)
from tfexplain.plotting.koopman import block_credits, feature_weights, kernel_credits
from tfexplain.plotting.pictures import (
    COLORMAP,
    REDUCTIONS,
    display_image,
    draw_input,
    draw_map,
    maps,
    overlay,
    picture,
    reduce_channels,
    symmetric_limits,
)
from tfexplain.plotting.spectra import singular_values, term_maps

__all__ = [
    "COLORMAP",
    "REDUCTIONS",
    "block_credits",
    "boxes",
    "cascade",
    "convergence_curves",
    "convergence_histogram",
    "convergence_lines",
    "convergence_shares",
    "display_image",
    "draw_input",
    "draw_map",
    "entropy_boxes",
    "feature_weights",
    "kernel_credits",
    "maps",
    "overlay",
    "picture",
    "pixel_flipping_curves",
    "random_logit_boxes",
    "randomization_curves",
    "reduce_channels",
    "singular_values",
    "symmetric_limits",
    "term_maps",
    "two_classes",
]
