"""An audit whose process was killed goes on in another process, to the same numbers."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import xarray as xr
from keras import layers

import tfexplain
from tests.helpers.networks import randomize, sequential

ROOT = pathlib.Path(__file__).parents[2]
AUDITS = ["examples", "parameter_randomization", "random_logit", "entropy"]
METHODS = ["gradient", "lrp.z", "lrp.alpha_2_beta_1"]
SCRIPT = f"""
import sys
import keras, numpy as np
import tfexplain

x = np.load(sys.argv[2])
model = keras.saving.load_model(sys.argv[1])
tfexplain.audit(model, x, methods={METHODS}, audits={AUDITS}, preset="quick", folder=sys.argv[3])
"""


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_killed_audit_continues_to_the_same_numbers(tmp_path):
    model = randomize(
        sequential(
            (8, 8, 1),
            layers.Conv2D(4, 3, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(3, name="scores"),
        )
    )
    x = np.random.default_rng(0).uniform(size=(6, 8, 8, 1)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    model.save(tmp_path / "model.keras")
    given = [tmp_path / name for name in ("model.keras", "x.npy", "run")]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, given)],
        cwd=ROOT,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stderr=subprocess.PIPE,
        text=True,
    )
    results, last = tmp_path / "run" / "results", f"{AUDITS[-1]}.nc"
    deadline = time.monotonic() + 120
    while not (results / "examples.nc").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL, errors
    assert not (results / last).exists()
    maps = (results / "examples.nc").stat().st_mtime_ns

    options = {"methods": METHODS, "audits": AUDITS, "preset": "quick"}
    network = keras.saving.load_model(tmp_path / "model.keras")
    found = tfexplain.audit(network, x, folder=tmp_path / "run", **options)
    # What was done is not done again.
    assert (results / "examples.nc").stat().st_mtime_ns == maps
    fresh = tfexplain.audit(network, x, **options)
    assert list(found.datasets) == list(fresh.datasets) == AUDITS
    for name in AUDITS:
        xr.testing.assert_equal(found.datasets[name], fresh.datasets[name])
    verdict = json.loads((tmp_path / "run" / "verdict.json").read_text(encoding="utf-8"))
    assert verdict == json.loads(fresh.verdict().to_json())
