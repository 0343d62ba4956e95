"""Programs for a GPU machine without TensorFlow, and the tables of their times."""

import argparse
import collections
import dataclasses
import importlib.util
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import gpu, gpu_lowering, gpu_programs, gpu_script

ARGUMENTS = {
    "model": [],
    "method": ["lrp.epsilon"],
    "batch": 2,
    "size": 12,
    "vectors": 3,
    "vector_batch": 2,
    "tf32": True,
    "repeats": 1,
}


@pytest.fixture(scope="module")
def model():
    model = gpu_programs.tiny()
    gpu_programs.draw_weights(model)
    return model


@pytest.fixture(scope="module")
def programs(model):
    """What is computed -> program and what XLA takes; "... 3" for three vectors."""
    made = gpu_programs.programs(model, gpu_programs.TINY, 2, 3, 2, ["lrp.z_plus"])
    return {f"{p.what} {p.vectors}": (p, gpu_lowering.lowered(p)) for p in made}


@pytest.mark.parametrize("vectors", (1, 3))
def test_programs_take_every_weight_once_in_the_order_of_the_manifest(model, programs, vectors):
    program, made = programs[f"lrp.z_plus, propagate {vectors}"]
    taken = gpu_lowering.parameters(gpu_lowering.parsed(made.code))
    assert taken[:2] == [((2, 12, 12, 3), "float32"), ((2, vectors, 6), "float32")]
    weights = [(tuple(v.shape), v.dtype.name) for v in made.variables]
    assert taken[2:] == weights == [(a.shape, a.dtype) for a in made.arguments[2:]]
    # By identity: shapes say nothing about which of two equal ones is meant.
    known = {id(variable.value): variable.path for variable in model.variables}
    found = [known[id(variable)] for variable in made.variables]
    assert sorted(found) == sorted(known.values())
    assert [a.name for a in made.arguments[2:]] == [v.name.split(":")[0] for v in made.variables]


@pytest.mark.parametrize("what", ("tape 1", "lrp.z_plus 1", "lrp.z_plus, propagate 3"))
def test_programs_hold_no_weights(programs, what):
    module = gpu_lowering.parsed(programs[what][1].code)
    # Vectors may be sizes; a kernel has more axes than one.
    kernels = {shape for shape, _ in gpu_lowering.parameters(module)[1:] if len(shape) > 1}
    assert kernels and not kernels & set(gpu_lowering.constants(module))


def test_convolutions_alone_are_those_of_the_method(programs):
    def convolutions(what):
        found = collections.Counter()
        for computation in gpu_lowering.parsed(programs[what][1].code).computations:
            shapes = {i.id: tuple(i.shape.dimensions) for i in computation.instructions}
            for i in computation.instructions:
                if i.opcode == "convolution":
                    operands = tuple(shapes[operand] for operand in i.operand_ids)
                    numbers = str(i.convolution_dimension_numbers)
                    found[operands, str(i.window), numbers] += 1
        return found

    alone = convolutions(f"{gpu_programs.CONVOLUTIONS} 1")
    assert alone == convolutions("lrp.z_plus 1")
    # Three convolutions forward with W and W+, back with W+; the first one also with W-.
    assert alone.total() == 3 * 3 + 2
    opcodes = collections.Counter(
        i.opcode
        for i in gpu_lowering.instructions(
            gpu_lowering.parsed(programs[f"{gpu_programs.CONVOLUTIONS} 1"][1].code)
        )
    )
    assert not opcodes.keys() - {
        "convolution",
        "parameter",
        "reshape",
        "reverse",
        "tuple",
        "constant",
    }


def test_weights_inside_a_program_are_refused(programs):
    forward, _ = programs["forward 1"]
    # Equal numbers would be one number that is broadcast.
    kernel = np.arange(432 * 7, dtype="float32").reshape(432, 7)
    held = dataclasses.replace(
        forward, function=lambda x: tf.reshape(x, (2, 432)) @ tf.constant(kernel)
    )
    with pytest.raises(ValueError, match=r"holds constants of \[\(432, 7\)\]; expected no weights"):
        gpu_lowering.lowered(held)
    captured = tf.constant(kernel)
    function = dataclasses.replace(forward, function=lambda x: tf.reshape(x, (2, 432)) @ captured)
    with pytest.raises(ValueError, match="forward captures values"):
        gpu_lowering.lowered(function)


def test_precision_is_that_of_the_option(model):
    (forward, *_) = gpu_programs.programs(model, gpu_programs.TINY, 2, 3, 2, [])
    for enabled, expected in ((True, {0}), (False, {2})):
        before = tf.config.experimental.tensor_float_32_execution_enabled()
        with gpu_programs.tensor_float_32(enabled):
            module = gpu_lowering.parsed(gpu_lowering.lowered(forward).code)
        assert tf.config.experimental.tensor_float_32_execution_enabled() == before
        found = {
            precision
            for i in gpu_lowering.instructions(module)
            if i.opcode in ("convolution", "dot")
            for precision in i.precision_config.operand_precision
        }
        assert found == expected


