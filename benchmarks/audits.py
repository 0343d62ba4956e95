"""Times audits as multiples of the model's own forward pass, measured in the same run.

    python -m benchmarks.audits [--audit csc cascade] [--analyzer NAME ...] [--output FILE]
    python -m benchmarks.audits --show benchmarks/results/audits.jsonl

VGG-16 with random weights, images of 224 x 224. `csc` is `cosine_convergence` of five vectors from
the logits with all layers read; its cost per image is the difference of two calls, with 2 and with
2 + `--images` images, so that building and tracing, which happen once a call, are apart. `cascade`
is `parameter_randomization` over the nine steps of Sixt et al.; one step is the difference of two
calls, with all nine steps and with the first alone; it has the draws of random weights in it, which
happen once for a block of images. Forward passes are timed right after each call, so that a busy
machine slows both.
"""

import argparse
import pathlib
import time

from benchmarks.cases import print_row, read_rows, run_cases
from tfexplain import tables

CASCADE = (
    "predictions",
    "fc1",
    "block5_conv3",
    "block5_conv1",
    "block4_conv3",
    "block4_conv1",
    "block3_conv1",
    "block2_conv1",
    "block1_conv1",
)
CSC = ("lrp.alpha_1_beta_0", "lrp.alpha_2_beta_1", "lrp.z", "gradient", "guided_backprop")
DEFAULTS = {"csc": CSC, "cascade": ("lrp.alpha_1_beta_0", "guided_backprop")}


def measure(audit: str, name: str, arguments) -> dict:
    """Measures one audit of one analyzer in this process."""
    import resource

    import keras
    import numpy as np
    import tensorflow as tf

    import tfexplain
    from tfexplain import audits

    keras.utils.set_random_seed(0)
    model = keras.applications.VGG16(weights=None)
    images = 2 + arguments.images
    x = np.random.default_rng(0).uniform(-120, 150, size=(images, 224, 224, 3)).astype("float32")
    forward = tf.function(lambda x: model(x, training=False), autograph=False)
    batch = tf.constant(x[: arguments.batch])
    forward(batch)
    analyzer = tfexplain.create_analyzer(name, model)

    def timed(function) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def difference(long, short) -> tuple[float, float]:
        """Returns the time that the long call takes more, and that of a forward pass per image."""
        apart, passes = [], []
        for _ in range(arguments.repeats):
            apart.append(timed(long))
            passes.append(timed(lambda: forward(batch)))
            apart[-1] -= timed(short)
            passes.append(timed(lambda: forward(batch)))
        return min(apart), min(passes) / len(batch)

    if audit == "csc":

        def run(count: int):
            options = {"num_vectors": arguments.vectors, "batch_size": arguments.batch}
            return audits.cosine_convergence(analyzer, x[:count], **options)

        short, long = (lambda: run(2)), (lambda: run(images))
        parts = arguments.images
    else:

        def run(layers: tuple[str, ...]):
            target = np.zeros(images, int)
            return audits.parameter_randomization(analyzer, x, target, layers=layers)

        short, long = (lambda: run(CASCADE[:1])), (lambda: run(CASCADE))
        parts = images * (len(CASCADE) - 1)
    first = timed(short)
    apart, one_pass = difference(long, short)
    row = {"audit": audit, "analyzer": name, "vectors": arguments.vectors, "first_s": first}
    row.update(forward_s=one_pass, per_image_s=apart / parts, ratio=apart / parts / one_pass)
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def table(rows: list[dict]) -> str:
    """Returns the rows as a Markdown table."""
    head = ["audit", "analyzer", "first call, s", "per image (and step), forward passes"]
    head += ["per image, s", "peak memory, GiB"]
    body = []
    for row in rows:
        audit = f"csc, {row['vectors']} vectors" if row["audit"] == "csc" else row["audit"]
        cells = [audit, row["analyzer"], f"{row['first_s']:.1f}", f"{row['ratio']:.2f}"]
        cells += [f"{row['per_image_s']:.2f}", f"{row['peak_gib']:.1f}"]
        body.append(cells)
    return tables.markdown(head, body)


def main(argv: list[str] | None = None) -> None:
    """Runs every case in a process of its own, so that first calls and peaks are its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--audit", nargs="+", default=list(DEFAULTS), choices=list(DEFAULTS))
    parser.add_argument("--analyzer", nargs="+", help="names of analyzers")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--vectors", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines to write")
    parser.add_argument("--show", nargs="+", type=pathlib.Path, help="print rows, measure nothing")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.show:
        print(table(read_rows(arguments.show)))
        return
    if arguments.one:
        print_row(measure(arguments.audit[0], arguments.analyzer[0], arguments))
        return
    shared = []
    for option in ("images", "batch", "vectors", "repeats"):
        shared += [f"--{option}", str(getattr(arguments, option))]
    cases = (
        ["--audit", audit, "--analyzer", name, *shared]
        for audit in arguments.audit
        for name in arguments.analyzer or DEFAULTS[audit]
    )
    run_cases("benchmarks.audits", cases, table, arguments.output)


if __name__ == "__main__":
    main()
