"""Times Koopman credit of large networks as multiples of the model's own forward pass.

    python -m benchmarks.koopman [--model vgg16 resnet50] [--inputs 32] [--output FILE]
    python -m benchmarks.koopman --show benchmarks/results/koopman.jsonl

Random weights, images of 224 x 224, all blocks, tensors of more than `--dimension` values in as
many principal components at most; eight more images are held out for errors. A forward pass is that
of all inputs, in batches of 8; it is timed before and after. Each network runs in a process of its
own, so that its peak of memory is its own.
"""

import argparse
import pathlib
import time

from benchmarks.cases import print_row, read_rows, run_cases
from tfexplain import tables

MODELS = {"vgg16": "VGG16", "resnet50": "ResNet50"}
BATCH = 8
HELD_OUT = 8


def measure(arguments) -> dict:
    """Measures one network in this process."""
    import resource

    import keras
    import numpy as np
    import tensorflow as tf

    from tfexplain import koopman

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, MODELS[arguments.model])(weights=None)
    # Patches of one colour: photographs are smooth as well.
    colours = np.random.default_rng(0).uniform(-120, 150, (arguments.inputs + HELD_OUT, 28, 28, 3))
    x = colours.repeat(8, axis=1).repeat(8, axis=2).astype("float32")
    x, held_out = x[HELD_OUT:], x[:HELD_OUT]
    forward = tf.function(lambda x: model(x, training=False), autograph=False)
    batches = [tf.constant(x[i : i + BATCH]) for i in range(0, len(x), BATCH)]
    forward(batches[0])

    def forward_pass() -> float:
        start = time.perf_counter()
        for batch in batches:
            forward(batch)
        return time.perf_counter() - start

    before = min(forward_pass(), forward_pass())
    start = time.perf_counter()
    dataset = koopman.credit(
        model, x, held_out=held_out, max_dimension=arguments.dimension, batch_size=BATCH
    )
    seconds = time.perf_counter() - start
    base = min(before, forward_pass())
    return {
        "model": arguments.model,
        "inputs": arguments.inputs,
        "dimension": arguments.dimension,
        "blocks": dataset.sizes["block"],
        "forward_s": base,
        "seconds": seconds,
        "ratio": seconds / base,
        "energy_lost": float(dataset["energy_lost"].max()),
        "one_step_error": float(dataset["one_step_error"].max()),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def table(rows: list[dict]) -> str:
    """Returns the rows as a Markdown table."""
    head = ["model", "inputs", "components at most", "blocks", "seconds", "forward passes"]
    head += ["largest energy lost", "largest one-step error", "peak memory, GiB"]
    body = []
    for row in rows:
        cells = [row["model"], str(row["inputs"]), str(row["dimension"]), str(row["blocks"])]
        cells += [f"{row['seconds']:.0f}", f"{row['ratio']:.1f}"]
        cells += [f"{row[name]:.2g}" for name in ("energy_lost", "one_step_error")]
        body.append([*cells, f"{row['peak_gib']:.1f}"])
    return tables.markdown(head, body)


def main(argv: list[str] | None = None) -> None:
    """Runs every network in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--inputs", type=int, default=32, help="images")
    parser.add_argument("--dimension", type=int, default=256, help="principal components at most")
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines to write")
    parser.add_argument("--show", nargs="+", type=pathlib.Path, help="print rows, measure nothing")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.show:
        print(table(read_rows(arguments.show)))
        return
    if arguments.one:
        arguments.model = arguments.model[0]
        print_row(measure(arguments))
        return
    sizes = ["--inputs", str(arguments.inputs), "--dimension", str(arguments.dimension)]
    cases = (["--model", model, *sizes] for model in arguments.model)
    run_cases("benchmarks.koopman", cases, table, arguments.output)


if __name__ == "__main__":
    main()
