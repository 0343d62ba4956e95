"""Times `tfexplain.audit` of small networks, audit by audit, beside what it said it would take.

    python -m benchmarks.report [--model digits cifar_resnet20] [--preset quick] [--output FILE]
    python -m benchmarks.report --show benchmarks/results/report.jsonl

All methods that fit. Digits: the trained network of `tfexplain demo`, on its test digits; the
ResNet: random weights and coloured patches. A forward pass is that of the audited samples in one
batch, the fastest of those before and after. Most of the time of small networks goes into building
and compiling a network per method and audit, which does not grow with samples. Each network runs in
a process of its own, so that its peak of memory is its own.
"""

import argparse
import pathlib
import time

from benchmarks.cases import print_row, read_rows, run_cases
from tfexplain import tables

MODELS = ("digits", "cifar_resnet20")


def _digits() -> tuple:
    from tfexplain import demo

    _, (samples, labels) = demo.load_digits()
    return demo.network(), samples, labels


def _cifar_resnet20() -> tuple:
    import keras
    import numpy as np

    from models.cifar_resnet import cifar_resnet20

    keras.utils.set_random_seed(0)
    colours = np.random.default_rng(0).normal(size=(128, 8, 8, 3)).astype("float32")
    return cifar_resnet20(), colours.repeat(4, axis=1).repeat(4, axis=2), None


def measure(arguments) -> dict:
    """Measures one network in this process."""
    import resource

    import tensorflow as tf

    import tfexplain
    from tfexplain.report import IMAGES

    model, x, y = {"digits": _digits, "cifar_resnet20": _cifar_resnet20}[arguments.model]()
    batch = tf.constant(x[: IMAGES[arguments.preset]])
    forward = tf.function(lambda x: model(x, training=False), autograph=False)
    forward(batch)

    def forward_pass() -> float:
        start = time.perf_counter()
        forward(batch)
        return time.perf_counter() - start

    before = min(forward_pass() for _ in range(20))
    plans = []
    start = time.perf_counter()
    outcome = tfexplain.audit(
        model, x, y, preset=arguments.preset, fit_data=x, announce=plans.append
    )
    computed = time.perf_counter() - start
    text = outcome.to_html()
    whole = time.perf_counter() - start
    base = min(before, *(forward_pass() for _ in range(20)))
    return {
        "model": arguments.model,
        "preset": arguments.preset,
        "samples": len(outcome.record["samples"]["positions"]),
        "methods": len(outcome.verdict().methods),
        "forward_s": base,
        "announced_s": plans[0].seconds,
        "audits_s": outcome.record["seconds"],
        "computed_s": computed,
        "seconds": whole,
        "ratio": whole / base,
        "page_mib": len(text) / 2**20,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def table(rows: list[dict]) -> str:
    """Returns the rows as a Markdown table."""
    head = ["model", "preset", "samples", "methods", "seconds", "forward passes", "announced, s"]
    head += ["preparation, s", "page, s", "slowest audits, s", "page, MiB", "peak memory, GiB"]
    body = []
    for row in rows:
        audits = sorted(row["audits_s"].items(), key=lambda item: -item[1])
        preparation = row["computed_s"] - sum(row["audits_s"].values())
        cells = [row["model"], row["preset"], str(row["samples"]), str(row["methods"])]
        cells += [f"{row['seconds']:.0f}", f"{row['ratio']:.0f}", f"{row['announced_s']:.0f}"]
        cells += [f"{preparation:.0f}", f"{row['seconds'] - row['computed_s']:.0f}"]
        cells.append(", ".join(f"{name} {seconds:.0f}" for name, seconds in audits[:4]))
        cells += [f"{row['page_mib']:.1f}", f"{row['peak_gib']:.1f}"]
        body.append(cells)
    return tables.markdown(head, body)


def main(argv: list[str] | None = None) -> None:
    """Runs every network in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--preset", default="quick", choices=("quick", "default", "thorough"))
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
    cases = (["--model", model, "--preset", arguments.preset] for model in arguments.model)
    run_cases("benchmarks.report", cases, table, arguments.output)


if __name__ == "__main__":
    main()
