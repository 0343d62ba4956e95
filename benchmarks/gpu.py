"""Times explanations on a GPU, compiled by XLA, and other libraries on the same card.

    python -m benchmarks.gpu --peers PYTHON --output rows.jsonl     where TensorFlow sees a GPU
    python -m benchmarks.gpu --folder programs                      elsewhere: writes programs
    python -m benchmarks.gpu --read FILES                           prints tables, measures nothing

The folder runs on a machine with a GPU and JAX, but without TensorFlow (`python gpu_script.py >
rows.jsonl` there); PyTorch with zennit and captum is used where it is installed. Weights and images
are random and drawn on that machine: the programs take them as arguments and hold none. The
programs of a tiny network come with arguments and results, which are compared first.
"""

import argparse
import json
import pathlib
import subprocess
import sys
from collections.abc import Iterator

from benchmarks import gpu_script
from benchmarks.gpu_lowering import write_folder
from benchmarks.gpu_programs import (
    CONVOLUTIONS,
    METHODS,
    SEVERAL,
    drawn,
    programs_of,
    tensor_float_32,
)
from tfexplain import tables

NETWORKS = list(gpu_script.NETWORKS)


def measure(arguments: argparse.Namespace) -> Iterator[dict]:
    """Times every program here; a row for each."""
    import tensorflow as tf

    (device,) = tf.config.list_logical_devices("GPU")[:1] or tf.config.list_logical_devices("CPU")
    physical = tf.config.list_physical_devices(device.device_type)[0]
    details = tf.config.experimental.get_device_details(physical)
    measurement = gpu_script.now(
        details.get("device_name", device.device_type.lower()), f"tensorflow {tf.__version__}"
    )
    with tensor_float_32(arguments.tf32):
        for name in arguments.model:
            for program in programs_of(name, arguments):
                given = [drawn(argument, i) for i, argument in enumerate(program.arguments)]
                _, function = program.traced()

                def run(function=function, given=given) -> None:
                    function(*given)
                    tf.test.experimental.sync_devices()

                row = program.row(arguments.tf32) | measurement
                try:
                    yield row | gpu_script.measured(run, arguments.repeats)
                except tf.errors.ResourceExhaustedError as error:
                    yield row | {"failure": gpu_script.message(error)}


def peers(interpreter: str, arguments: argparse.Namespace) -> Iterator[dict]:
    """Times the libraries on PyTorch in their own environment; a row for each of their methods."""
    command = [interpreter, str(pathlib.Path(gpu_script.__file__)), "--parts", *gpu_script.PEERS]
    command += ["--batch", str(arguments.batch), "--size", str(arguments.size)]
    command += ["--repeats", str(arguments.repeats), "--models", *arguments.model]
    command.append("--tf32" if arguments.tf32 else "--no-tf32")
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    yield from (json.loads(line) for line in done.stdout.splitlines())


def by_measurement(rows: list[dict]) -> dict[str, list[dict]]:
    """Returns rows by the device and day of their measurement."""
    groups: dict[str, list[dict]] = {}
    for row in rows:
        groups.setdefault(f"{row.get('device', '')}, {row.get('date', '')}", []).append(row)
    return groups


def row_of(rows: list[dict], **wanted) -> dict | None:
    """Returns the last row with a time that has all wanted entries; None if there is none."""
    fitting = [
        row
        for row in rows
        if "ms" in row and all(row[name] == value for name, value in wanted.items())
    ]
    return fitting[-1] if fitting else None


def table(rows: list[dict]) -> str:
    """Returns the times as a Markdown table."""
    head = ["device and day", "model", "library", "what", "images", "vectors", "TF32"]
    head += ["ms", "forward passes"]
    body = []
    for measurement, group in by_measurement(rows).items():
        for row in group:
            if "ms" not in row and "failure" not in row:
                continue
            cells = [measurement, row.get("model", ""), row["library"], row.get("what", "")]
            cells += [str(row.get(name, "")) for name in ("batch", "vectors")]
            cells.append({True: "yes", False: "no", None: ""}[row.get("tf32")])
            if "failure" in row:
                body.append([*cells, row["failure"], ""])
                continue
            own = "tensorflow" if row["library"] == "tfexplain" else row["library"]
            same = {name: row[name] for name in ("model", "batch", "size", "tf32")}
            base = row_of(group, library=own, what="forward", **same)
            cells.append(f"{row['ms']:.4g}")
            body.append([*cells, f"{row['ms'] / base['ms']:.2f}" if base else ""])
    return tables.markdown(head, body)


