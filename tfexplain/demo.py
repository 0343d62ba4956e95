"""The demonstration: a small network for handwritten digits, explained by all methods, and audited.

It needs no network and no data beside scikit-learn's 8 x 8 digits, and gives the same numbers each
time: all random numbers come from seeds of its own, no global seed is set.
"""

import contextlib
import hashlib
import json
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

CONFIG = {"seed": 0, "filters": [16, 32], "units": 64, "epochs": 12, "batch_size": 32, "rate": 2e-3}
LEAST_ACCURACY = 0.97

# What the report says of the audited samples; by it a folder is known again.
DATA = "a test digit of each class, of scikit-learn's digits"
Step = Callable[[str, int, int], object]


class Demonstration(NamedTuple):
    """What `run` made: the Dataset, the two files, and what is worth saying about them.

    Attributes:
        dataset: `relevance` (analyzer, sample, height, width, channel) and more.
        picture: File of the maps.
        data: File of the Dataset.
        model: File of the network; None if the cache cannot be written.
        accuracy: Of the network on test digits, in 0..1.
        left_out: Method -> why it does not fit.
        analyzers: The methods by name.
        x: The ten digits, (10, 8, 8, 1).
        y: Their classes, (10,).
    """

    dataset: "xr.Dataset"
    picture: pathlib.Path
    data: pathlib.Path
    model: pathlib.Path | None
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
            f"  {self.model}: the network, a Keras model."
            if self.model
            else "  The network is not kept: the cache folder cannot be written.",
            "Look at input_t_gradient beside lrp.z, which agree on such networks, and at lrp.flat, "
            "which shows the receptive field only.",
            "conservation_error in the data is the sum of a map minus the logit: rounding for "
            "deep_taylor, lrp.w_square and lrp.flat, what the biases absorb for lrp.z.",
        ]
        lines += [f"Left out: {name}: {reason}" for name, reason in self.left_out.items()]
        return "\n".join(lines)


def run(
    out: str | os.PathLike = "tfexplain-demo",
    *,
    cache: str | os.PathLike | None = None,
    step: Step | None = None,
) -> Demonstration:
    """Trains or loads the network, explains ten digits by every analyzer, writes the results.

    Args:
        out: Folder for `digits.png` and `digits.nc`; need not exist.
        cache: Folder for the trained network. `None`: that of `cache_folder`.
        step: Called with (what is done, steps done, steps in all), for a progress bar; a detail
            follows after a colon, as in "explaining: gradient".

    Returns:
        `Demonstration`. Its Dataset has `relevance` (analyzer, sample, height, width, channel).

    Raises:
        NotADirectoryError: If `out` is a file.
        RuntimeError: If the network learns too badly, or no analyzer fits.
    """
    from tfexplain.analyzers import ANALYZERS, create_analyzer

    step = step or (lambda name, done, total: None)
    files.check_folder(out)
    folder = cache_folder() if cache is None else pathlib.Path(cache)
    (x_train, y_train), (x_test, y_test) = load_digits()
    model, path = trained_model(folder, x_train, y_train, step)
    predicted = model.predict(x_test, verbose=0).argmax(axis=1)
    accuracy = float(np.mean(predicted == y_test))
    if accuracy < LEAST_ACCURACY:
        raise RuntimeError(
            f"The demonstration's network has {accuracy:.1%} test accuracy; expected at least "
            f"{LEAST_ACCURACY:.0%}. Remove {path or folder} and run again; if it stays, report it "
            f"with {results.versions()}."
        )
    chosen = [int(np.flatnonzero((y_test == d) & (predicted == d))[0]) for d in range(10)]
    x, targets = x_test[chosen], [int(label) for label in y_test[chosen]]
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
        path,
        accuracy,
        left_out,
        analyzers,
        x,
        y_test[chosen],
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


def cache_folder() -> pathlib.Path:
    """The user's cache folder: `tfexplain` in `$XDG_CACHE_HOME`, by default in `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the specification of XDG_CACHE_HOME: relative paths are to be ignored
    base = pathlib.Path(base) if os.path.isabs(base) else pathlib.Path.home() / ".cache"
    return base / "tfexplain"


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


def trained_model(
    cache: str | os.PathLike, x: np.ndarray, y: np.ndarray, step: Step
) -> tuple["keras.Model", pathlib.Path | None]:
    """The network from `cache`, or trained and put there.

    Args:
        cache: Folder, which need not exist. A damaged file in it is replaced.
        x: Inputs for training, shape (n, 8, 8, 1).
        y: Labels, shape (n,).
        step: As in `run`.

    Returns:
        The model, and where it is cached: `None` if the folder cannot be written.
    """
    import keras

    key = json.dumps({"config": CONFIG, "versions": results.versions()}, sort_keys=True)
    name = f"digits-{hashlib.sha256(key.encode()).hexdigest()[:16]}.keras"
    path = pathlib.Path(cache) / name
    if path.is_file():
        # whatever is wrong with the file, training again puts it right
        with contextlib.suppress(Exception):
            model = keras.saving.load_model(path, compile=False)
            if model.input_shape == (None, 8, 8, 1) and model.output_shape == (None, 10):
                return model, path
    model = _train(x, y, step)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_atomically(path, model.save)
    except OSError:
        return model, None
    return model, path


def _train(x: np.ndarray, y: np.ndarray, step: Step) -> "keras.Model":
    """A trained network; the same weights each time."""
    import keras

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
    plain.set_weights(model.get_weights())
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
