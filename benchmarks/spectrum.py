"""Times the spectrum of an explanation as multiples of the model's own forward pass.

    python -m benchmarks.spectrum [--model vgg16] [--analyzer lrp.gamma] [--output FILE]
    python -m benchmarks.spectrum --show benchmarks/results/spectrum.jsonl

Random weights, one image of 224 x 224, 1000 classes: sigma_1, |R|_F (standard error 1 %) and SSM by
`audits.spectrum`, exact and matrix-free, against 1000 separate calls of `analyze`, of which
`--calls` are timed. Each way runs in a process of its own, so that peaks of memory are its own;
forward passes are timed before and after it. A call with 20 columns, before the one that counts,
pays for building and tracing.
"""

import argparse
import pathlib
import time

from benchmarks.cases import print_row, read_rows, run_cases
from tfexplain import tables

MODELS = {"vgg16": "VGG16", "resnet50": "ResNet50"}
WAYS = ("exact", "matrix_free", "calls")


def measure(way: str, arguments) -> dict:
    """Measures one way in this process."""
    import resource

    import keras
    import numpy as np
    import tensorflow as tf

    import tfexplain
    from tfexplain import audits

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, MODELS[arguments.model])(weights=None)
    x = np.random.default_rng(0).uniform(-120, 150, size=(2, 224, 224, 3)).astype("float32")
    forward = tf.function(lambda x: model(x, training=False), autograph=False)
    one = tf.constant(x[:1])
    forward(one)

    def timed(function) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def one_pass() -> float:
        return min(timed(lambda: forward(one)) for _ in range(10))

    analyzer = tfexplain.create_analyzer(arguments.analyzer, model)
    row = {"model": arguments.model, "analyzer": arguments.analyzer, "way": way}
    before = one_pass()
    if way == "calls":
        analyzer.analyze(x[:1], target=0)
        times = [
            timed(lambda k=k: analyzer.analyze(x[:1], target=k)) for k in range(arguments.calls)
        ]
        seconds = 1000 * float(np.mean(times))
    else:
        options = {"method": way, "standard_error": 0.01, "seed": 0}
        # A few columns trace what both ways run.
        audits.spectrum(analyzer, x[1:], **{**options, "policy": "quantile", "quantile": 0.98})
        start = time.perf_counter()
        dataset = audits.spectrum(analyzer, x[:1], **options)
        seconds = time.perf_counter() - start
        for name in ("stability", "sensitivity", "sensitivity_error", "ssm", "ssm_error"):
            row[name] = float(dataset[name].values[0, 0])
        row["passes"] = int(dataset["passes"].values[0, 0])
    base = min(before, one_pass())
    row.update(forward_s=base, seconds=seconds, ratio=seconds / base)
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return row


def table(rows: list[dict]) -> str:
    """Returns the rows as a Markdown table."""
    head = ["model", "analyzer", "way", "seconds", "forward passes", "passes of vectors"]
    head += ["1 / sigma_1", "norm of R", "SSM", "peak memory, GiB"]
    body = []
    for row in rows:
        cells = [row["model"], row["analyzer"], row["way"].replace("_", "-")]
        cells += [f"{row['seconds']:.0f}", f"{row['ratio']:.0f}", str(row.get("passes", 1000))]
        for name in ("stability", "sensitivity", "ssm"):
            error = row.get(f"{name}_error", 0)
            value = f"{row[name]:.4g}" if name in row else ""
            cells.append(value + (f" ± {error:.2g}" if error else ""))
        body.append([*cells, f"{row['peak_gib']:.1f}"])
    return tables.markdown(head, body)


def main(argv: list[str] | None = None) -> None:
    """Runs every way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["vgg16"], choices=list(MODELS))
    parser.add_argument("--analyzer", nargs="+", default=["lrp.gamma"])
    parser.add_argument("--way", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--calls", type=int, default=20, help="calls of analyze that are timed")
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines to write")
    parser.add_argument("--show", nargs="+", type=pathlib.Path, help="print rows, measure nothing")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.show:
        print(table(read_rows(arguments.show)))
        return
    if arguments.one:
        arguments.model, arguments.analyzer = arguments.model[0], arguments.analyzer[0]
        print_row(measure(arguments.way[0], arguments))
        return
    cases = (
        ["--way", way, "--model", model, "--analyzer", name, "--calls", str(arguments.calls)]
        for model in arguments.model
        for name in arguments.analyzer
        for way in arguments.way
    )
    run_cases("benchmarks.spectrum", cases, table, arguments.output)


if __name__ == "__main__":
    main()
