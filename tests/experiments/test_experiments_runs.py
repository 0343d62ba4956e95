"""Options, parts, provenance and files of experiments."""

import hashlib
import json
import math
import pathlib

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure

from experiments import runs
from experiments.claim_table import Claim, Criterion, Finding
from experiments.runs import Experiment, Paper, Request, Task, finding

CALLS = []


def compute(task):
    CALLS.append((task.model, task.protocol))
    if task.request.data:
        task.uses(task.request.data["cifar10"])
    value = task.generator("value").normal()
    return xr.Dataset({"value": ((), value), "missing": ((), math.nan)})


def judge(dataset):
    yield finding(
        dataset,
        "C1",
        [Criterion("value", dataset["value"], "<", 10)],
        numbers={"missing": dataset["missing"]},
    )


def draw(datasets):
    figure = Figure(figsize=(1, 1))
    figure.add_subplot().plot([float(d["value"]) for d in datasets])
    return {"toy": figure}


TOY = Experiment(
    "toys",
    "toy",
    "A toy.",
    compute,
    judge,
    draw,
    models=("net",),
    known_models=("other",),
    images=7,
    data=("cifar10",),
    tiny={"models": ("small",), "images": 2},
)
CLAIM = Claim("C1", "It is small.", "small", "fig. 1", experiments=("toy",))


class Toys(Paper):
    """A paper whose modules are those of this file."""

    def experiments(self):
        return {"toy": TOY}


PAPER = Toys("toys", "Toys", (CLAIM,), "Read this.", "Trained on toys.")


@pytest.fixture(autouse=True)
def calls():
    CALLS.clear()
    return CALLS


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_run_writes_datasets_figures_and_findings(tmp_path, calls, capsys):
    assert TOY.main(["--out", str(tmp_path), "--seed", "3"]) == 0
    assert calls == [("net", "published"), ("net", "corrected")]
    names = ["toy-net-corrected.nc", "toy-net-published.nc", "toy.json", "toy.png"]
    assert list(contents(tmp_path)) == names
    first, second = TOY.saved(tmp_path)
    # Both protocols see the same draws.
    assert first["value"] == second["value"]
    attributes = second.attrs
    assert attributes["protocol"] == "corrected" and attributes["network"] == "net"
    assert (attributes["seed"], attributes["tiny"], attributes["files"]) == (3, 0, "{}")
    assert attributes["command"] == (
        "python -m experiments.toys.toy --models net --images 7 --seed 3 --protocol corrected"
    )
    assert set(json.loads(attributes["versions"])) >= {"python", "keras", "numpy", "tfexplain"}
    found = [Finding.from_config(c) for c in json.loads((tmp_path / "toy.json").read_text())]
    assert [f.protocol for f in found] == ["published", "corrected"]
    assert "C1 confirmed (net, published)" in capsys.readouterr().out


def test_reruns_are_identical(tmp_path):
    for name in ("a", "b"):
        TOY.main(["--out", str(tmp_path / name)])
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert list(first) == list(second)
    for name in first:
        # HDF5 stores when a group was made.
        if not name.endswith(".nc"):
            assert first[name] == second[name], name
    for one, other in zip(TOY.saved(tmp_path / "a"), TOY.saved(tmp_path / "b"), strict=True):
        xr.testing.assert_identical(one, other)


def test_seeds_matter_and_keys_too():
    parts = [Task(Request(("net",), seed=seed), "net", "published") for seed in (0, 0, 1)]
    draws = [task.generator("x", 1).normal() for task in parts]
    assert draws[0] == draws[1] != draws[2]
    assert parts[0].generator("x", 2).normal() != draws[0]
    other = Task(Request(("net",)), "net", "corrected")
    assert other.generator("x", 1).normal() == draws[0]


def test_only_names_of_files_are_kept(tmp_path):
    data, weights = tmp_path / "images.npz", tmp_path / "w.h5"
    data.write_bytes(b"images")
    options = ["--data", str(data), "--weights", f"net={weights}", "--images", "3"]
    TOY.main([*options, "--out", str(tmp_path / "out"), "--protocol", "published"])
    (dataset,) = TOY.saved(tmp_path / "out")
    checksum = hashlib.sha256(b"images").hexdigest()
    assert json.loads(dataset.attrs["files"]) == {"images.npz": checksum}
    assert dataset.attrs["command"] == (
        "python -m experiments.toys.toy --models net --images 3 --data cifar10=images.npz "
        "--weights net=w.h5 --seed 0 --protocol published"
    )
    text = "".join(map(str, dataset.attrs.values())) + (tmp_path / "out" / "toy.json").read_text()
    assert str(tmp_path) not in text


