"""The demonstration: a small network for handwritten digits, explained by all methods, and audited.

The network comes trained with the library, and the data are scikit-learn's 8 x 8 digits: nothing is
downloaded. `network` and `digits` are a model and data to try things with, also on the command
line, as `tfexplain.demo:network` and `tfexplain.demo:digits`.
"""

import os
import pathlib
import shlex
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from tfexplain import files, plotting, results
from tfexplain.errors import UnsupportedLayerError, UnsupportedModelError

if TYPE_CHECKING:
    import keras
    import xarray as xr

    from tfexplain.analyzers import Analyzer
    from tfexplain.report import Outcome, Plan

CONFIG: dict[str, Any] = {
    "seed": 0,
    "filters": [16, 32],
    "units": 64,
    "epochs": 12,
    "batch_size": 32,
    "rate": 2e-3,
}
# `python -m docs.network` made it with `train`, and wrote beside it how, and the accuracy.
WEIGHTS = pathlib.Path(__file__).parent / "trained" / "digits.npz"

# What the report says of the audited samples; by it a folder is known again.
DATA = "a test digit of each class, of scikit-learn's digits"
Step = Callable[[str, int, int], object]


class Demonstration(NamedTuple):
    """What `run` made: the Dataset, the two files, and what is worth saying about them.

    Attributes:
        dataset: `relevance` (analyzer, sample, height, width, channel) and more.
        picture: File of the maps.
        data: File of the Dataset.
        accuracy: Accuracy of the network on test digits, in 0..1.
        left_out: Method -> why it does not fit.
        analyzers: The methods by name.
        x: The ten digits, (10, 8, 8, 1).
        y: Their classes, (10,).
    """

    dataset: "xr.Dataset"
    picture: pathlib.Path
    data: pathlib.Path
    accuracy: float
    left_out: dict[str, str]
    analyzers: "dict[str, Analyzer]"
    x: np.ndarray
    y: np.ndarray

    def report(self) -> str:
        """Where everything is and what to look at."""
        number = self.dataset.sizes["analyzer"]
        lines = [
            f"A network with {self.accuracy:.1%} test accuracy on 8 x 8 digits, explained by "
            f"{number} methods.",
            f"  {self.picture}: a row per digit, a column per method. Red speaks for the digit, "
            "blue against it, white is zero; under each map its limit.",
            f"  {self.data}: all numbers; read with tfexplain.results.load.",
            "  tfexplain.demo:network: the network, as MODEL for the other commands; in Python "
            "tfexplain.demo.network().",
            "Look at input_t_gradient beside lrp.z, which agree on such networks, and at lrp.flat, "
            "which shows the receptive field only.",
            "conservation_error in the data is the sum of a map minus the logit: rounding for "
            "deep_taylor, lrp.w_square and lrp.flat, what the biases absorb for lrp.z.",
        ]
        lines += [f"Left out: {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)


def run(out: str | os.PathLike = "tfexplain-demo", *, step: Step | None = None) -> Demonstration:
    """Explains ten digits by every analyzer, and writes the results.

    Args:
        out: Folder for `digits.png` and `digits.nc`; need not exist.
        step: Called with (what is done, steps done, steps in all), for a progress bar; a detail
            follows after a colon, as in "explaining: gradient".

    Returns:
        `Demonstration`. Its Dataset has `relevance` (analyzer, sample, height, width, channel).

    Raises:
        NotADirectoryError: If `out` is a file.
        RuntimeError: If no analyzer fits.
    """
    from tfexplain.analyzers import ANALYZERS, create_analyzer

    step = step or (lambda name, done, total: None)
    files.check_folder(out)
    (x_train, _), (x_test, y_test) = load_digits()
    model = network()
    accuracy = float(np.mean(model.predict(x_test, verbose=0).argmax(axis=1) == y_test))
    x, y = digits()
    targets = y.tolist()
    analyzers, attributions, left_out = {}, {}, {}
    options = {name: entry.for_samples(x_train) for name, entry in ANALYZERS.items()}
    for number, name in enumerate(ANALYZERS):
        step(f"explaining: {name}", number, len(ANALYZERS))
        try:
            analyzer = create_analyzer(name, model, **options[name])
            if ANALYZERS[name].fits:
                analyzer.fit(x_train)
            attributions[name] = analyzer.attribute(x, target=targets)
            analyzers[name] = analyzer
        except (UnsupportedLayerError, UnsupportedModelError) as error:
            left_out[name] = str(error)
    step("explaining", len(ANALYZERS), len(ANALYZERS))
    if not attributions:
        raise RuntimeError(f"No analyzer fits the demonstration's network: {left_out}.")
    dataset = results.comparison_dataset(
        attributions, notes=[f"left out {name}: {reason}" for name, reason in left_out.items()]
    )
    step("drawing", 0, 1)
    figure = plotting.maps(
        x,
        {name: dataset["relevance"].sel(analyzer=name).values for name in attributions},
        titles=["digit", *(_title(name, options[name]) for name in attributions)],
        row_labels=[str(label) for label in targets],
    )
    with files.output_folder(out) as temporary:
        results.save(dataset, temporary / "digits.nc")
        figure.savefig(temporary / "digits.png")
    step("drawing", 1, 1)
    out = pathlib.Path(out)
    return Demonstration(
        dataset,
        out / "digits.png",
        out / "digits.nc",
        accuracy,
        left_out,
        analyzers,
        x,
        y,
    )


def audit(
    demonstration: Demonstration,
    out: str | os.PathLike = "tfexplain-demo",
    *,
    announce: "Callable[[Plan], object] | None" = None,
) -> "Outcome":
    """Asks which of the demonstration's explanations can be trusted, and writes the report.

    Args:
        demonstration: What `run` returned.
        out: Folder for `report.html`, `verdict.json`, `audit.json` and `results`. An audit in it
            that was stopped is continued.
        announce: Function that is called with the `Plan` before the work begins.

    Returns:
        `Outcome`, of the preset "quick" and the ten digits.

    Raises:
        ValueError: If the folder holds another audit.
    """
    from tfexplain import report

    first = next(iter(demonstration.analyzers.values()))
    return report.audit(
        first.user_model,
        demonstration.x,
        demonstration.y,
        methods=demonstration.analyzers,
        preset="quick",
        images=len(demonstration.x),
        folder=out,
        about={
            "command": shlex.join(["tfexplain", "demo", "--out", os.fspath(out)]),
            "data": DATA,
            "classes": {str(digit): f"digit {digit}" for digit in range(10)},
        },
        announce=announce,
    )


def check_folder(out: str | os.PathLike) -> None:
    """Refuses, before any work, a folder with an audit that the demonstration cannot continue.

    Args:
        out: Folder that `audit` is going to write to.

    Raises:
        ValueError: If it holds the audit of something else or by other versions, or files of none.
    """
    from tfexplain.report import folder

    place = pathlib.Path(out)
    folder.check_owner(place)
    if not (place / folder.RECORD).exists():
        return
    record = folder.read_record(place / folder.RECORD)
    data = record.get("about", {}).get("data", "unknown data")
    theirs, mine = record["settings"].get("versions", {}), results.versions()
    if data != DATA:
        raise ValueError(
            f"{place} holds another audit, of {data}. Choose another folder, or remove it."
        )
    if older := [name for name in mine if theirs.get(name) != mine[name]]:
        raise ValueError(
            f"{place} holds a demonstration by other versions of {', '.join(older)}. Choose "
            "another folder, or remove it."
        )


def network() -> "keras.Model":
    """A trained network for handwritten digits, which comes with the library.

    Two convolutions, max pooling and two dense layers; the softmax is the last activation.

    Returns:
        A new model, (n, 8, 8, 1) to (n, 10), not compiled. Names of its layers: conv1, conv2, pool,
        flatten, dense, scores.

    Example:
        >>> network().output_shape
        (None, 10)
    """
    model = _build()
    with np.load(WEIGHTS, allow_pickle=False) as archive:
        model.set_weights([archive[name].astype("float32") for name in weight_names(model)])
    return model


def weight_names(model: "keras.Model") -> list[str]:
    """Names of all weights, as `conv1/kernel`, in the order of `get_weights`."""
    return [f"{layer.name}/{weight.name}" for layer in model.layers for weight in layer.weights]


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Ten digits that the network was not trained with, one of each class.

    Returns:
        x: float32 (10, 8, 8, 1) in 0..1. y: int64 (10,), from 0 to 9.

    Example:
        >>> x, y = digits()
        >>> y.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    _, (x, y) = load_digits()
    chosen = [int(np.flatnonzero(y == digit)[0]) for digit in range(10)]
    return x[chosen], y[chosen]


def load_digits() -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's digits as ((x_train, y_train), (x_test, y_test)).

    Returns:
        x: float32 (n, 8, 8, 1) in 0..1. y: int64 (n,). 1347 samples to train, 450 to test.
    """
    from sklearn import datasets, model_selection

    digits = datasets.load_digits()
    x = (digits.images[..., None] / 16).astype(np.float32)
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        x, digits.target, test_size=450, random_state=CONFIG["seed"], stratify=digits.target
    )
    return (x_train, y_train), (x_test, y_test)


def train(step: Step | None = None) -> "keras.Model":
    """Trains the network of `network` from the start, in seconds.

    All random numbers come from seeds of its own, no global seed is set. Other versions of
    TensorFlow, and other machines, give slightly other numbers.

    Args:
        step: As in `run`.

    Returns:
        The model, whose weights are numbers of half precision, as the library keeps them.
    """
    import keras

    step = step or (lambda name, done, total: None)
    (x, y), _ = load_digits()
    model = _build()
    model.compile(keras.optimizers.Adam(CONFIG["rate"]), "sparse_categorical_crossentropy")
    generator = np.random.default_rng(CONFIG["seed"])
    epochs = CONFIG["epochs"]
    for epoch in range(epochs):
        step("training", epoch, epochs)
        order = generator.permutation(len(x))
        model.optimizer.learning_rate = CONFIG["rate"] * (1 - epoch / epochs)
        model.fit(x[order], y[order], CONFIG["batch_size"], shuffle=False, verbose=0)
    step("training", epochs, epochs)
    # without optimizer and loss, which no explanation needs
    plain = _build()
    plain.set_weights([weight.astype("float16") for weight in model.get_weights()])
    return plain


def _build() -> "keras.Model":
    """Two convolutions, max pooling, two dense layers and softmax."""
    import keras

    seeds = iter(range(CONFIG["seed"], CONFIG["seed"] + 4))
    first, second = CONFIG["filters"]

    def initializer() -> keras.initializers.Initializer:
        return keras.initializers.HeUniform(seed=next(seeds))

    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="digit"),
            keras.layers.Conv2D(
                first,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=initializer(),
                name="conv1",
            ),
            keras.layers.Conv2D(
                second,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=initializer(),
                name="conv2",
            ),
            keras.layers.MaxPooling2D(name="pool"),
            keras.layers.Flatten(name="flatten"),
            keras.layers.Dense(
                CONFIG["units"], activation="relu", kernel_initializer=initializer(), name="dense"
            ),
            keras.layers.Dense(
                10, activation="softmax", kernel_initializer=initializer(), name="scores"
            ),
        ],
        name="digits",
    )


def _title(name: str, options: Mapping[str, Any]) -> str:
    """A method's name, with the options that the demonstration gives."""
    return " ".join([name, *(f"{key}={value:g}" for key, value in options.items())])
