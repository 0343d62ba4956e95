"""Trains a network by the recipe of a paper: `python -m models.train cifar10 --out FILE`.

    python -m models.train cifar10 --data cifar10.npz --epochs 100 --out cifar10.weights.h5

writes the weights, for `models.cifar_cnn(weights=...)`, and beside them `cifar10.json` with the
recipe, the versions, the data, the accuracy and the course of the training. Without `--data` Keras
downloads the data; `models.datasets` says which files can be given. `--tiny` takes 256 images of
each part for two epochs, to see that everything works.

After each epoch the state is kept in `cifar10.checkpoint.npz`. The same command after an
interruption goes on from there, and gives the numbers of a run without interruption: order,
augmentation and dropout of an epoch depend on the seed and the number of the epoch only. On a GPU
that holds where its operations are deterministic (set the environment variable
`TF_DETERMINISTIC_OPS=1`), else up to rounding. The checkpoint is removed at the end.

Recipes (`RECIPES`):

* `cifar10`: the network of appendix D of "When Explanations Lie" (Sixt, Granz, Landgraf 2020).
  Images divided by 255, random horizontal flips, shifts of up to 10 % with the nearest pixel
  outside, Adam with learning rate 1e-3, batches of 32, 100 epochs, no schedule; the last epoch is
  kept. The authors state no seed and a test accuracy of .8089.
* `mnist_cnn`: the network of appendix D of "Uncovering the Structure of Explanation Quality" (Maess
  et al. 2025). Images divided by 255, plain SGD with learning rate .1, batches of 100, 2500 steps,
  which end within the 8th epoch. The authors state a test accuracy of about .98, SGD and its
  learning rate; the rest is that of the first author's public research code.
* `lenet5` and `pooled_mlp`: the networks of "Credit Assignment for Trained Neural Networks" (Liang
  et al. 2022), which says nothing of their training. Images divided by 255, Adam with learning
  rate 1e-3, batches of 100; 10 epochs, and 30 for the pooled digits, which are learnt more slowly.
"""

import argparse
import dataclasses
import hashlib
import itertools
import json
import math
import os
import pathlib
import platform
import secrets
import sys
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from models.cifar_cnn import cifar_cnn
from models.datasets import Dataset, load_cifar10, load_mnist, load_mnist_split
from models.images import max_pool
from models.lenet5 import lenet5
from models.mnist_cnn import mnist_cnn
from models.pooled_mlp import pooled_mlp

