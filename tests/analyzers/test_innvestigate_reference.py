"""Single layers against the reference files of innvestigate 1.0.9 (biases 0, inputs >= 0)."""

import h5py
import keras
import numpy as np
import pytest

import tfexplain
from tests.helpers.single_calls import LAYERS, NOISY, Field, check_draws

pytestmark = pytest.mark.data

# Name of a file -> our name and options.
FILES = {
    "Gradient": ("gradient", {}),
    "InputTimesGradient": ("input_t_gradient", {}),
    "GuidedBackprop": ("guided_backprop", {}),
    "IntegratedGradients": ("integrated_gradients", {"steps": 64}),
    "SmoothGrad": ("smoothgrad", {"samples": 64}),
    "LRPZ": ("lrp.z", {}),
    "LRPZIgnoreBias": ("lrp.z_IB", {}),
    "LRPZ_Flat_input_layer_rule": ("lrp.z", {"input_rule": "flat"}),
    "LRPEpsilon": ("lrp.epsilon", {"epsilon": 1e-7}),
    "LRPEpsilonIgnoreBias": ("lrp.epsilon_IB", {"epsilon": 1e-7}),
    "LRPZPlus": ("lrp.z_plus", {}),
    "LRPZPlusFast": ("lrp.z_plus_fast", {}),
    "LRPAlpha1Beta0": ("lrp.alpha_1_beta_0", {}),
    "LRPAlpha1Beta0IgnoreBias": ("lrp.alpha_1_beta_0_IB", {}),
    "LRPAlpha2Beta1": ("lrp.alpha_2_beta_1", {}),
    "LRPFlat": ("lrp.flat", {}),
    "LRPSequentialPresetA": ("lrp.sequential_preset_a", {}),
    "LRPSequentialPresetAFlat": ("lrp.sequential_preset_a_flat", {}),
    "LRPSequentialPresetB": ("lrp.sequential_preset_b", {}),
    "DeepTaylor": ("deep_taylor", {}),
}


@pytest.fixture(scope="module")
def references(data_dir):
    """Folder of the files."""
    folder = data_dir / "innvestigate_reference"
    if not folder.is_dir():
        pytest.skip("TFEXPLAIN_TEST_DATA has no folder innvestigate_reference")
    return folder


@pytest.fixture(scope="module")
def models():
    """One model per layer; each file has weights of its own."""
    found = {}
    for name, layer in LAYERS.items():
        stack = [keras.Input((10, 10, 3)), layer(), keras.layers.Flatten()]
        found[name] = keras.Sequential(stack, name=name.lower())
    return found


def test_every_file_is_compared(references):
    """No file of the folder is left out."""
    assert {path.stem for path in references.glob("*.hdf5")} == set(FILES)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("file", FILES)
def test_reference(file, layer, references, models):
    """The stored attribution, from the stored weights and input."""
    with h5py.File(references / f"{file}.hdf5") as stored:
        assert stored.attrs["analyzer_name"] == file
        x = stored["input"][:].astype("float32")
        group = stored[layer]
        weights = [group["weights"][key][:] for key in sorted(group.get("weights", ()))]
        output, attribution = group["output"][:], group["attribution"][:]
    model = models[layer]
    model.set_weights(weights)
    name, options = FILES[file]
    analyzer = tfexplain.create_analyzer(name, model, compat="innvestigate", **options)
    np.testing.assert_allclose(analyzer.outputs(x), output, rtol=1e-5, atol=1e-6)
    found = analyzer.analyze(x)
    if file == "SmoothGrad" and layer in NOISY:
        # The draws differ, so both maps have to be those of 64 draws.
        kernel = next((weight for weight in weights if weight.ndim > 1), None)
        for ours, theirs, sample in zip(found, attribution, x, strict=True):
            field = Field(layer, sample, kernel)
            check_draws(ours, field)
            check_draws(theirs, field)
    else:
        np.testing.assert_allclose(found, attribution, rtol=1e-5, atol=1e-6)
