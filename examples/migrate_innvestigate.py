"""A script for innvestigate 1.x or 2.x beside its lines for tfexplain.

Each function has innvestigate's lines in its docstring and tfexplain's as its code: look for yours,
copy the code. `model_wo_softmax` is the network without its softmax, which
`innvestigate.utils.model_wo_softmax(model)` (1.x) or `innvestigate.model_wo_softmax(model)` (2.x)
makes; `model` is the network as it was trained.

    python migrate_innvestigate.py

runs every function once on the network of `tfexplain demo`, prints what can be checked, and writes
`migrated.png`: the maps of three digits. Names of methods stay the same. What differs otherwise
stands in `docs/migration.md`.
"""

from __future__ import annotations

import argparse
import pathlib
import tempfile

import keras
import numpy as np

import tfexplain
from tfexplain import demo
from tfexplain.analyzers import ANALYZERS

METHODS = ("gradient", "lrp.sequential_preset_a_flat", "lrp.alpha_2_beta_1", "pattern.attribution")


def largest_output(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Explains the largest logit of each sample.

    innvestigate:

        tf.compat.v1.disable_eager_execution()  # 2.x
        analyzer = innvestigate.create_analyzer("lrp.sequential_preset_a_flat", model_wo_softmax)
        analysis = analyzer.analyze(x)

    The softmax stays on the model: tfexplain leaves it out by itself.
    """
    analyzer = tfexplain.create_analyzer("lrp.sequential_preset_a_flat", model)
    return analyzer.analyze(x)


def one_output(model: keras.Model, x: np.ndarray, index: int | list[int]) -> np.ndarray:
    """Explains a given output: the same of all samples, or one for each.

    innvestigate:

        analyzer = innvestigate.create_analyzer(
            "lrp.sequential_preset_a_flat", model_wo_softmax, neuron_selection_mode="index"
        )
        analysis = analyzer.analyze(x, neuron_selection=index)

    One analyzer answers both questions; `analyze(x, index)` works as well.
    """
    analyzer = tfexplain.create_analyzer("lrp.sequential_preset_a_flat", model)
    return analyzer.analyze(x, target=index)


def all_outputs(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Explains all outputs together.

    innvestigate:

        analyzer = innvestigate.create_analyzer(
            "lrp.epsilon", model_wo_softmax, neuron_selection_mode="all"
        )
        analysis = analyzer.analyze(x)

    There "all" is one map, started from all outputs at once. Here it is a map for each output,
    (n, outputs, *input_shape); their sum is innvestigate's.
    """
    analyzer = tfexplain.create_analyzer("lrp.epsilon", model)
    return analyzer.analyze(x, target="all").sum(axis=1)


def absolute_gradient(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Postprocesses a gradient.

    innvestigate:

        analyzer = innvestigate.create_analyzer("gradient", model_wo_softmax, postprocess="abs")
        analysis = analyzer.analyze(x)

    Relevance keeps its sign; take what you want of it: `numpy.abs`, or `numpy.square`.
    """
    return np.abs(tfexplain.create_analyzer("gradient", model).analyze(x))


def every_method(model: keras.Model, x: np.ndarray, x_train: np.ndarray) -> dict[str, np.ndarray]:
    """Loops over methods, of which some are fitted (pattern methods: 1.x only).

    innvestigate:

        for name in METHODS:
            analyzer = innvestigate.create_analyzer(name, model_wo_softmax)
            analyzer.fit(x_train, batch_size=256, verbose=1)
            analyses[name] = analyzer.analyze(x)

    `fit` of a method that has nothing to fit is an error here. It takes an array, or a
    `tf.data.Dataset` of batches, and no other arguments. `pattern_type="relu"` is
    `estimator="relu"`, the default.
    """
    analyses = {}
    for name in METHODS:
        analyzer = tfexplain.create_analyzer(name, model)
        if ANALYZERS[name].fits:
            analyzer.fit(x_train)
        analyses[name] = analyzer.analyze(x)
    return analyses


def renamed_options(model: keras.Model, x: np.ndarray) -> dict[str, np.ndarray]:
    """Gives options, of which some have other names.

    innvestigate:

        create_analyzer("lrp.epsilon", model_wo_softmax, epsilon=0.1, input_layer_rule="Flat")
        create_analyzer("lrp.z", model_wo_softmax, input_layer_rule=(0, 1))
        create_analyzer("smoothgrad", model_wo_softmax, augment_by_n=16)
        create_analyzer("integrated_gradients", model_wo_softmax, reference_inputs=0, steps=16)
        create_analyzer("lrp.sequential_preset_b_flat_until_idx", model_wo_softmax,
                        until_layer_idx=1)
    """
    rows = {
        "flat first": ("lrp.epsilon", {"epsilon": 0.1, "input_rule": "flat"}),
        "box first": ("lrp.z", {"input_rule": ("box", 0, 1)}),
        "smoothgrad": ("smoothgrad", {"samples": 16}),
        "integrated": ("integrated_gradients", {"baseline": 0, "steps": 16}),
        "until 1": ("lrp.sequential_preset_b_flat_until_idx", {"until": 1}),
    }
    maps = {}
    for title, (name, options) in rows.items():
        maps[title] = tfexplain.create_analyzer(name, model, **options).analyze(x)
    return maps


def hidden_layer(model: keras.Model, x: np.ndarray, layer: str) -> np.ndarray:
    """Returns the relevance at a hidden layer.

    innvestigate:

        analyzer = innvestigate.create_analyzer(
            "lrp.z", model_wo_softmax, reverse_keep_tensors=True
        )
        analyzer.analyze(x)
        tensors = analyzer._reversed_tensors  # by numbers of nodes

    Here layers have their names, and relevance starts with whatever is given: (n, vectors,
    *output_shape), one vector of the largest logit alone here.
    """
    analyzer = tfexplain.create_analyzer("lrp.z", model)
    logits = analyzer.outputs(x)
    largest = np.where(logits == logits.max(axis=1, keepdims=True), logits, 0)
    return analyzer.propagate(x, largest[:, None], layers=[layer])[layer][:, 0]


def saved_and_loaded(model: keras.Model, x: np.ndarray, path: pathlib.Path) -> np.ndarray:
    """Keeps an analyzer in a file.

    innvestigate:

        analyzer.save_npz("analyzer.npz")
        analyzer = innvestigate.analyzer.base.AnalyzerBase.load_npz("analyzer.npz")

    The file has no pickle in it, and keeps options and what was fitted.
    """
    tfexplain.create_analyzer("lrp.epsilon", model, epsilon=0.1).save(path)
    return tfexplain.load_analyzer(path).analyze(x)


def published_numbers(model: keras.Model, x: np.ndarray, name: str) -> np.ndarray:
    """Repeats numbers that innvestigate made, where its conventions differ.

    innvestigate:

        analyzer = innvestigate.create_analyzer(name, model_wo_softmax)
        analysis = analyzer.analyze(x)

    Restores how biases are counted, which rules are default, and where relevance starts; not
    innvestigate's faults.
    """
    return tfexplain.create_analyzer(name, model, compat="innvestigate").analyze(x)


def picture(x: np.ndarray, analyses: dict[str, np.ndarray], path: pathlib.Path) -> None:
    """Draws maps.

    innvestigate:

        a = analysis.sum(axis=-1)
        a /= np.max(np.abs(a))
        plt.imshow(a[0], cmap="seismic", clim=(-1, 1))

    Channels are summed and each map has limits symmetric about zero, as there.
    """
    tfexplain.plotting.maps(x, analyses).savefig(path)


def started_from_all(model: keras.Model, x: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """Sends all logits back at once, as innvestigate's "all" does."""
    analyzer = tfexplain.create_analyzer("lrp.epsilon", model)
    (relevance,) = analyzer.propagate(x, logits[:, None]).values()
    return relevance[:, 0]


def change(maps: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference of maps, relative to the largest value."""
    return np.abs(maps - expected).max() / np.abs(expected).max()


def main(arguments: list[str] | None = None) -> dict[str, float]:
    """Runs all of it; returns the printed numbers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=pathlib.Path, default=pathlib.Path("migrated.png"), metavar="FILE"
    )
    out = parser.parse_args(arguments).out
    if not out.parent.is_dir():
        parser.error(f"the folder {out.parent} does not exist; make it first")

    (x_train, _), (x, _) = demo.load_digits()
    model = demo.network()
    x = x[:3]
    analyzer = tfexplain.create_analyzer("lrp.epsilon", model, epsilon=0.1)
    logits = analyzer.outputs(x)
    probabilities = model.predict(x, verbose=0)
    classes = [int(index) for index in logits.argmax(axis=1)]
    analyses = every_method(model, x, x_train)
    with tempfile.TemporaryDirectory() as folder:
        again = saved_and_loaded(model, x, pathlib.Path(folder) / "analyzer.tfx")
    numbers = {
        "explained logit of the first digit": logits[0].max(),
        "its probability": probabilities[0].max(),
        "change by naming the largest output": change(
            one_output(model, x, classes), largest_output(model, x)
        ),
        "sum over all outputs, against one start from all": change(
            all_outputs(model, x), started_from_all(model, x, logits)
        ),
        "negative values of the absolute gradient": np.sum(absolute_gradient(model, x) < 0),
        "maps with renamed options": len(renamed_options(model, x)),
        "relevance at the layer dense, as a share of the logit": np.sum(
            hidden_layer(model, x, "dense")[0]
        )
        / logits[0].max(),
        "change by saving and loading": change(again, analyzer.analyze(x)),
    }
    for name in ("gradient", "lrp.alpha_2_beta_1"):
        changed = published_numbers(model, x, name)
        numbers[f"change of {name} by compat"] = change(changed, analyses[name])
    for title, value in numbers.items():
        print(f"{title}: {value:.4g}")

    picture(x, analyses, out)
    print(f"{out}: maps of {len(x)} digits by {', '.join(analyses)}")
    return {title: float(value) for title, value in numbers.items()}


if __name__ == "__main__":
    main()
