"""Is a map focused? The Shannon entropy of its magnitudes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.base import PRESETS, Arrays, Audit, Work
from tfexplain.audits.drawings import Drawing, Labels

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.audits.case import Case


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work(Work):
    reductions: Mapping[str, str]


@dataclass(frozen=True)
class Entropy(Audit):
    """How focused maps are; options as of `entropy`."""

    name = "entropy"
    function = "tfexplain.audits.entropy"
    title = "Entropy"
    question = "Over how many places is a map spread?"
    caption = "Over how many places a map is spread. Low is easier to read, not truer."
    references = ("samek2017evaluating",)
    presets = dict.fromkeys(PRESETS, {})

    reduction: str | Mapping[str, str] | None = None

    def prepare(self, case: Case) -> _Work:
        """Checks the reduction."""
        reductions = case.reductions(self.reduction)
        options = {"reduction": reductions, **case.options("targets")}
        return _Work(case, options, len(case.analyzers), case.layout.notes(), reductions=reductions)

    def measure(self, work: _Work, block: slice, advance: Callable[[], None]) -> Arrays:
        """Returns the entropies of the maps of a block, (analyzer, sample)."""
        from tfexplain import metrics

        values = []
        for name, reduction in work.reductions.items():
            values.append([metrics.entropy(map) for map in work.case.maps(name, block, reduction)])
            advance()
        return {"entropy": np.array(values)}

    def combine(self, work: _Work, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Joins the samples."""
        import xarray as xr

        values = np.concatenate([block["entropy"] for block in blocks], axis=1)
        return xr.Dataset(
            {
                "entropy": (("analyzer", "sample"), values, {"units": "nat"}),
                "target": (("sample",), work.case.targets.astype("int64")),
                "missing": (("analyzer",), np.isnan(values).sum(axis=1)),
            },
            coords={"analyzer": list(work.case.analyzers), "sample": np.arange(work.case.count)},
            attrs={"maximum": math.log(math.prod(work.case.layout.sizes))},
        )

    @classmethod
    def draw(cls, dataset: xr.Dataset, labels: Labels) -> list[Drawing]:
        """A box per method."""
        from tfexplain import plotting

        return [
            Drawing(
                plotting.entropy_boxes,
                "Entropy of the maps",
                "In nats; the line is the largest possible.",
            )
        ]


def entropy(
    analyzers: Any,
    x: Any,
    y: Any = None,
    *,
    reduction: str | Mapping[str, str] | None = None,
    seed: int = 0,
    batch_size: int = 32,
    block_size: int = 32,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Measures the Shannon entropy of maps: how many locations share the relevance.

    With p_i = |r_i| / sum |r| over the locations of a map it is -sum p_i log p_i, in nats. Lower
    is easier to read ([samek2017evaluating], [maess2025uncovering]), not truer: the entropy ignores
    the scale and the signs of a map, and a single wrong location has the lowest of all.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer. Their models have one input and the
            same outputs.
        x: Samples, (n, *input_shape): images or volumes with channels, sequences (steps, features),
            tokens (steps,) or columns of a table (features,).
        y: Output that is explained of each sample, (n,), or one for all; flat index for outputs of
            rank > 2. None: the largest output of the first analyzer's model.
        reduction: How channels are reduced, "abs_sum", "abs_max" or "sum": one for all, or a dict
            by analyzer. None: the sum of magnitudes for the gradient and its modifications, else
            the sum (`analyzer.reduction`).
        seed: Kept in the attributes, as of every audit; nothing is drawn here.
        batch_size: Samples that are computed together.
        block_size: Samples after which the work done so far is kept, if there is a path.
        path: NetCDF file for the result. A run that was stopped continues with the same numbers
            (finished blocks are in the folder `<path>.blocks`); a finished file of the same
            settings is read. None: nothing is written.

    Returns:
        Dataset with

        * `entropy` (analyzer, sample): 0 (one location) to the attribute `maximum`, the logarithm
          of the number of locations (all equal), in nats; not a number where a map is zero
          everywhere or not finite;
        * `target` (sample): flat indices of outputs;
        * `missing` (analyzer): how many entropies are not a number.

        Attributes: the arguments above, `maximum`, `versions` and `analyzers` (JSON text), and
        `notes`.

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For a model with several inputs, wrong options or samples, or a path with
            another run.

    Example:
        >>> from tfexplain.analyzers import create_analyzer
        >>> dataset = entropy(create_analyzer("gradient", model), np.ones((2, 4)))
        >>> dataset.entropy.shape, round(dataset.maximum, 3)
        ((1, 2), 1.386)
    """
    from tfexplain.audits.case import Case

    case = Case(analyzers, x, y, seed=seed, batch_size=batch_size)
    return Entropy(reduction).run(case, block_size=block_size, path=path)
