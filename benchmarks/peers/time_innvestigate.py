"""Times analyzers of innvestigate on VGG-16, relative to the model's own forward pass.

Prints one JSON line per analyzer. Runs in the environment that `make_environment.sh` makes.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import innvestigate
import keras
import numpy as np
import tensorflow as tf

ANALYZERS = ["gradient", "lrp.z", "lrp.alpha_1_beta_0", "lrp.alpha_2_beta_1", "deep_taylor"]


def _seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def time_analyzer(name: str, batch: int, size: int, repeats: int) -> dict[str, object]:
    """Times the first call, which builds the reversed network, and the best of the later ones.

    Forward passes and later calls alternate, so that other work on the machine meets both alike.
    """
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)
    model = keras.applications.VGG16(
        weights=None, input_shape=(size, size, 3), classifier_activation=None
    )
    x = np.random.default_rng(0).standard_normal((batch, size, size, 3)).astype("float32")
    model.predict_on_batch(x)

    start = time.perf_counter()
    analyzer = innvestigate.create_analyzer(name, model)
    analyzer.analyze(x)
    first = time.perf_counter() - start

    forward = later = float("inf")
    for _ in range(repeats):
        forward = min(forward, _seconds(lambda: model.predict_on_batch(x)))
        later = min(later, _seconds(lambda: analyzer.analyze(x)))
    return {
        "peer": "innvestigate",
        "analyzer": name,
        "model": "VGG16",
        "batch": batch,
        "size": size,
        "first_s": round(first, 3),
        "later_s": round(later, 3),
        "forward_s": round(forward, 3),
        "ratio": round(later / forward, 2),
    }


def main() -> None:
    """Prints the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--analyzer", choices=ANALYZERS, action="append")
    arguments = parser.parse_args()
    tf.compat.v1.disable_eager_execution()
    for name in arguments.analyzer or ANALYZERS:
        line = time_analyzer(name, arguments.batch, arguments.size, arguments.repeats)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
