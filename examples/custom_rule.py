"""A rule of your own, in a composite of your own, in ten lines.

`Magnitude` shares relevance in proportion to the magnitude of contributions, whatever their sign.
It is a row of factors: positive contributions times 1, negative ones times -1, no bias.

    python custom_rule.py

explains digits by the network of `tfexplain demo`, prints which rule each layer gets and where
relevance went, and writes `custom_rule.png`: the maps beside those of `lrp.epsilon`;
`custom_rule.tfx`, the saved analyzer; and the folder `custom_rule.served`, its SavedModel.

A saved analyzer holds the name of the rule, not its code. Where it is loaded, the module that
defines the rule has to be imported before, so keep rules in a module of their own:

    import my_rules
    analyzer = tfexplain.load_analyzer("custom_rule.tfx")

The SavedModel needs neither the rule nor tfexplain (see serve_saved_model.py).
"""

from __future__ import annotations

import argparse
import pathlib
from dataclasses import dataclass

import keras
import numpy as np
import xarray as xr

import tfexplain
from tfexplain import demo
from tfexplain.composites import epsilon_plus
from tfexplain.rules import ContributionRule, Group


@dataclass(frozen=True)
class Magnitude(ContributionRule):
    """R_i = sum_j |x_i w_ij| / sum_k |x_k w_kj| R_j; 0/0 is 0, and loses relevance."""

    @property
    def groups(self) -> tuple[Group, ...]:
        """One row, which counts negative contributions with the opposite sign."""
        return (Group(positive=1, negative=-1),)


def create(model: keras.Model) -> tfexplain.analyzers.Analyzer:
    """Puts the rule at convolutions; all other layers keep what epsilon_plus gives them."""
    rows = [((keras.layers.Conv2D,), Magnitude())]
    composite = epsilon_plus().prepend(rows, name="epsilon_magnitude")
    return tfexplain.create_analyzer("lrp.composite", model, composite=composite)


def account(ledger: xr.Dataset) -> str:
    """A table of what each call did with the relevance of the first sample, from the output on."""
    names = ["received", "kept", "absorbed_by_bias", "absorbed_by_stabilizer", "undefined", "lost"]
    table = ledger[names].isel(sample=0).to_dataframe()[names]
    return table.to_string(float_format=lambda number: f"{number:.4f}")


def main(arguments: list[str] | None = None) -> xr.Dataset:
    """Explains five digits; returns the attribution."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), metavar="FOLDER")
    out = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)

    _, (x, _) = demo.load_digits()
    model = demo.network()
    x = x[:5]
    analyzer = create(model)
    print(analyzer.describe())

    dataset = analyzer.attribute(x)
    print("\nRelevance of the first digit, from the output to the input:")
    print(account(analyzer.ledger(x[:1])))
    explained = dataset["output"].max("output_index")
    share = np.abs(dataset["conservation_error"].squeeze("vector") / explained)
    print(
        f"\nConservation error: at most {float(share.max()):.2%} of the logit. The biases of dense "
        "layers absorb relevance, and 0/0 has none where all pixels that a convolution sees are 0."
    )

    epsilon = tfexplain.create_analyzer("lrp.epsilon", model).analyze(x)
    magnitude = dataset["relevance"].squeeze("vector").values
    figure = tfexplain.plotting.maps(x, {"lrp.epsilon": epsilon, "Magnitude": magnitude})
    figure.savefig(out / "custom_rule.png")

    analyzer.save(out / "custom_rule.tfx")
    again = tfexplain.load_analyzer(out / "custom_rule.tfx").analyze(x)
    print(f"Saved and loaded: the maps differ by {np.abs(again - magnitude).max():g}.")
    analyzer.export(out / "custom_rule.served")
    print(f"{out}: custom_rule.png, custom_rule.tfx, custom_rule.served")
    return dataset


if __name__ == "__main__":
    main()
