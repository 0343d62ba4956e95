"""Folders of audits: runs that stop, parts that fail, and folders of something else."""

import json
import time

import numpy as np
import pytest
import tensorflow as tf
import xarray as xr

import tfexplain
from tests.helpers.audit_networks import table_columns, table_network
from tfexplain import audits, files, report
from tfexplain.errors import DamagedFileError
from tfexplain.report import Thresholds

METHODS = ["gradient", "lrp.z"]


def stop(*args, **options):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def table():
    return table_network()


@pytest.fixture(scope="module")
def columns():
    return table_columns()


@pytest.fixture(scope="module")
def audited(table, columns, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "run"
    found = tfexplain.audit(table, columns, methods=METHODS, preset="quick", folder=folder)
    return found, folder


def test_the_folder_is_read_again_without_computing(audited):
    found, folder = audited
    again = report.load(folder)
    assert set(again.datasets) == set(found.datasets)
    for name, dataset in found.datasets.items():
        xr.testing.assert_equal(again.datasets[name], dataset)
    assert again.verdict().to_dict() == found.verdict().to_dict()
    assert json.loads((folder / "verdict.json").read_text()) == found.verdict().to_dict()
    strict = report.load(folder, thresholds=Thresholds(directions=0))
    assert {row.trust for row in strict.verdict().rows} == {"not trustworthy"}


def test_a_stopped_audit_continues_to_the_same_numbers(
    audited, table, columns, tmp_path, monkeypatch
):
    options = {"methods": METHODS, "preset": "quick", "folder": tmp_path}
    with monkeypatch.context() as patch:
        patch.setattr(audits.ParameterRandomization, "run", stop)
        with pytest.raises(
            KeyboardInterrupt, match="'parameter_randomization'.*results.*continues"
        ):
            tfexplain.audit(table, columns, **options)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["examples.nc"]
    stopped = report.load(tmp_path)
    assert list(stopped.datasets) == ["examples"]
    assert "was not run" in stopped.verdict()["lrp.z"].cells["directions"].word
    done = (tmp_path / "results" / "examples.nc").stat().st_mtime_ns
    found = tfexplain.audit(table, columns, **options)
    assert (tmp_path / "results" / "examples.nc").stat().st_mtime_ns == done
    for name, dataset in audited[0].datasets.items():
        xr.testing.assert_equal(found.datasets[name], dataset)


def test_a_method_that_fails_a_part_is_left_out_of_it(table, columns, tmp_path, monkeypatch):
    real = audits.Entropy.run

    def fails(audit, case, **options):
        if "lrp.z" in case.analyzers:
            raise ValueError("lrp.z overflows")
        return real(audit, case, **options)

    monkeypatch.setattr(audits.Entropy, "run", fails)
    options = {"methods": METHODS, "preset": "quick", "audits": "entropy", "folder": tmp_path}
    with pytest.warns(UserWarning, match="Entropy: left out lrp.z. lrp.z overflows"):
        found = tfexplain.audit(table, columns, **options)
    assert found.datasets["entropy"].analyzer.values.tolist() == ["gradient"]
    assert found.record["reasons"]["entropy"] == {"lrp.z": "lrp.z overflows"}
    # It is known when the audit runs again.
    assert tfexplain.audit(table, columns, **options).record["reasons"] == found.record["reasons"]


def test_a_part_that_fails_for_all_is_left_out(table, columns, monkeypatch):
    def fails(*args, **options):
        raise ValueError("nothing works")

    monkeypatch.setattr(audits.Entropy, "run", fails)
    with pytest.warns(UserWarning, match="nothing works"):
        found = tfexplain.audit(
            table, columns, methods=METHODS, audits=["entropy", "examples"], preset="quick"
        )
    assert list(found.datasets) == ["examples"]
    assert found.record["reasons"]["entropy"][""] == "nothing works"


def test_parts_can_be_added_to_a_folder(table, columns, tmp_path):
    options = {"methods": "gradient", "preset": "quick", "folder": tmp_path}
    tfexplain.audit(table, columns, audits="entropy", **options)
    tfexplain.audit(table, columns, audits="examples", **options)
    assert set(report.load(tmp_path).datasets) == {"entropy", "examples"}


def test_another_audit_in_the_folder_is_refused(table, columns, tmp_path):
    options = {"methods": "gradient", "audits": "entropy", "folder": tmp_path}
    tfexplain.audit(table, columns, **options)
    with pytest.raises(ValueError, match="another audit; they differ in seed. Choose another"):
        tfexplain.audit(table, columns, seed=1, **options)
    with pytest.raises(ValueError, match="differ in samples_sha256, targets_sha256"):
        tfexplain.audit(table, columns[::-1], **options)
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(ValueError, match="audit.json is damaged: it is no JSON"):
        tfexplain.audit(table, columns, **options)
    with pytest.raises(ValueError, match="audit.json is damaged: it is no JSON"):
        report.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="There is no audit in"):
        report.load(tmp_path / "nowhere")


