"""Times analyzers as multiples of the model's own forward pass, measured in the same run.

    python -m benchmarks.analyzers [--model vgg16 resnet50] [--vectors 1 5 20] [--output FILE]
    python -m benchmarks.analyzers --show benchmarks/results/*.jsonl

Random weights, batch 4, 224 x 224. Every cell is the best of `--repeats` calls, with a forward pass
timed right after each, so that a busy machine slows both. `--innvestigate PYTHON` and
`--zennit PYTHON` name the interpreters of the peers' environments, where these exist, and print
their times on VGG-16 with the same batch and repeats.
"""

import argparse
import pathlib
import subprocess
import time

from benchmarks.cases import print_row, read_rows, run_cases
from tfexplain import tables


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
# Those that send no given relevance backward, so that there is one vector.
SINGLE = ("excitation_bp.contrastive", "lrp.contrastive", "grad_cam")
MODELS = {"vgg16": "VGG16", "resnet50": "ResNet50"}


def measure(model_name: str, analyzer_name: str, vectors: list[int], arguments) -> dict:
    """Measures one analyzer in this process."""
    import resource

    import keras
    import numpy as np
    import tensorflow as tf

    import tfexplain

    keras.utils.set_random_seed(0)
    model = getattr(keras.applications, MODELS[model_name])(weights=None)
    generator = np.random.default_rng(0)
    shape = (arguments.batch, 224, 224, 3)
    x = generator.uniform(-120, 150, size=shape).astype("float32")
    forward = tf.function(lambda x: model(x, training=False), autograph=False)
    tensor = tf.constant(x)
    forward(tensor)

    def timed(function) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def best(function) -> tuple[float, float]:
        """Returns the best time and the best forward time, measured in turns."""
        pairs = [
            (timed(function), timed(lambda: forward(tensor))) for _ in range(arguments.repeats)
        ]
        return min(p[0] for p in pairs), min(p[1] for p in pairs)

    best(lambda: forward(tensor))
    forward_memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    name, options = ANALYZERS[analyzer_name]
    options = options(model) if callable(options) else options
    row = {"model": model_name, "analyzer": analyzer_name, "batch": arguments.batch}
    start = time.perf_counter()
    analyzer = tfexplain.create_analyzer(name, model, **options)
    analyzer.analyze(x, target=3)
    row["first_s"] = time.perf_counter() - start
    later, base = best(lambda: analyzer.analyze(x, target=3))
    row.update(forward_s=base, later_s=later, ratio=later / base)
    row["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row["forward_peak_gib"] = forward_memory / 2**20
    if name in SINGLE:
        return row
    for count in vectors:
        if count == 1:
            continue
        relevance = generator.normal(size=(arguments.batch, count, 1000)).astype("float32")
        analyzer.propagate(x, relevance)
        many, base = best(lambda r=relevance: analyzer.propagate(x, r))
        row[f"ratio_{count}_vectors"] = many / base
        row[f"each_of_{count}_relative"] = many / base / count / row["ratio"]
    return row


def table(rows: list[dict], vectors: list[int]) -> str:
    """Returns the rows as a Markdown table."""
    many = [count for count in vectors if count > 1]
    head = ["model", "analyzer", "first call, s", "later calls, forward passes"]
    head += ["per image, s", "peak memory, forward passes"]
    head += [f"each of {count} vectors, % of one" for count in many]
    body = []
    for row in rows:
        cells = [row["model"], row["analyzer"], f"{row['first_s']:.1f}", f"{row['ratio']:.2f}"]
        cells.append(f"{row['later_s'] / row['batch']:.2f}")
        cells.append(f"{row['peak_gib'] / row['forward_peak_gib']:.1f}")
        for count in many:
            share = row.get(f"each_of_{count}_relative")
            cells.append("" if share is None else f"{100 * share:.0f}")
        body.append(cells)
    return tables.markdown(head, body)


def main(argv: list[str] | None = None) -> None:
    """Runs every analyzer in a process of its own, so that first calls and peaks are its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--analyzer", nargs="+", default=list(ANALYZERS), choices=list(ANALYZERS))
    parser.add_argument("--vectors", nargs="+", type=int, default=[1, 5, 20])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
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
        print_row(measure(arguments.model[0], arguments.analyzer[0], arguments.vectors, arguments))
        return
    shared = ["--vectors", *map(str, arguments.vectors)]
    for option in ("batch", "repeats"):
        shared += [f"--{option}", str(getattr(arguments, option))]
    cases = (
        ["--model", model, "--analyzer", name, *shared]
        for model in arguments.model
        for name in arguments.analyzer
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
