"""Fig. 1b-e: maps of two classes in one image, and what contrasting them does about it (section 5).

The images are those of the paper's authors, with their names: `cat_dog_224.jpg` and
`zebra_elephant_224.jpg` show two objects, `cat_224.jpg`, `dog_224.jpg`, `zebra_224.jpg` and
`elephant_224.jpg` one of them. Each is explained for both classes of its pair and for a random
third one. The published number concerns LRP alpha 1 beta 0; all other methods of the paper's table
that need no patterns, and the two contrastive ones, are measured the same way on the images with
two objects.

Below its last layer, contrastive excitation backpropagation is the chain of plain excitation
backpropagation: the first is compared with the second, started from what the last layer of the
first hands down. How much two classes differ is followed along that chain.
"""

from __future__ import annotations

import sys

import xarray as xr

from experiments import networks
from experiments.claim_table import Criterion, Finding
from experiments.runs import Experiment, finding
from experiments.sixt2020.class_contrasts import (
    CHAINS,
    CLASSES,
    CONTRASTIVE,
    EXCITATION,
    LRP,
    NAMES,
    PUBLISHED,
    SCENES,
    TWO_CLASSES,
    compute,
)
from experiments.sixt2020.class_figures import draw

# "Tiny": the order of magnitude of the published number.
TINY_DISTANCE = 1e-3
# "Looks like": more than half of the energy (the squared cosine) is shared.
ALIKE = 0.5**0.5
# The rounding of float32, along all layers.
ROUNDING = 1e-3


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about S1 and S22."""
    return [_class_insensitive(dataset), _contrastive(dataset)]


def _class_insensitive(dataset: xr.Dataset) -> Finding:
    """S1: the number of fig. 1e."""
    classes = dataset.sel(pair="classes")
    random = dataset["distance"].sel(pair=["first and random", "second and random"]).mean("pair")
    numbers = {
        f"{image}, {method}: mean absolute difference": float(
            classes["distance"].sel(image=image, analyzer=method)
        )
        for image in SCENES
        for method in dataset["analyzer"].values
    }
    for method in dataset["shown"].values:
        here = classes.sel(image=list(SCENES), analyzer=method)
        size = here["magnitude"].sel(target=["first", "second"]).mean("target")
        for image, value in zip(SCENES, (here["distance"] / size).values, strict=True):
            numbers[f"{image}, {method}: the same over the mean of the normalised maps"] = value
    lrp = dataset.sel(analyzer=LRP)
    for image, pair in CLASSES.items():
        here = lrp.sel(image=image)
        if image not in SCENES:
            value = float(here["distance"].sel(pair="classes"))
            numbers[f"{image}, {LRP}: mean absolute difference"] = value
        names = next(NAMES[scene] for scene in SCENES if CLASSES[scene] == pair)
        for name, rank in zip(names, here["rank"].values, strict=False):
            numbers[f"{image}: rank of {name}"] = float(rank)
    for image in SCENES:
        here = lrp.sel(image=image)
        numbers |= {
            f"{image}, {LRP}: cosine": float(here["cosine"].sel(pair="classes")),
            f"{image}, {LRP}: SSIM": float(here["ssim"].sel(pair="classes")),
            f"{image}, {LRP}: mean absolute difference to a random class": float(
                random.sel(image=image, analyzer=LRP)
            ),
        }
    left_out = dataset.attrs["left_out"] or "none"
    return finding(
        dataset,
        "S1",
        [
            Criterion(
                f"{LRP}, {image}: mean absolute difference of the normalised maps",
                float(classes["distance"].sel(image=image, analyzer=LRP)),
                "<=",
                TINY_DISTANCE,
            )
            for image in SCENES
        ],
        numbers=numbers,
        note=(
            f"Published: {PUBLISHED} for cat_dog on VGG-16, which has three dense layers; the "
            "bound is its order of magnitude. Ranks: 1 is the largest logit. Left out: "
            f"{left_out}."
        ),
        reason="a map is zero everywhere or not finite",
    )


def _contrastive(dataset: xr.Dataset) -> Finding:
    """S22: contrastive LRP is a difference of maps; excitation backpropagation below one layer."""
    criteria, numbers = [], {}
    distances = dataset["layer_cosine"].sel(pair="classes")
    last = str(dataset["layer"].values[0])
    for image in SCENES:
        here = dataset.sel(scene=image)
        figure = here["contrast_figure"].values
        criteria.append(
            Criterion(
                f"{image}: cosine of contrastive LRP and the difference of fig. 1e, mean of both "
                "classes",
                (figure[0] - figure[1]) / 2,
                ">=",
                ALIKE,
            )
        )
        cosine = {
            (chain, place): float(distances.sel(scene=image, chain=chain, layer=layer))
            for chain in CHAINS
            for place, layer in (("the last layer's input", last), ("the input", "input"))
        }
        at_last, at_input = (
            abs(cosine[CONTRASTIVE, place]) for place in ("the last layer's input", "the input")
        )
        criteria += [
            # Signs say which class a contrastive map speaks for.
            Criterion(
                f"{image}: cosine of both classes at the input, contrastive less plain excitation "
                "backpropagation",
                cosine[CONTRASTIVE, "the input"] - cosine[EXCITATION, "the input"],
                "<",
                0,
            ),
            Criterion(
                f"{image}: |cosine| of both classes, contrastive excitation backpropagation, at "
                "the input less at the last layer's input",
                at_input - at_last,
                ">=",
                0,
            ),
        ]
        numbers |= {
            f"{image}: cosine of both classes, {chain}, at {place}": value
            for (chain, place), value in cosine.items()
        }
        sums, size = here["contrast_sums"].values, here["contrast_size"].values
        more = {
            "the same for the random class, magnitude": abs(figure[2]),
            "cosine of contrastive LRP and the difference of maps divided by their sums": (
                (sums[0] - sums[1]) / 2
            ),
            "sum of |contrastive LRP|, of 2, mean of both classes": size[:2].mean(),
            "|sum| over sum of |logits| of all other classes": float(
                dataset["others_left"].sel(image=image)[:2].mean()
            ),
            "median |cosine| at the input of random vectors from the last layer's input": (
                float(here["random_cosine"])
            ),
        }
        numbers |= {f"{image}: {name}": value for name, value in more.items()}
    criteria.append(
        Criterion(
            "largest difference of contrastive and plain excitation backpropagation from the last "
            "layer's input on, relative",
            float(dataset["chain_error"]),
            "<=",
            ROUNDING,
        )
    )
    return finding(
        dataset,
        "S22",
        criteria,
        numbers=numbers,
        note=(
            "Alike means more than half of the energy shared. Contrastive LRP subtracts the map of "
            "all other classes over its sum, which with signed logits can be about 0. Through the "
            "last layer only: from its input on the chain is that of plain excitation "
            "backpropagation, and along it two classes become no less alike, up to their sign."
        ),
        reason="a map is zero everywhere or not finite",
    )


EXPERIMENT = Experiment(
    "sixt2020",
    "two_classes",
    "Maps of two classes in one image, and of contrastive methods (fig. 1b-e).",
    compute,
    judge,
    draw,
    models=("googlenet", "squeezenet", "mobilenet"),
    known_models=networks.explained_on(networks.IMAGENET),
    data=(TWO_CLASSES,),
    tiny={"models": (networks.TINY,)},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