def test_functions_without_a_name_cannot_be_continued(table, columns, tmp_path):
    options = {
        "methods": {"integrated_gradients": {"steps": 2, "baseline": lambda x: 0 * x}},
        "audits": "entropy",
    }
    assert tfexplain.audit(table, columns, **options).verdict().methods == ["integrated_gradients"]
    with pytest.raises(ValueError, match="must know its settings again.*integrated_gradients"):
        tfexplain.audit(table, columns, folder=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_file_is_no_folder(table, columns, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="is a file"):
        tfexplain.audit(table, columns, methods="gradient", folder=tmp_path / "file")


# --- folders of something else ---

ENTROPY = {"methods": METHODS, "audits": "entropy", "preset": "quick"}


@pytest.mark.parametrize("name", ["report.html", "verdict.json", "results/koopman.nc"])
def test_files_of_others_are_not_replaced(table, columns, tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=rf"holds {name} and no audit.json"):
        tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    assert (tmp_path / name).read_text() == "mine" and not (tmp_path / "audit.json").exists()
    (tmp_path / name).rename(tmp_path / "other.html")
    tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    assert (tmp_path / "other.html").read_text() == "mine"


def test_results_of_another_run_are_not_taken(table, columns, tmp_path):
    options = {**ENTROPY, "audits": ["examples", "entropy"]}
    tfexplain.audit(table, columns, folder=tmp_path, **options)
    (tmp_path / "audit.json").unlink()
    with pytest.raises(ValueError, match="results/examples.nc, results/entropy.nc and no audit"):
        tfexplain.audit(table, columns + 1, folder=tmp_path, **options)


@pytest.mark.parametrize("part", ["entropy", "parameter_randomization"])
def test_a_damaged_result_is_an_error_and_no_reason(table, columns, tmp_path, part):
    options = {**ENTROPY, "audits": part, "folder": tmp_path}
    first = tfexplain.audit(table, columns, **options)
    path = tmp_path / "results" / f"{part}.nc"
    path.write_bytes(b"half")
    with pytest.raises(ValueError, match=f"{part}.nc is damaged: .* read as NetCDF.*Remove it"):
        tfexplain.audit(table, columns, **options)
    path.unlink()
    again = tfexplain.audit(table, columns, **options)
    xr.testing.assert_equal(again.datasets[part], first.datasets[part])
    assert again.record["reasons"] == {part: {}}


def test_damaged_settings_of_blocks_are_an_error_and_no_reason(
    table, columns, tmp_path, monkeypatch
):
    options = {**ENTROPY, "folder": tmp_path}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(xr.Dataset, "assign_attrs", stop)
        tfexplain.audit(table, columns, **options)
    blocks = tmp_path / "results" / "entropy.nc.blocks"
    names = sorted(file.name for file in blocks.iterdir())
    assert len(names) > 1
    (blocks / "settings.json").write_text("{")
    with pytest.raises(DamagedFileError, match="settings.json is damaged.*Remove it, and"):
        tfexplain.audit(table, columns, **options)
    assert sorted(file.name for file in blocks.iterdir()) == names
    (blocks / "settings.json").unlink()
    with pytest.warns(UserWarning, match="1 block.* computed again"):
        found = tfexplain.audit(table, columns, **options)
    assert list(found.datasets) == ["entropy"] and found.record["reasons"] == {"entropy": {}}


def test_the_report_has_all_parts_of_the_folder(table, columns, tmp_path):
    options = {**ENTROPY, "folder": tmp_path}
    tfexplain.audit(table, columns, **{**options, "audits": "cosine_convergence"})
    found = tfexplain.audit(table, columns, **options)
    assert list(found.datasets) == ["cosine_convergence", "entropy"]
    text = (tmp_path / "report.html").read_text()
    assert 'id="cosine_convergence"' in text and 'id="entropy"' in text
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["methods"][0]["tests"]["directions"]["value"] is not None
    assert report.load(tmp_path).verdict().to_dict() == verdict


def test_thresholds_are_kept(table, columns, tmp_path):
    options = {**ENTROPY, "folder": tmp_path}
    strict = Thresholds(directions=np.float32(0.5))
    tfexplain.audit(table, columns, thresholds=strict, **options)
    assert report.load(tmp_path).thresholds == strict
    assert report.load(tmp_path, thresholds=Thresholds()).thresholds == Thresholds()
    record = json.loads((tmp_path / "audit.json").read_text())
    record["thresholds"] = {"directions": 2}
    del record[files.DIGEST]
    record[files.DIGEST] = files.checksum(record)
    (tmp_path / "audit.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="its thresholds are wrong.*directions must be"):
        report.load(tmp_path)


def test_another_json_is_no_record(table, columns, tmp_path):
    (tmp_path / "audit.json").write_text('{"settings": {}, "schema": "npm", "schema_version": 9}')
    with pytest.raises(ValueError, match="audit.json has the schema npm 9; .*another folder"):
        tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    assert "npm" in (tmp_path / "audit.json").read_text()


def test_the_folder_of_an_older_version_is_refused(table, columns, tmp_path):
    tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    file = tmp_path / "audit.json"
    # Its Datasets lack what this version reads.
    file.write_text(json.dumps(json.loads(file.read_text()) | {"schema_version": 1}))
    for call in (
        lambda: tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY),
        lambda: report.load(tmp_path),
    ):
        with pytest.raises(ValueError, match="has the schema tfexplain.audit 1; .* another folder"):
            call()


# --- what fails and what stops ---


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TypeError("no"), "TypeError: no"),
        (MemoryError(), "MemoryError"),
        (KeyError("k"), "KeyError: 'k'"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM\nin a graph"), "OOM in a graph"),
        (RuntimeError("x " * 1000), "x x ..."),
    ],
)
def test_any_failure_of_a_method_leaves_the_others(table, columns, monkeypatch, error, reason):
    real = audits.Entropy.run

    def fails(audit, case, **options):
        if "lrp.z" in case.analyzers:
            raise error
        return real(audit, case, **options)

    monkeypatch.setattr(audits.Entropy, "run", fails)
    with pytest.warns(UserWarning, match="Entropy: left out lrp.z"):
        found = tfexplain.audit(table, columns, **ENTROPY)
    assert found.datasets["entropy"].analyzer.values.tolist() == ["gradient"]
    assert found.record["reasons"]["entropy"]["lrp.z"].endswith(reason)