_SUFFIX = ".weights.h5"
_TINY_IMAGES = 256
_TINY_EPOCHS = 2
_PIXEL_RANGE = 255.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained: images divided by 255, cross-entropy, no schedule.

    Attributes:
        build: Makes the network with random weights.
        load: From a path, or None, to the data.
        epochs: Number of passes through the training data; None if `steps` is given.
        batch_size: Images per step; an incomplete last batch of an epoch is left out.
        learning_rate: The learning rate of the optimizer, whose other settings are those of Keras.
        flip: Whether images are mirrored at random, left and right.
        shift: Largest random shift as a part of height and width; subpixel, bilinear, the nearest
            pixel outside.
        optimizer: Name of a class of `keras.optimizers`.
        steps: Number of steps, after which the training ends within an epoch; None if `epochs` is
            given.
        pool: Length of a side of the squares of pixels of which the network sees the largest.
        logits: Whether the network returns logits; else probabilities.

    Raises:
        ValueError: If not one of `epochs` and `steps` is given.
    """

    build: Callable[[], keras.Model]
    load: Callable[[str | os.PathLike | None], Dataset]
    epochs: int | None
    batch_size: int
    learning_rate: float
    flip: bool = False
    shift: float = 0.0
    optimizer: str = "Adam"
    steps: int | None = None
    pool: int = 1
    logits: bool = False

    def __post_init__(self) -> None:
        """Checks the values."""
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f"A recipe has epochs={self.epochs} and steps={self.steps}. Expected one of them, "
                "and None as the other."
            )

    def augmentation(self, seeds: Sequence[int]) -> list[keras.layers.Layer]:
        """Makes the layers that change images at random.

        Args:
            seeds: Two integers, for flips and shifts.

        Returns:
            Layers for images of shape (batch, height, width, channels).
        """
        layers: list[keras.layers.Layer] = []
        if self.flip:
            layers.append(keras.layers.RandomFlip("horizontal", seed=int(seeds[0])))
        if self.shift:
            layers.append(
                keras.layers.RandomTranslation(
                    self.shift,
                    self.shift,
                    fill_mode="nearest",
                    interpolation="bilinear",
                    seed=int(seeds[1]),
                )
            )
        return layers


RECIPES = {
    "cifar10": Recipe(
        build=cifar_cnn,
        load=load_cifar10,
        epochs=100,
        batch_size=32,
        learning_rate=1e-3,
        flip=True,
        shift=0.1,
    ),
    "mnist_cnn": Recipe(
        build=mnist_cnn,
        load=load_mnist_split,
        epochs=None,
        steps=2500,
        batch_size=100,
        learning_rate=0.1,
        optimizer="SGD",
        logits=True,
    ),
    "lenet5": Recipe(
        build=lenet5, load=load_mnist, epochs=10, batch_size=100, learning_rate=1e-3, logits=True
    ),
    "pooled_mlp": Recipe(
        build=pooled_mlp,
        load=load_mnist,
        epochs=30,
        batch_size=100,
        learning_rate=1e-3,
        pool=3,
        logits=True,
    ),
}


def train(
    name: str,
    out: str | os.PathLike,
    *,
    data: str | os.PathLike | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    tiny: bool = False,
) -> dict:
    """Trains a network and writes its weights, or goes on where an interrupted run stopped.

    Sets the global seeds of Python, NumPy and TensorFlow. Shows progress on the standard output.

    Args:
        name: Key of `RECIPES`.
        out: File of the weights, ending in `.weights.h5`. The description is written beside it as
            `.json`, and until the end there is a `.checkpoint.npz`.
        data: What the loader of the recipe takes; None downloads.
        epochs: Number of passes through the training data; None: that of the recipe. A resumed
            run may have another one, unless the recipe counts steps.
        batch_size: Images per step; None: that of the recipe.
        seed: The seed of the initial weights, order, augmentation and dropout.
        tiny: Whether to take 256 images of each part, and 2 epochs by default.

    Returns:
        What the `.json` file holds.

    Raises:
        FileNotFoundError: If the data or the folder of `out` do not exist.
        FileExistsError: If `out` exists.
        ValueError: If an argument is out of range, if the data are damaged or too few, if the
            checkpoint is damaged or of another run, or if the loss is not finite.
    """
    if name not in RECIPES:
        raise ValueError(f"The recipe is {name!r}. Expected one of {', '.join(RECIPES)}.")
    recipe = RECIPES[name]
    steps = recipe.steps if epochs is None and not tiny else None
    if epochs is None:
        epochs = _TINY_EPOCHS if tiny else recipe.epochs
    batch_size = recipe.batch_size if batch_size is None else batch_size
    for what, number, least in (("epochs", epochs, 1), ("batch_size", batch_size, 1)):
        if number is not None and number < least:
            raise ValueError(f"{what} is {number}. Expected at least {least}.")
    if seed < 0:
        raise ValueError(f"seed is {seed}. Expected at least 0.")
    out, description, checkpoint = _output_files(out)
    dataset = recipe.load(data)
    if tiny:
        dataset = _tiny(dataset)
    if len(dataset.x_train) < batch_size:
        raise ValueError(
            f"There are {len(dataset.x_train)} training images ({dataset.source}). Expected at "
            f"least one batch of {batch_size}."
        )
    settings = _settings(name, recipe, dataset, batch_size, seed, tiny) | {"steps": steps}
    steps_per_epoch = len(dataset.x_train) // batch_size
    if epochs is None:
        epochs = math.ceil(steps / steps_per_epoch)
    keras.utils.set_random_seed(seed)
    model = recipe.build()
    model.compile(
        getattr(keras.optimizers, recipe.optimizer)(recipe.learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=recipe.logits),
        metrics=["accuracy"],
    )
    model.optimizer.build(model.trainable_variables)
    history = _resume(checkpoint, model, settings) if checkpoint.exists() else []
    if len(history) > epochs:
        raise ValueError(
            f"{str(checkpoint)!r} holds {len(history)} epochs, more than the {epochs} asked for. "
            "Ask for at least as many, or remove it to start anew."
        )
    validation = _scaled(recipe, dataset.x_test, dataset.y_test, batch_size)
    # On the CPU, where the input pipeline runs; else each epoch would copy them back.
    with tf.device("CPU"):
        images = tf.constant(_shaped(recipe, dataset.x_train))
        classes = tf.constant(dataset.y_train)
    for epoch in range(len(history), epochs):
        generator = np.random.default_rng([seed, epoch])
        batches = _batches(recipe, images, classes, batch_size, generator)
        if steps is not None:
            batches = batches.take(steps - epoch * steps_per_epoch)
        _reseed(model, generator)
        logs = model.fit(
            batches,
            initial_epoch=epoch,
            epochs=epoch + 1,
            shuffle=False,  # `batches` are in the order they shall have.
            validation_data=validation,
        ).history
        history.append({key: float(values[0]) for key, values in logs.items()})
        if not all(np.isfinite(value) for value in history[-1].values()):
            raise ValueError(
                f"Epoch {epoch + 1} gave {history[-1]}. Expected finite numbers; try another seed "
                "or larger batches."
            )
        _keep(checkpoint, model, settings, history)
    more = {
        name: model.evaluate(_scaled(recipe, x, y, batch_size), verbose=0, return_dict=True)
        for name, (x, y) in dataset.more.items()
    }
    return _finish(recipe, model, settings, history, more, (out, description, checkpoint))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words behind `python -m models.train`; None takes those of the process.

    Returns:
        Exit status: 0 done, 2 bad arguments or data, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m models.train", description="Trains a network by the recipe of a paper."
    )
    parser.add_argument("recipe", choices=RECIPES)
    parser.add_argument("--out", required=True, help="file of the weights, NAME.weights.h5")
    parser.add_argument("--data", help="file or folder of the data; else Keras downloads them")
    parser.add_argument("--epochs", type=int, help="passes through the data; else the recipe's")
    parser.add_argument("--batch-size", type=int, help="images per step; else the recipe's")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (default 0)")
    parser.add_argument("--tiny", action="store_true", help="256 images, 2 epochs: a smoke test")
    options = vars(parser.parse_args(arguments))
    name, out = options.pop("recipe"), options.pop("out")
    try:
        record = train(name, out, **options)
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on after the last whole epoch.")
        return 130
    except (OSError, ValueError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    print(f"{out}: {json.dumps(record['accuracy'])}, data: {record['data']['source']}")
    return 0


def _output_files(out: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path, pathlib.Path]:
    out = pathlib.Path(out)
    if not out.name.endswith(_SUFFIX) or out.name == _SUFFIX:
        raise ValueError(f"The weights are to be written to {str(out)!r}. Expected NAME{_SUFFIX}.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"The folder {str(out.parent)!r} does not exist. Make it first.")
    stem = out.name.removesuffix(_SUFFIX)
    description = out.with_name(f"{stem}.json")
    checkpoint = out.with_name(f"{stem}.checkpoint.npz")
    # A run that is interrupted at its very end leaves a description and its checkpoint.
    protected = (out,) if checkpoint.exists() else (out, description)
    if existing := [str(path) for path in protected if path.exists()]:
        raise FileExistsError(
            f"Already there: {' and '.join(existing)}. Give another name, or remove what is there."
        )
    return out, description, checkpoint


def _tiny(dataset: Dataset) -> Dataset:
    # Data sets can be sorted by class, so the first images would not do.
    train = np.random.default_rng(0).permutation(len(dataset.x_train))[:_TINY_IMAGES]
    test = np.random.default_rng(0).permutation(len(dataset.x_test))[:_TINY_IMAGES]
    return dataclasses.replace(
        dataset,
        x_train=dataset.x_train[train],
        y_train=dataset.y_train[train],
        x_test=dataset.x_test[test],
        y_test=dataset.y_test[test],
        more={name: (x[:_TINY_IMAGES], y[:_TINY_IMAGES]) for name, (x, y) in dataset.more.items()},
    )


def _settings(
    name: str, recipe: Recipe, dataset: Dataset, batch_size: int, seed: int, tiny: bool
) -> dict:
    """Everything that has to be equal where a run is resumed."""
    digest = hashlib.sha256()
    parts = ((dataset.x_train, dataset.y_train), (dataset.x_test, dataset.y_test))
    for array in itertools.chain(*parts, *dataset.more.values()):
        digest.update(np.ascontiguousarray(array).tobytes())
    pooled = f"largest of {recipe.pool} x {recipe.pool}, " if recipe.pool > 1 else ""
    return {
        "recipe": {
            "name": name,
            "optimizer": recipe.optimizer,
            "learning_rate": recipe.learning_rate,
            "loss": "categorical cross-entropy",
            "pixels": f"{pooled}divided by 255",
            "horizontal_flip": recipe.flip,
            "shift": recipe.shift,
            "fill_mode": "nearest",
            "schedule": "none",
            "kept": "last epoch",
        },
        "batch_size": batch_size,
        "seed": seed,
        "tiny": tiny,
        "data": {
            "source": dataset.source,
            "lossy": dataset.lossy,
            "train_images": len(dataset.x_train),
            "test_images": len(dataset.x_test),
            "sha256_of_arrays": digest.hexdigest(),
        },
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
        },
    }


def _shaped(recipe: Recipe, x: np.ndarray) -> np.ndarray:
    """Images (n, height, width, channels), of as many pixels as the network sees."""
    return max_pool(x if x.ndim == 4 else x[..., None], recipe.pool)


def _scaled(
    recipe: Recipe, x: np.ndarray, y: np.ndarray, batch_size: int
) -> tf.data.Dataset | None:
    """Images as the network sees them in batches, or None if there are none."""
    if not len(x):
        return None
    batches = tf.data.Dataset.from_tensor_slices((_shaped(recipe, x), y)).batch(batch_size)
    return batches.map(lambda images, classes: (_divided(images), classes)).prefetch(2)


def _batches(
    recipe: Recipe,
    images: tf.Tensor,
    classes: tf.Tensor,
    batch_size: int,
    generator: np.random.Generator,
) -> tf.data.Dataset:
    """One epoch: all images in a new order, changed at random."""
    order = generator.permutation(len(images))
    with tf.device("CPU"):  # Their random state has to be where the input pipeline runs.
        layers = recipe.augmentation(generator.integers(2**31, size=2))

    def batch(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        x = _divided(tf.gather(images, indices))
        for layer in layers:
            x = layer(x, training=True)
        return x, tf.gather(classes, indices)

    # One batch after the other, so that their random numbers are always the same.
    batches = tf.data.Dataset.from_tensor_slices(order).batch(batch_size, drop_remainder=True)
    return batches.map(batch).prefetch(2)


def _divided(images: tf.Tensor) -> tf.Tensor:
    return tf.cast(images, tf.float32) / _PIXEL_RANGE


def _reseed(model: keras.Model, generator: np.random.Generator) -> None:
    """Gives new seeds to all layers that draw random numbers."""
    for layer in model.layers:
        if (seeds := getattr(layer, "seed_generator", None)) is not None:
            seeds.state.assign(generator.integers(2**31, size=tuple(seeds.state.shape)))


def _keep(path: pathlib.Path, model: keras.Model, settings: dict, history: list[dict]) -> None:
    """Writes what `_resume` reads."""
    arrays = {f"weight_{i}": value for i, value in enumerate(model.get_weights())}
    for i, variable in enumerate(model.optimizer.variables):
        arrays[f"optimizer_{i}"] = variable.numpy()
    note = json.dumps({"settings": settings, "history": history})
    _replace(path, lambda file: np.savez(file, note=note, **arrays))


def _resume(path: pathlib.Path, model: keras.Model, settings: dict) -> list[dict]:
    """Puts weights and optimizer of a checkpoint into `model` and returns the history."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        note = json.loads(str(arrays.pop("note")))
        weights = [arrays.pop(f"weight_{i}") for i in range(len(model.weights))]
        state = [arrays.pop(f"optimizer_{i}") for i in range(len(model.optimizer.variables))]
        kept, history = note["settings"], note["history"]
    except Exception as error:  # a damaged archive raises what its decoder happens to raise
        raise ValueError(
            f"The checkpoint {str(path)!r} is damaged ({type(error).__name__}: {error}). Remove it "
            "to start anew."
        ) from error
    different = [
        f"{key} (kept: {json.dumps(kept.get(key))}, now: {json.dumps(value)})"
        for key, value in settings.items()
        if kept.get(key) != value
    ]
    if different:
        raise ValueError(
            f"The checkpoint {str(path)!r} is of another run: {'; '.join(different)}. Run with the "
            "same settings, choose another output, or remove it to start anew."
        )
    model.set_weights(weights)
    for variable, value in zip(model.optimizer.variables, state, strict=True):
        variable.assign(value)
    return history


