"""Makes the picture of the README from the demo's numbers: `python -m docs.picture DEMO_FOLDER`."""

import pathlib
import sys

from tfexplain import plotting, results

METHODS = (
    "gradient",
    "guided_backprop",
    "integrated_gradients",
    "lrp.epsilon",
    "lrp.alpha_1_beta_0",
    "lrp.alpha_2_beta_1",
    "deep_taylor",
    "excitation_bp.contrastive",
)


def main(folder: str) -> None:
    """Draws three digits and a few methods into docs/digits.png."""
    dataset = results.load(pathlib.Path(folder) / "digits.nc").isel(sample=[0, 3, 7])
    maps = {name: dataset["relevance"].sel(analyzer=name).values for name in METHODS}
    figure = plotting.maps(dataset["input"].values, maps)
    figure.savefig(pathlib.Path(__file__).with_name("digits.png"), dpi=90)


if __name__ == "__main__":
    main(sys.argv[1])