def test_random_weights_are_said():
    request = Request(("net",), weights={"net": "random"})
    assert Task(request, "net", "published").network == "net (random weights)"
    assert Task(request, "other", "published").network == "other"


def test_resume_reads_files_again(tmp_path, calls):
    path = tmp_path / "images.npz"
    arguments = ["--data", f"cifar10={path}", "--out", str(tmp_path / "out"), "--resume"]
    arguments += ["--models", "net", "--protocol", "published"]
    for content, times in ((b"one", 1), (b"one", 1), (b"two", 2)):
        path.write_bytes(content)
        assert TOY.main(arguments) == 0
        assert len(calls) == times


def test_what_parts_keep_on_their_way_is_removed(tmp_path, calls):
    task = Task(Request(("net",), out=tmp_path), "net", "published", "toy")
    left = task.scratch("old")
    left.write_text("numbers of yesterday")
    other = Task(Request(("net",), out=tmp_path), "net", "corrected", "toy").scratch("old")
    other.write_text("of another part")
    assert TOY.main(["--models", "net", "--protocol", "published", "--out", str(tmp_path)]) == 0
    assert not left.exists() and other.exists()


def test_results_say_what_is_known_of_weights(tmp_path, monkeypatch):
    path = tmp_path / "weights.npz"
    path.write_bytes(b"numbers")
    checksum = hashlib.sha256(b"numbers").hexdigest()
    task = Task(Request(("net",)), "net", "published")
    assert task.uses(path) == path and task.network == "net"
    monkeypatch.setitem(runs.REMARKS, checksum, "trained on little")
    task.uses(path)
    task.uses(path)
    assert task.network == "net (trained on little)"
    assert task.files == {"weights.npz": checksum}


def test_tiny(tmp_path, calls):
    TOY.main(["--tiny", "--out", str(tmp_path)])
    assert calls == [("small", "published"), ("small", "corrected")]
    dataset = TOY.saved(tmp_path)[0]
    assert dataset.attrs["tiny"] == 1 and "--images 2" in dataset.attrs["command"]


def test_resume_keeps_parts_of_the_same_command(tmp_path, calls):
    TOY.main(["--out", str(tmp_path), "--protocol", "published"])
    TOY.main(["--out", str(tmp_path), "--resume"])
    assert calls == [("net", "published"), ("net", "corrected")]
    TOY.main(["--out", str(tmp_path), "--resume", "--seed", "1"])
    assert len(calls) == 4
    TOY.main(["--out", str(tmp_path), "--seed", "1"])
    assert len(calls) == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--models", "none"], "toy knows no network none. Known: net, other."),
        (["--models", "small"], "toy knows no network small"),
        (["--models", "net", "other", "--weights", "w.h5"], "give NAME=w.h5, with one of net,"),
        (["--data", "nowhere.npz"], "--data cifar10=nowhere.npz: there is no such file"),
        (["--data", "mnist=."], "--data knows cifar10, not mnist."),
        (["--images", "0"], "Invalid value for '--images': "),
        (["--seed", "-1"], "Invalid value for '--seed': "),
        (["--protocol", "mine"], "'mine' is not one of 'published', 'corrected', 'both'"),
        (["--models"], "Option '--models' requires an argument"),
        (["--tiny", "net"], "unexpected extra argument"),
    ],
)
def test_bad_options(options, message, capsys, calls):
    assert TOY.main(options) == 2 and not calls
    assert message in capsys.readouterr().err


def test_a_missing_file_is_named():
    task = Task(Request(("net",)), "net", "published")
    with pytest.raises(FileNotFoundError, match="There is no file nowhere.h5. Check --data"):
        task.uses(pathlib.Path("nowhere.h5"))


def test_all_experiments_and_the_ledger(tmp_path, calls):
    out, kept = tmp_path / "out", tmp_path / "kept"
    assert PAPER.main(["--out", str(out), "--results", str(kept)]) == 0
    assert len(calls) == 2
    assert list(contents(kept)) == ["claims.json", "claims.md", "toy.json", "toy.png"]
    text = (kept / "claims.md").read_text(encoding="utf-8")
    assert text.startswith("# Claims of Toys\n\nRead this.\n\nTrained on toys.\n\n| claim |")
    assert "| C1 | It is small. | small | confirmed | yes | net |  |" in text
    before = contents(kept)
    # From what is saved, without computing.
    assert PAPER.main(["--out", str(out), "--results", str(kept), "--collect"]) == 0
    assert contents(kept) == before and len(calls) == 2