def goals(rows: list[dict]) -> str:
    """Returns a Markdown table of what was aimed at, and what was measured."""
    head = ["device and day", "model", "ratio of times", "goal", "measured"]
    body = []
    for measurement, group in by_measurement(rows).items():
        timed = {row["model"] for row in group if "ms" in row}
        for model in [name for name in gpu_script.NETWORKS if name in timed]:
            for text, goal, first, second, scale in _ratios(model):
                above, ratio = row_of(group, **first), "not measured"
                if above:
                    sizes = {name: above[name] for name in ("batch", "size")}
                    below = row_of(group, **second, **sizes)
                    if below:
                        ratio = f"{above['ms'] / below['ms'] / scale:.2f}"
                body.append([measurement, model, text, goal, ratio])
    return tables.markdown(head, body)


def _ratios(model: str) -> Iterator[tuple[str, str, dict, dict, float]]:
    """Returns text, goal, the rows whose times are compared, and a divisor of the ratio."""
    z_plus = {"model": model, "library": "tfexplain", "what": "lrp.z_plus"}
    alone = {"model": model, "library": "tensorflow", "what": CONVOLUTIONS}
    zennit = {"model": model, "library": "zennit", "what": "epsilon_plus"}
    yield "lrp.z_plus / its convolutions alone", "at most 1.25", z_plus, alone, 1
    for what in SEVERAL:
        one = {"model": model, "library": "tfexplain", "what": f"{what}, propagate", "vectors": 1}
        text = f"{what}, each of 20 vectors / a single one"
        yield text, "at most 0.36", {**one, "vectors": 20}, one, 20
    goal = "at least 10" if model == "resnet50" else ""
    yield "zennit's epsilon_plus / lrp.z_plus", goal, zennit, z_plus, 1


def errors(rows: list[dict]) -> str:
    """Returns a Markdown table of how far maps are from those of float64."""
    head = ["device and day", "method", "TF32", "largest error of a map", "cosine"]
    body = []
    for measurement, group in by_measurement(rows).items():
        for row in group:
            if "largest_error" not in row and "cosine" not in row:
                continue
            values = [
                " to ".join(f"{value:.4g}" for value in row.get(name, []))
                for name in ("largest_error", "cosine")
            ]
            body.append([measurement, row["what"], "yes" if row["tf32"] else "no", *values])
    return tables.markdown(head, body)


def read_rows(path: pathlib.Path) -> list[dict]:
    """Returns the rows in what the script printed."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.startswith("{")]


def main(argv: list[str] | None = None) -> None:
    """Measures where there is a GPU, or writes what another machine measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--method", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=240, help="height and width of the images")
    parser.add_argument("--vectors", type=int, default=20, help="relevance vectors per image")
    # 32 images with 20 vectors have more entries in a tensor of VGG-16 than an int32 can count.
    parser.add_argument("--vector-batch", type=int, default=16, help="images with several vectors")
    tf32 = argparse.BooleanOptionalAction
    parser.add_argument("--tf32", action=tf32, default=True, help="round factors to TF32")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument(
        "--peers", metavar="PYTHON", help="interpreter with torch and its libraries"
    )
    parser.add_argument("--folder", type=pathlib.Path, help="write programs instead of measuring")
    parser.add_argument("--output", type=pathlib.Path, help="JSON lines to write")
    parser.add_argument("--read", nargs="+", type=pathlib.Path, help="print these, measure nothing")
    arguments = parser.parse_args(argv)
    if arguments.read:
        rows = [row for path in arguments.read for row in read_rows(path)]
    elif arguments.folder:
        write_folder(arguments.folder, arguments)
        return
    else:
        import tensorflow as tf

        if not tf.config.list_physical_devices("GPU"):
            sys.exit("TensorFlow sees no GPU here; write programs for another machine: --folder.")
        # First, because TensorFlow takes the whole memory of the card when it begins.
        rows = list(peers(arguments.peers, arguments)) if arguments.peers else []
        for row in measure(arguments):
            print(json.dumps(row), flush=True)
            rows.append(row)
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for made in (table, goals, errors):
        print(made(rows), end="\n\n")


if __name__ == "__main__":
    main()