def test_folder(tmp_path, capsys):
    gpu_lowering.write_folder(tmp_path, argparse.Namespace(**ARGUMENTS))
    assert "3 programs" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (tmp_path / "gpu_script.py").is_file()
    assert [row["what"] for row in manifest["programs"]] == ["forward", "tape", "lrp.epsilon"]
    for row in manifest["programs"]:
        taken = gpu_lowering.parameters(gpu_lowering.parsed((tmp_path / row["file"]).read_bytes()))
        assert [(tuple(a["shape"]), a["dtype"]) for a in row["arguments"]] == taken
        with np.load(tmp_path / row["values"]) as values:
            stored = [values[f"argument_{i}"] for i in range(len(taken))]
            assert np.abs(values["output_0"]).max() > 0
        assert [(array.shape, array.dtype.name) for array in stored] == taken
    settings = gpu_script.settings_of(
        argparse.Namespace(folder=tmp_path, models=None, batch=7, size=None, tf32=None)
    )
    assert (settings.models, settings.batch, settings.size, settings.tf32) == ([], 7, 12, True)


def test_times_where_tensorflow_runs():
    rows = list(gpu.measure(argparse.Namespace(**{**ARGUMENTS, "model": [gpu_programs.TINY]})))
    assert [row["what"] for row in rows] == ["forward", "tape", "lrp.epsilon"]
    assert all(0 < row["ms"] <= row["median_ms"] < 1000 * row["first_s"] for row in rows)
    assert {row["library"] for row in rows} == {"tensorflow", "tfexplain"}


def test_without_a_gpu_nothing_is_measured(monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    with pytest.raises(SystemExit, match="sees no GPU"):
        gpu.main([])


@pytest.mark.parametrize("library", gpu_script.PEERS)
def test_a_library_that_is_missing_has_a_row_that_says_so(monkeypatch, library):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    (row,) = gpu_script.measure_peer(library, argparse.Namespace())
    assert row == {"library": library, "failure": f"torch and {library} not installed"}
    assert f"| {library} |  |  |  |  | torch and {library} not installed |" in gpu.table([row])


def test_the_first_call_is_no_repeat(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 10.003, 20.0, 20.001, 30.0, 30.002])
    monkeypatch.setattr(gpu_script.time, "perf_counter", lambda: next(clock))
    calls = []
    found = gpu_script.measured(lambda: calls.append(1), 3)
    assert len(calls) == 4
    assert found == pytest.approx({"first_s": 5, "ms": 1, "median_ms": 2})


def row(library, what, ms, model="resnet50", vectors=1, batch=32, day="2026-01-01"):
    shown = {"library": library, "model": model, "what": what, "batch": batch, "vectors": vectors}
    return {**shown, "size": 8, "tf32": True, "ms": ms, "device": "card", "date": day}


def test_goals_compare_rows_of_one_measurement():
    rows = [
        row("tfexplain", "lrp.z_plus", 12.0),
        row("tensorflow", gpu_programs.CONVOLUTIONS, 10.0),
        row("zennit", "epsilon_plus", 126.0),
        row("tfexplain", "gradient, propagate", 10.0, batch=16),
        row("tfexplain", "gradient, propagate", 60.0, vectors=20, batch=16),
        # Of another day, and of another number of images.
        row("zennit", "epsilon_plus", 1.0, day="2026-01-02"),
        row("tfexplain", "lrp.z_plus, propagate", 10.0, batch=16),
        row("tfexplain", "lrp.z_plus, propagate", 60.0, vectors=20, batch=8),
    ]
    found = [line for line in gpu.goals(rows).splitlines() if "card" in line]
    of_resnet = [line.split(" | ")[-1].rstrip(" |") for line in found if "resnet50" in line]
    assert of_resnet[:4] == ["1.20", "0.30", "not measured", "10.50"]
    assert set(of_resnet[4:]) == {"not measured"}
    # No row is of the other network.
    assert len(of_resnet) == len(found) == 8
    assert (
        gpu.goals([{"library": "zennit", "failure": "torch and zennit not installed"}]).count("\n")
        == 1
    )


def test_times_are_multiples_of_the_forward_pass_of_the_same_framework():
    rows = [
        row("tensorflow", "forward", 4.0),
        row("tfexplain", "gradient", 10.0),
        row("zennit", "forward", 8.0),
        row("zennit", "gradient", 12.0),
    ]
    lines = gpu.table(rows).splitlines()[2:]
    assert [line.split(" | ")[-1].rstrip(" |") for line in lines] == [
        "1.00",
        "2.50",
        "1.00",
        "1.50",
    ]


def test_what_the_script_prints_is_read(tmp_path, capsys):
    path, output = tmp_path / "printed", tmp_path / "rows.jsonl"
    path.write_text("a warning\n" + json.dumps(row("tensorflow", "forward", 4.0)) + "\n")
    gpu.main(["--read", str(path), "--output", str(output)])
    assert "| card, 2026-01-01 | resnet50 | tensorflow | forward |" in capsys.readouterr().out
    assert gpu.read_rows(output) == [row("tensorflow", "forward", 4.0)]


@pytest.mark.parametrize("failure", ("fails", "takes too long"))
def test_nothing_is_measured_by_programs_that_were_not_checked(monkeypatch, failure):
    started = []

    def run(command, timeout):
        started.append(command[-1])
        if failure == "takes too long":
            raise subprocess.TimeoutExpired(command, timeout)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(gpu_script.subprocess, "run", run)
    with pytest.raises(SystemExit, match="nothing is measured"):
        gpu_script.main([])
    assert started == ["check"]
    # What another library does tells nothing of the programs.
    started.clear()
    with pytest.raises(SystemExit, match="These parts failed: zennit, programs"):
        gpu_script.main(["--parts", "zennit", "programs"])
    assert started == ["zennit", "programs"]


def test_the_script_stands_alone(monkeypatch, tmp_path):
    # Neither TensorFlow nor this project are there.
    for name in ("tensorflow", "tfexplain", "benchmarks", "numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("alone", gpu_script.__file__)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