def test_smoke_runs_say_so_and_are_not_kept(tmp_path, capsys):
    PAPER.main(["--tiny", "--out", str(tmp_path)])
    assert "**A smoke run" in (tmp_path / "claims.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "claims.json").read_text())["tiny"] is True
    for options in (["--tiny"], ["--collect", "--out", str(tmp_path)]):
        assert PAPER.main([*options, "--results", str(tmp_path / "kept")]) == 2
        assert "not for smoke runs" in capsys.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_a_ledger_of_random_weights_says_so(tmp_path, calls):
    out, kept = tmp_path / "out", tmp_path / "kept"
    TOY.main(["--out", str(out), "--weights", "net=random", "--protocol", "corrected"])
    assert PAPER.main(["--out", str(out), "--results", str(kept), "--collect"]) == 0
    for folder in (out, kept):
        text = (folder / "claims.md").read_text(encoding="utf-8")
        title = "# Claims of Toys, on networks with random weights\n\n"
        assert text.startswith(f"{title}{runs.RANDOM_NOTE}\n\nRead this.\n\n| claim |")
        assert "Trained on toys." not in text and "| net (random weights) |" in text
        assert json.loads((folder / "claims.json").read_text())["random_weights"] is True


def test_trained_and_random_networks_are_not_kept_together(tmp_path, capsys):
    out, kept = tmp_path / "out", tmp_path / "kept"
    options = ["--models", "net", "other", "--weights", "other=random", "--out", str(out)]
    assert PAPER.main([*options, "--results", str(kept)]) == 2
    assert f"for trained networks or for random ones; {out} holds both" in capsys.readouterr().err
    assert not kept.exists()
    # Beside each other they are no claims of random weights.
    assert PAPER.main(["--out", str(out), "--collect"]) == 0
    assert (out / "claims.md").read_text().startswith("# Claims of Toys\n\nRead this.")
    assert json.loads((out / "claims.json").read_text())["random_weights"] is False


def test_nothing_collected_is_not_tested(tmp_path, calls):
    (tmp_path / "out").mkdir()
    PAPER.main(["--collect", "--out", str(tmp_path / "out")])
    text = (tmp_path / "out" / "claims.md").read_text(encoding="utf-8")
    assert "not tested: toy did not report on it" in text and not calls


def test_networks_choose_experiments(tmp_path, calls, capsys):
    PAPER.main(["--models", "elsewhere", "--out", str(tmp_path)])
    assert "left out: none of the named networks concerns it" in capsys.readouterr().out
    PAPER.main(["--models", "elsewhere", "other", "--out", str(tmp_path)])
    assert calls == [("other", "published"), ("other", "corrected")]


def test_options_take_several_values(tmp_path, calls):
    given = ["--models", "net", "other", "--protocol", "published", "--only", "toy"]
    assert PAPER.main([*given, "--out", str(tmp_path), "--models", "elsewhere"]) == 0
    assert calls == [("net", "published"), ("other", "published")]


def test_experiments_of_a_paper_have_names(capsys, calls):
    assert PAPER.main(["--only", "toy", "nothing"]) == 2 and not calls
    assert "--only knows toy, not nothing" in capsys.readouterr().err


def test_a_failure_leaves_no_half_written_file(tmp_path):
    def broken(task):
        dataset = compute(task)
        dataset.attrs["object"] = {"not": "text"}
        return dataset

    experiment = Experiment("toys", "toy", "", broken, judge, draw, ("net",))
    with pytest.raises(TypeError):
        experiment.main(["--out", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_scratch_files_are_no_results(tmp_path):
    task = Task(Request(("net",), out=tmp_path), "net", "published", "toy")
    assert task.path == tmp_path / "toy-net-published.nc"
    path = task.scratch("csc")
    assert path == tmp_path / "scratch" / "toy-net-published-csc.nc"
    xr.Dataset().to_netcdf(path, engine="h5netcdf")
    assert TOY.saved(tmp_path) == []


def test_generators_are_independent_of_the_model_order():
    request = Request(("a", "b"))
    values = {m: Task(request, m, "published").generator("x").normal() for m in ("a", "b")}
    np.testing.assert_equal(values["a"], values["b"])
