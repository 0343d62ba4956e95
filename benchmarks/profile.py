"""Lists where the time of a call goes: the seconds of each kind of TensorFlow operation.

    python -m benchmarks.profile [--model vgg16] [--analyzer gradient lrp.z_plus ...]

The first columns are the forward pass and `tf.GradientTape` of `benchmarks.analyzers`, for
comparison. Kernels that run side by side are added up, so that the sum can be more than the call.
Profiled calls are somewhat slower than others.
"""

import argparse
import collections
import pathlib
import tempfile
from collections.abc import Callable, Iterable

from benchmarks.analyzers import (
    ANALYZERS,
    MODELS,
    TAPE,
    TARGET,
    named,
    prepared,
    timed,
    traced_tape,
)
from tfexplain import tables

CALL = "the whole call"


def seconds_by_kind(function: Callable[[], object], calls: int) -> dict[str, float]:
    """Returns kind of operation -> seconds that its kernels take in one call."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    function()
    function()
    sums: dict[str, float] = collections.defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            whole = sum(timed(function) for _ in range(calls))
        for path in pathlib.Path(folder).rglob("*.xplane.pb"):
            space = xplane_pb2.XSpace.FromString(path.read_bytes())
            for plane in space.planes:
                kinds = {
                    key: metadata.display_name
                    for key, metadata in plane.event_metadata.items()
                    # The profiler writes the kernel of a node as "name:kind".
                    if metadata.name.endswith(f":{metadata.display_name}")
                }
                for line in plane.lines:
                    for kind, picoseconds in _own_times(line.events, kinds):
                        sums[kind] += picoseconds * 1e-12
    if not sums:
        raise RuntimeError("The profiler has recorded no kernel of a TensorFlow operation.")
    return {kind: total / calls for kind, total in sums.items()} | {CALL: whole / calls}


def _own_times(events: Iterable, kinds: dict[int, str]) -> list[tuple[str, int]]:
    """Returns kind and duration of the kernels of a thread, without those inside of others."""
    found: list[list] = []
    # Those that have not ended: their end, and their place in `found`.
    around: list[tuple[int, int]] = []
    kernels = (event for event in events if event.metadata_id in kinds)
    for event in sorted(kernels, key=lambda event: (event.offset_ps, -event.duration_ps)):
        while around and around[-1][0] <= event.offset_ps:
            around.pop()
        if around:
            found[around[-1][1]][1] -= event.duration_ps
        around.append((event.offset_ps + event.duration_ps, len(found)))
        found.append([kinds[event.metadata_id], event.duration_ps])
    return [(kind, duration) for kind, duration in found]


def table(columns: dict[str, dict[str, float]]) -> str:
    """Returns a Markdown table of seconds, the largest first, without kinds below 1 % anywhere."""
    largest: dict[str, float] = {}
    for seconds in columns.values():
        for kind, value in seconds.items():
            largest[kind] = max(largest.get(kind, 0), value / seconds[CALL])
    body = [
        [kind, *(f"{seconds[kind]:.3f}" if kind in seconds else "" for seconds in columns.values())]
        for kind in sorted(largest, key=lambda kind: -largest[kind])
        if largest[kind] >= 0.01
    ]
    return tables.markdown(["seconds of", *columns], body)


def main(argv: list[str] | None = None) -> None:
    """Profiles calls in this process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vgg16", choices=list(MODELS))
    parser.add_argument(
        "--analyzer",
        nargs="+",
        default=["gradient", "lrp.z", "lrp.z_plus", "deep_lift.rescale"],
        choices=list(ANALYZERS),
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--calls", type=int, default=5)
    arguments = parser.parse_args(argv)

    import tensorflow as tf

    import tfexplain

    model, x = prepared(arguments.model, arguments.batch)
    forward = tf.function(lambda x: model(x, training=False), autograph=False)
    tape = traced_tape(model, x.shape)
    functions = {
        "forward pass": lambda: forward(tf.constant(x)).numpy(),
        TAPE: lambda: tape(tf.constant(x)).numpy(),
    }
    for analyzer_name in arguments.analyzer:
        name, options = named(analyzer_name, model)
        analyzer = tfexplain.create_analyzer(name, model, **options)
        functions[analyzer_name] = lambda analyzer=analyzer: analyzer.analyze(x, target=TARGET)
    columns = {
        name: seconds_by_kind(function, arguments.calls) for name, function in functions.items()
    }
    print(table(columns))


if __name__ == "__main__":
    main()
