"""Norms of the layers of an LRP chain, against their closed form and the bound that they make."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tfexplain.audits.base import Arrays, Audit, Work
from tfexplain.checks import optional_integer

if TYPE_CHECKING:
    import xarray as xr

    from tfexplain.analyzers import Analyzer
    from tfexplain.audits.case import Case


@dataclass(frozen=True, eq=False, kw_only=True)
class _Work(Work):
    """Names of all linear layers, from the input to the output."""

    order: Sequence[str]


@dataclass(frozen=True)
class LayerNorms(Audit):
    """How much linear layers amplify relevance; options as of `layer_norms`."""

    name = "layer_norms"
    function = "tfexplain.audits.layer_norms"
    title = "Norms of layers"
    question = "How much can each linear layer amplify relevance, and how much all of them?"
    references = ("maess2025uncovering",)
    in_report = False
    block_size = 4

    columns: int | None = None

    @classmethod
    def refuses(cls, analyzer: Analyzer, case: Case) -> str:
        """Needs one reversed network."""
        from tfexplain.audits.case import several_chains

        if not analyzer.has_chain:
            return "it is no single reversed network"
        return several_chains(analyzer)

    def prepare(self, case: Case) -> _Work:
        """Looks for linear layers."""
        from tfexplain.analyzers.reversed import with_chain
        from tfexplain.audits.amplification import linear_calls
        from tfexplain.audits.case import merged_orders

        case.check_one_input()
        columns = optional_integer("columns", self.columns, 1)
        networks = [with_chain(analyzer).network() for analyzer in case.analyzers.values()]
        order = merged_orders([[call.name for call in linear_calls(one)] for one in networks])
        if not order:
            raise ValueError("There is no linear layer whose norm could be measured.")
        for name, analyzer in case.analyzers.items():
            analyzer.checked(case.arrays(name)[0][:2])
        options = {"columns": columns, **case.options()}
        return _Work(case, options, 0, sample_steps=len(case.analyzers), order=order)

    def measure(self, work: _Work, block: slice, advance: Callable[[], None]) -> Arrays:
        """Returns norms of layers, (analyzer, sample, layer, number), and of whole chains."""
        from tfexplain.analyzers.reversed import with_chain
        from tfexplain.audits.amplification import LayerNorm, is_straight, measure

        case = work.case
        shape = (len(case.analyzers), block.stop - block.start)
        numbers = np.full((*shape, len(work.order), len(LayerNorm._fields)), np.nan)
        chain = np.full((*shape, 2), np.nan)
        for row, (name, analyzer) in enumerate(case.analyzers.items()):
            (array,), chained = case.arrays(name), with_chain(analyzer)
            for column, position in enumerate(range(block.start, block.stop)):
                of_layers, norm = measure(chained, array, position, self.columns, case.seed)
                for layer, values in of_layers.items():
                    numbers[row, column, work.order.index(layer)] = values
                forms = [values.closed_form for values in of_layers.values()]
                straight = is_straight(chained.network())
                chain[row, column] = norm, np.prod(forms) if straight else np.nan
                advance()
        return {"numbers": numbers, "chain": chain}

    def combine(self, work: _Work, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Joins the samples."""
        import xarray as xr

        from tfexplain.audits.amplification import LayerNorm

        numbers = np.concatenate([block["numbers"] for block in blocks], axis=1)
        chain = np.concatenate([block["chain"] for block in blocks], axis=1)
        each = ("analyzer", "sample")
        return xr.Dataset(
            {
                **{
                    name: ((*each, "layer"), numbers[..., place])
                    for place, name in enumerate(LayerNorm._fields)
                },
                "norm": (each, chain[..., 0]),
                "bound": (each, chain[..., 1]),
            },
            coords={
                "analyzer": list(work.case.analyzers),
                "sample": np.arange(work.case.count),
                "layer": list(work.order),
            },
        )


def layer_norms(
    analyzers: Any,
    x: Any,
    *,
    columns: int | None = None,
    seed: int = 0,
    block_size: int = 4,
    path: str | os.PathLike | None = None,
) -> xr.Dataset:
    """Measures how much linear layers of LRP-gamma or LRP-0 amplify relevance at most.

    The L1 norm of a layer is the largest sum of magnitudes that one unit of relevance at one active
    output becomes. With p and n the magnitudes of its positive and negative contributions and
    c = min(p, n) / max(p, n) it is 1 + 2 c / (1 + gamma - c) (Eq. 11 of [maess2025uncovering]; in
    front of a ReLU without bias, n < p for every active output). The product over the layers bounds
    the norm of the whole chain (Eq. 9). An output that is 0 behind its ReLU is not active: nothing
    arrives there. Nor is one without any contribution, from which nothing goes on.

    A bias that the rule keeps in the denominator (bias="split") counts in p and n. What it takes
    is lost, so that the closed form is then an upper bound of what is measured.

    Args:
        analyzers: Dict of name -> analyzer, or one analyzer, whose linear layers have LRP-gamma or
            LRP-0 (another rule has no closed form, which is then not a number).
        x: Samples, as for `analyze`.
        columns: Number of active outputs that are measured in each layer, drawn at random, and the
            worst one by the closed form; None: all of them, which is long for large layers.
        seed: The seed of the draws; with the position of the sample.
        block_size: Samples that are finished and stored together.
        path: NetCDF file for the result; a run that was stopped continues.

    Returns:
        Dataset with, all without a unit,

        * `measured` and `closed_form` (analyzer, sample, layer): L1 norms, from the rule itself and
          from p and n;
        * `c` and `worst` (analyzer, sample, layer): of the worst output by the closed form, whose
          flat index does not depend on gamma; `measured_worst`: flat index of the output with the
          largest measured norm; `active`: how many outputs are active;
        * `norm` (analyzer, sample): L1 norm of the whole chain from the outputs to the input;
        * `bound` (analyzer, sample): product of `closed_form`; not a number for networks with
          branches or layers without a closed form.

    Raises:
        TypeError: For what is no analyzer.
        ValueError: For methods without a reversed network, wrong samples or options.
    """
    from tfexplain.audits.case import Case

    case = Case(analyzers, x, seed=seed)
    return LayerNorms(columns).run(case, block_size=block_size, path=path)
