"""Times analyzers against the model's own forward pass and gradient, in turn in one process.

    python -m benchmarks.analyzers [--model vgg16 resnet50 ...] [--analyzer gradient lrp.z_plus ...]
        [--vectors 20] [--vectors-of gradient lrp.z ...] [--output FILE]
    python -m benchmarks.analyzers --show benchmarks/results/*.jsonl

Random weights, batch 4, 224 x 224. Each of `--repeats` rounds calls the forward pass, a
`tf.GradientTape` of one logit in a `tf.function`, and the analyzer, all from NumPy to NumPy. The
ratios within a round are what counts, so that a busy machine slows all three alike: a row has their
medians. Beside them stand the passes over the network that are counted in the graph, and those
that the formula needs (`benchmarks.counting`). `--innvestigate PYTHON` and `--zennit PYTHON` name
the interpreters of the peers' environments, where these exist, and print their times on VGG-16
with the same batch and repeats.
"""

import argparse
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence

from benchmarks.cases import print_row, read_rows, run_cases
from tfexplain import tables

TAPE = "tf.GradientTape"
# The output that is explained.
TARGET = 3


def random_patterns(model) -> dict:
    """Random numbers in the place of fitted patterns, which take the same time."""
    import numpy as np

    import tfexplain

    generator = np.random.default_rng(0)
    shapes = tfexplain.create_analyzer("pattern.net", model).pattern_shapes
    return {"patterns": {name: generator.normal(size=s) / 100 for name, s in shapes.items()}}


ANALYZERS = {
    "gradient": ("gradient", {}),
    "input_t_gradient": ("input_t_gradient", {}),
    "integrated_gradients, 4 steps": ("integrated_gradients", {"steps": 4}),
    "smoothgrad, 4 samples": ("smoothgrad", {"samples": 4}),
    "guided_backprop": ("guided_backprop", {}),
    "deconvnet": ("deconvnet", {}),
    "rect_grad": ("rect_grad", {}),
    "excitation_bp": ("excitation_bp", {}),
    "excitation_bp.contrastive": ("excitation_bp.contrastive", {}),
    "deep_taylor": ("deep_taylor", {}),
    "deep_taylor.bounded": ("deep_taylor.bounded", {"low": -150.0, "high": 152.0}),
    "lrp.z": ("lrp.z", {}),
    "lrp.epsilon": ("lrp.epsilon", {}),
    "lrp.gamma": ("lrp.gamma", {}),
    "lrp.z_plus": ("lrp.z_plus", {}),
    "lrp.alpha_1_beta_0": ("lrp.alpha_1_beta_0", {}),
    "lrp.alpha_2_beta_1": ("lrp.alpha_2_beta_1", {}),
    "lrp.alpha_2_beta_1, box first": (
        "lrp.alpha_2_beta_1",
        {"input_rule": ("box", -150.0, 152.0)},
    ),
    "lrp.w_square": ("lrp.w_square", {}),
    "lrp.flat": ("lrp.flat", {}),
    "lrp.sequential_preset_a": ("lrp.sequential_preset_a", {}),
    "lrp.sequential_preset_b": ("lrp.sequential_preset_b", {}),
    "lrp.contrastive": ("lrp.contrastive", {}),
    "lrp.composite epsilon_plus_flat": ("lrp.composite", {"composite": "epsilon_plus_flat"}),
    "lrp.composite epsilon_gamma_box": (
        "lrp.composite",
        {"composite": "epsilon_gamma_box", "low": -150.0, "high": 152.0},
    ),
    "deep_lift.rescale": ("deep_lift.rescale", {}),
    "deep_lift.reveal_cancel": ("deep_lift.reveal_cancel", {}),
    "deep_lift.genomics": ("deep_lift.genomics", {}),
    "deep_lift.ablation": ("deep_lift.ablation", {}),
    "pattern.net": ("pattern.net", random_patterns),
    "pattern.attribution": ("pattern.attribution", random_patterns),
    "grad_cam": ("grad_cam", {}),
}
# Batches of the array on which DeepLIFT is measured too: its baseline goes forward once in a call.
BATCHES = 4
# Those that send no given relevance backward, so that there is one vector.
SINGLE = ("excitation_bp.contrastive", "lrp.contrastive", "grad_cam")
MODELS = {
    "vgg16": "VGG16",
    "resnet50": "ResNet50",
    "mobilenet": "MobileNet",
    "efficientnetb0": "EfficientNetB0",
}


def named(analyzer_name: str, model) -> tuple[str, dict]:
    """Returns the name and the options by which an analyzer of `ANALYZERS` is created."""
    name, options = ANALYZERS[analyzer_name]
    return name, options(model) if callable(options) else options