def _finish(
    recipe: Recipe,
    model: keras.Model,
    settings: dict,
    history: list[dict],
    more: dict[str, dict[str, float]],
    files: tuple[pathlib.Path, pathlib.Path, pathlib.Path],
) -> dict:
    """Writes weights and description, and removes the checkpoint."""
    out, description, checkpoint = files
    # A copy that was never compiled, whose file has no state of an optimizer.
    network = recipe.build()
    network.set_weights(model.get_weights())
    record = {}

    def write(path: pathlib.Path) -> None:
        network.save_weights(path)
        record.update(
            settings,
            epochs=len(history),
            accuracy={
                "test": history[-1].get("val_accuracy"),
                **{name: logs["accuracy"] for name, logs in more.items()},
                # The mean over the weights of all steps, with dropout and augmentation.
                "train_during_last_epoch": history[-1]["accuracy"],
            },
            parameters=network.count_params(),
            weights={"file": out.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()},
            history=history,
        )
        text = json.dumps(record, indent=1) + "\n"
        _replace(description, lambda file: file.write_text(text, encoding="utf-8"))

    # The weights get their name last: where they are, everything else is.
    _replace(out, write)
    checkpoint.unlink(missing_ok=True)
    return record


def _replace(path: pathlib.Path, write: Callable[[pathlib.Path], object]) -> None:
    """Writes a file under another name first, so that it is whole or not there."""
    temporary = path.with_name(f".{secrets.token_hex(4)}-{path.name}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
