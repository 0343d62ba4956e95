"""How the benchmarks of analyzers are put together; nothing is timed here."""

import keras
import pytest
import tensorflow as tf

from benchmarks import analyzers, counting, profile


def test_the_tape_is_that_of_a_logit_and_leaves_the_model_alone():
    keras.utils.set_random_seed(0)
    softmax = keras.layers.Dense(5, activation="softmax")
    model = keras.Sequential([keras.Input((4,)), softmax])
    tape = analyzers.traced_tape(model, (2, 4))
    assert softmax.activation is keras.activations.softmax
    column = softmax.kernel.numpy()[:, analyzers.TARGET]
    assert tape(tf.ones((2, 4))).numpy() == pytest.approx(tf.stack([column, column]).numpy())
    # The logits are not needed for their gradient.
    assert counting.multiply_adds(tape) == counting.Work(0, 2 * 4 * 5)


def test_a_table_compares_with_the_tape_of_the_same_model():
    tape = {"model": "m", "analyzer": analyzers.TAPE, "first_s": 1.0, "peak_gib": 2.0}
    tape |= {"forward_s": 1.0, "tape_s": 2.0, "later_s": 2.0, "ratio": 2.0, "tapes": 1.0}
    row = {**tape, "analyzer": "lrp.z_plus", "later_s": 5.0, "ratio": 5.5, "tapes": 2.5}
    row |= {"tape_ratio": 3.0, "limit": [2.0, 1.5], "counted": [2.25, 1.5]}
    row |= {"peak_gib": 3.5, "derived_gib": 0.5, "ratio_20_vectors": 44.0}
    row["ratio_of_batches"] = 5.25
    assert analyzers.limit_of(row) == 2 + 1.5 * 2
    line = analyzers.table([tape, row], [20]).splitlines()[-1]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == [
        *("m", "lrp.z_plus", "1.0", "5.50 (5.00)", "5.25", "2.50 (2.50)", "2.25 + 1.50"),
        *("2.00 + 1.50", "1.10", "2.20", "40", "3.50", "0.50", "1.50"),
    ]


def test_ratios_are_taken_within_rounds():
    calls = []
    columns = analyzers.rounds([lambda: calls.append(0), lambda: calls.append(1)], 3)
    assert calls == [0, 1] * 3 and [len(column) for column in columns] == [3, 3]
    # The slow round slows both; the median of its ratio is that of the others.
    assert analyzers.median_ratio([2.0, 20.0, 6.0], [1.0, 10.0, 2.0]) == 2


def test_kernels_inside_of_others_count_once():
    xplane = pytest.importorskip("tensorflow.tsl.profiler.protobuf.xplane_pb2")
    times = [(1, 0, 100), (2, 10, 30), (1, 100, 7), (3, 20, 5)]
    events = [xplane.XEvent(metadata_id=i, offset_ps=o, duration_ps=d) for i, o, d in times]
    kinds = {1: "MatMul", 2: "Mul"}
    assert profile._own_times(events, kinds) == [("MatMul", 70), ("Mul", 30), ("MatMul", 7)]


def test_a_profile_names_the_kernels_of_a_call():
    function = tf.function(lambda x: tf.linalg.matmul(x, x), autograph=False)
    seconds = profile.seconds_by_kind(lambda: function(tf.ones((64, 64))).numpy(), 2)
    products = [seconds[kind] for kind in seconds if "MatMul" in kind]
    assert products and 0 < sum(products) < seconds[profile.CALL]