@pytest.mark.parametrize(
    "error",
    [MemoryError("40 bytes more"), tf.errors.ResourceExhaustedError(None, None, "40 bytes more")],
)
def test_memory_that_is_short_whatever_the_method_is_no_reason(
    table, columns, tmp_path, monkeypatch, error
):
    """The audit was left out for good, and its finished blocks were removed."""
    read, full = audits.Entropy.run, iter([True])

    def once(audit, case, **options):
        if next(full, False):
            raise error
        return read(audit, case, **options)

    with monkeypatch.context() as patch:
        patch.setattr(audits.Entropy, "run", once)
        with pytest.raises(type(error), match="40 bytes more"):
            tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    found = tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    assert list(found.datasets) == ["entropy"] and not found.record["reasons"]["entropy"]


def test_a_full_disk_stops_the_audit(table, columns, tmp_path, monkeypatch):
    def full(*args, **options):
        raise OSError(28, "No space left")

    with monkeypatch.context() as patch:
        patch.setattr(audits.Entropy, "run", full)
        with pytest.raises(OSError, match="No space left"):
            tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    found = tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    assert list(found.datasets) == ["entropy"] and not found.record["reasons"]["entropy"]


def test_the_time_of_a_stopped_part_counts(table, columns, tmp_path, monkeypatch):
    def stop_later(*args, **options):
        time.sleep(0.2)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(audits.Entropy, "run", stop_later)
        with pytest.raises(KeyboardInterrupt):
            tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    found = tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    assert found.record["seconds"]["entropy"] > 0.2


def test_a_stop_while_the_report_is_made_says_how_to_continue(
    table, columns, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr(report.Outcome, "to_html", stop)
        with pytest.raises(KeyboardInterrupt, match="stopped in 'report'.*continues"):
            tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    tfexplain.audit(table, columns, folder=tmp_path, **ENTROPY)
    assert (tmp_path / "report.html").exists()