def prepared(model_name: str, batch: int) -> tuple:
    """Returns a network with random weights, and images for it."""
    import keras
    import numpy as np

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, MODELS[model_name])(weights=None)
    images = np.random.default_rng(0).uniform(-120, 150, size=(batch, 224, 224, 3))
    return model, images.astype("float32")


def timed(function: Callable[[], object]) -> float:
    """Returns the seconds of a call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rounds(functions: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Calls functions in turn; returns the seconds of each function, one per round."""
    rows = [[timed(function) for function in functions] for _ in range(repeats)]
    return [list(column) for column in zip(*rows, strict=True)]


def median_ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Returns the median of the ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_gib() -> float:
    """Returns the most memory that this process has had."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def traced_tape(model, shape: tuple[int, ...]):
    """Returns the gradient of one logit in the images, as a concrete function.

    The softmax at the end is linear while it is traced: analyzers explain logits.
    """
    import keras
    import tensorflow as tf

    from benchmarks.counting import traced

    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            logit = model(x, training=False)[:, TARGET]
        return tape.gradient(logit, x)

    last = model.layers[-1]
    activation = last.activation
    last.activation = keras.activations.linear
    try:
        return traced(gradient, tf.TensorSpec(shape, "float32"))
    finally:
        last.activation = activation


def counts(model, shape: tuple[int, ...], analyzer, tape) -> dict:
    """Returns what can be counted of an analyzer; of the tape, where that is None."""
    import tensorflow as tf

    from benchmarks import counting
    from tfexplain.compilation import for_one_vector

    images = tf.TensorSpec(shape, "float32")
    forward = counting.traced(lambda x: model(x, training=False), images)
    unit = counting.multiply_adds(forward).total
    function, row = tape, {}
    if analyzer is not None:
        targets = tf.TensorSpec((shape[0], 1), "int32")
        function = counting.traced(for_one_vector(analyzer.explain), [images], targets)
        if analyzer.has_chain:
            limit = counting.limit(analyzer.network(), shape[0])
            row["limit"] = [limit.forward, limit.transposed]
    try:
        counted = counting.multiply_adds(function) / unit
        row["counted"] = [counted.forward, counted.transposed]
        row["derived_gib"] = counting.derived_bytes(function, model) / 2**30
    except ValueError as error:
        row["not_counted"] = str(error)
    return row


def measure(model_name: str, analyzer_name: str, arguments) -> dict:
    """Measures one analyzer, or the tape, in this process."""
    import numpy as np
    import tensorflow as tf

    import tfexplain

    model, x = prepared(model_name, arguments.batch)
    shape = x.shape
    forward = tf.function(lambda x: model(x, training=False), autograph=False)

    def run_forward():
        return forward(tf.constant(x)).numpy()

    run_forward()
    row = {"model": model_name, "analyzer": analyzer_name, "batch": arguments.batch}
    row["start_gib"] = peak_gib()
    analyzer = tape = None

    def run_tape():
        return tape(tf.constant(x)).numpy()

    def run():
        return run_tape() if analyzer is None else analyzer.analyze(x, target=TARGET)

    if analyzer_name == TAPE:
        start = time.perf_counter()
        tape = traced_tape(model, shape)
    else:
        name, options = named(analyzer_name, model)
        start = time.perf_counter()
        analyzer = tfexplain.create_analyzer(name, model, **options)
    run()
    row["first_s"] = time.perf_counter() - start
    run()
    # Before there is a tape, whose memory would be taken for the analyzer's.
    row["peak_gib"] = peak_gib()
    tape = tape or traced_tape(model, shape)
    run_tape()
    rounds([run_forward, run_tape, run], 1)
    passes, tapes, calls = rounds([run_forward, run_tape, run], arguments.repeats)
    row.update(forward_s=min(passes), tape_s=min(tapes), later_s=min(calls))
    row.update(ratio=median_ratio(calls, passes), tapes=median_ratio(calls, tapes))
    row["tape_ratio"] = median_ratio(tapes, passes)
    if analyzer_name.startswith("deep_lift."):
        many = np.concatenate([x] * BATCHES)

        def run_array():
            return analyzer.analyze(many, target=TARGET, batch_size=arguments.batch)

        run_array()
        passes, calls = rounds([run_forward, run_array], arguments.repeats)
        row["ratio_of_batches"] = median_ratio(calls, passes) / BATCHES
    if analyzer_name in arguments.vectors_of:
        for count in arguments.vectors:
            relevance = np.random.default_rng(1).normal(size=(arguments.batch, count, 1000))
            relevance = relevance.astype("float32")

            def run_many(relevance=relevance):
                return analyzer.propagate(x, relevance)

            run_many()
            passes, calls = rounds([run_forward, run_many], arguments.repeats)
            row[f"ratio_{count}_vectors"] = median_ratio(calls, passes)
    return {**row, **counts(model, shape, analyzer, tape)}


def limit_of(row: dict) -> float | None:
    """Returns the forward passes that the formula needs, as long as passes took in this row.

    A transposed pass takes what the tape takes more than a forward pass.
    """
    if "limit" not in row:
        return None
    forward, transposed = row["limit"]
    return forward + transposed * (row["tape_ratio"] - 1)


def _ratio(row: dict, name: str, above: str, below: str) -> str:
    """Returns the median of a ratio, and in brackets that of the least times."""
    parts = [f"{row[name]:.2f}"] if name in row else []
    parts += [f"({row[above] / row[below]:.2f})"] if below in row else []
    return " ".join(parts)


def _number(value: float | None, form: str = ".2f") -> str:
    return "" if value is None else format(value, form)


def table(rows: list[dict], vectors: list[int]) -> str:
    """Returns the rows as a Markdown table; cells of what a row does not have are empty."""
    head = ["model", "analyzer", "first call, s", "forward passes (best)"]
    head += [f"each of {BATCHES} batches", "tapes (best)"]
    head += ["passes counted", "passes needed", "time, limits"]
    for count in vectors:
        head += [f"each of {count} vectors, forward passes", "% of one vector"]
    head += ["peak memory, GiB", "derived kernels, GiB", "the rest, peaks of the tape"]
    tape_peaks = {row["model"]: row["peak_gib"] for row in rows if row["analyzer"] == TAPE}
    body = []
    for row in rows:
        cells = [row["model"], row["analyzer"], f"{row['first_s']:.1f}"]
        cells.append(_ratio(row, "ratio", "later_s", "forward_s"))
        cells.append(_number(row.get("ratio_of_batches")))
        cells.append(_ratio(row, "tapes", "later_s", "tape_s"))
        for name in ("counted", "limit"):
            cells.append(" + ".join(f"{passes:.2f}" for passes in row.get(name, ())))
        limit = limit_of(row)
        cells.append(_number(limit and row["ratio"] / limit))
        for count in vectors:
            many = row.get(f"ratio_{count}_vectors")
            cells.append(_number(many and many / count))
            cells.append(_number(many and 100 * many / count / row["ratio"], ".0f"))
        derived, tape_peak = row.get("derived_gib"), tape_peaks.get(row["model"])
        cells += [_number(row["peak_gib"]), _number(derived)]
        known = derived is not None and tape_peak is not None
        cells.append(_number((row["peak_gib"] - derived) / tape_peak if known else None))
        body.append(cells)
    return tables.markdown(head, body)


def main(argv: list[str] | None = None) -> None:
    """Runs every analyzer in a process of its own, so that first calls and peaks are its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["vgg16"], choices=list(MODELS))
    parser.add_argument(
        "--analyzer", nargs="+", default=list(ANALYZERS), choices=[TAPE, *ANALYZERS]
    )
    parser.add_argument("--vectors", nargs="+", type=int, default=[20])
    parser.add_argument(
        "--vectors-of",
        nargs="*",
        default=["gradient", "lrp.z", "lrp.z_plus"],
        choices=[name for name in ANALYZERS if name not in SINGLE],
        help="analyzers that are measured with several vectors too",
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--repeats", type=int, default=11, help="rounds, of which medians are taken"
    )
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines to write")
    parser.add_argument("--show", nargs="+", type=pathlib.Path, help="print rows, measure nothing")
    parser.add_argument("--innvestigate", metavar="PYTHON", help="interpreter with innvestigate")
    parser.add_argument("--zennit", metavar="PYTHON", help="interpreter with torch and zennit")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)

    def shown(rows: list[dict]) -> str:
        return table(rows, arguments.vectors)

    if arguments.show:
        print(shown(read_rows(arguments.show)))
        return
    if arguments.one:
        print_row(measure(arguments.model[0], arguments.analyzer[0], arguments))
        return
    shared = ["--vectors", *map(str, arguments.vectors), "--vectors-of", *arguments.vectors_of]
    for option in ("batch", "repeats"):
        shared += [f"--{option}", str(getattr(arguments, option))]
    # The peak of the tape is needed for the rows of each model.
    names = dict.fromkeys([TAPE, *arguments.analyzer])
    cases = (
        ["--model", model, "--analyzer", name, *shared]
        for model in arguments.model
        for name in names
    )
    run_cases("benchmarks.analyzers", cases, shown, arguments.output)
    for peer in ("innvestigate", "zennit"):
        interpreter = getattr(arguments, peer)
        if interpreter:
            script = pathlib.Path(__file__).parent / "peers" / f"time_{peer}.py"
            print(f"\n{peer}, VGG-16:", flush=True)
            sizes = ["--batch", str(arguments.batch), "--repeats", str(arguments.repeats)]
            subprocess.run([interpreter, str(script), *sizes], check=True)


if __name__ == "__main__":
    main()
