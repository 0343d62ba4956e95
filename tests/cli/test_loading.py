import sys

import keras
import numpy as np
import pytest
from PIL import Image

from tfexplain import loading

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def small_model(units=2):
    return keras.Sequential(
        [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(units)]
    )


def write_image(path, size=(8, 6), mode="RGB", seed=0):
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    pixels = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels if pixels.ndim == 3 else pixels[..., None]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, empty; modules imported from it are forgotten."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("user_"):
            del sys.modules[name]


# models


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_model_files(folder, suffix):
    model = small_model()
    model.save(folder / f"m{suffix}")
    loaded = loading.load_model(folder / f"m{suffix}")
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    other = small_model()
    other.save_weights(folder / "w.weights.h5")
    loaded = loading.load_model(str(folder / f"m{suffix}"), weights="w.weights.h5")
    np.testing.assert_array_equal(loaded.get_weights()[0], other.get_weights()[0])


def test_model_of_a_function(folder):
    (folder / "user_a.py").write_text(
        "import keras\n"
        "def plain():\n"
        "    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])\n"
        "def with_weights(weights='default', extra=1):\n"
        "    model = plain()\n"
        "    model.given = weights\n"
        "    return model\n"
        "number = 3\n"
        "def wrong():\n"
        "    return 3\n"
        "def fails():\n"
        "    raise RuntimeError('no data')\n"
    )
    model = loading.load_model("user_a:plain")
    assert loading.load_model("user_a:with_weights").given == "default"
    assert loading.load_model("user_a:with_weights", "none").given is None
    assert loading.load_model("user_a:with_weights", "imagenet").given == "imagenet"
    model.save_weights("w.weights.h5")
    assert loading.load_model("user_a:with_weights", "w.weights.h5").given == "w.weights.h5"
    loaded = loading.load_model("user_a:plain", "w.weights.h5")
    np.testing.assert_array_equal(loaded.get_weights()[0], model.get_weights()[0])
    assert str(folder) not in sys.path
    with pytest.raises(ValueError, match="no function 'plane'. Did you mean 'plain'"):
        loading.load_model("user_a:plane")
    with pytest.raises(TypeError, match="user_a:number is a int. Expected a function"):
        loading.load_model("user_a:number")
    with pytest.raises(TypeError, match="user_a:wrong gave a int. Expected a keras.Model"):
        loading.load_model("user_a:wrong")
    with pytest.raises(ValueError, match="user_a:fails failed: RuntimeError: no data"):
        loading.load_model("user_a:fails")
    with pytest.raises(ValueError, match="user_a:plain has no parameter 'weights'"):
        loading.load_model("user_a:plain", "imagenet")


def test_application():
    model = loading.load_model("keras.applications:MobileNetV3Small", "none")
    assert model.output_shape == (None, 1000)


@pytest.mark.parametrize(
    ("spec", "weights", "error", "message"),
    [
        ("nothing", None, ValueError, "The model is 'nothing'. Expected a .keras or .h5 file"),
        ("saved", None, ValueError, "The model is 'saved'. It is a folder; save the model as .ker"),
        (
            "m.kers.keras",
            None,
            FileNotFoundError,
            "m.kers.keras does not exist. Did you mean 'm.ker",
        ),
        ("zzz.h5", None, FileNotFoundError, "zzz.h5 does not exist. The current folder is"),
        ("folder.keras", None, ValueError, "folder.keras is a folder. Give a file"),
        ("damaged.keras", None, ValueError, "damaged.keras cannot be loaded as a Keras model"),
        ("damaged.h5", None, ValueError, "damaged.h5 cannot be loaded as a Keras model"),
        ("w.weights.h5", None, ValueError, "w.weights.h5 holds weights only. Give the model as"),
        ("m.keras", "imagenet", ValueError, "weights is 'imagenet' for the file m.keras"),
        ("m.keras", "no.h5", FileNotFoundError, "file with weights no.h5 does not exist"),
        ("m.keras", "damaged.h5", ValueError, "damaged.h5 cannot be loaded into the model"),
        ("m.keras", "other.weights.h5", ValueError, "of another network; expected .weights.h5"),
        ("keras.applications:VGG61", None, ValueError, "'VGG61'. Did you mean .*'VGG16"),
        ("keras.applications:vgg16", None, ValueError, "'vgg16'. Did you mean 'VGG16"),
        (
            "user_missing:f",
            None,
            ValueError,
            "'user_missing' of 'user_missing:f' cannot be imported",
        ),
        ("user_broken:f", None, ValueError, "cannot be imported .SyntaxError"),
        ("a b:c", None, ValueError, "Expected module:function with Python names"),
    ],
)
def test_model_errors(folder, spec, weights, error, message):
    small_model().save("m.keras")
    small_model().save_weights("w.weights.h5")
    small_model(3).save_weights("other.weights.h5")
    (folder / "folder.keras").mkdir()
    (folder / "saved").mkdir()
    (folder / "damaged.keras").write_bytes(b"damaged")
    (folder / "damaged.h5").write_bytes(b"damaged")
    (folder / "user_broken.py").write_text("def f(:\n")
    with pytest.raises(error, match=message):
        loading.load_model(spec, weights)


# images


def test_image_of_the_right_size_is_unchanged(folder):
    pixels = write_image(folder / "a.png")
    x, names, raw = loading.load_images(["a.png"], (6, 8, 3))
    assert (x.dtype, raw.dtype, names) == (np.float32, np.uint8, ["a"])
    np.testing.assert_array_equal(raw[0], pixels)
    np.testing.assert_array_equal(x[0], pixels)
    kept, _, _ = loading.load_images(["a.png"], (None, None, 3))
    np.testing.assert_array_equal(kept, x)


def test_shorter_side_is_resized_and_the_middle_cut_out(folder):
    pixels = np.zeros((10, 40, 3), np.uint8)
    pixels[:, 15:25] = 255  # the middle quarter
    Image.fromarray(pixels).save("wide.png")
    x, _, _ = loading.load_images(["wide.png"], (5, 5, 3))
    assert x.shape == (1, 5, 5, 3)
    np.testing.assert_array_equal(x[:, :, 1:4], 255)
    assert x.min() > 200  # the filter of the resizing reaches over the edge
    np.testing.assert_array_equal(x, x[:, :, ::-1])
    x, _, _ = loading.load_images(["wide.png"], (5, None, 3))
    assert x.shape == (1, 5, 20, 3)
    x, _, _ = loading.load_images(["wide.png"], (None, 20, 3))
    assert x.shape == (1, 5, 20, 3)


def test_channels_follow_the_model(folder):
    grey = write_image(folder / "g.png", mode="L")
    write_image(folder / "c.png")
    x, _, _ = loading.load_images(["g.png", "c.png"], (6, 8, 3))
    np.testing.assert_array_equal(x[0], np.repeat(grey, 3, axis=-1))
    x, _, _ = loading.load_images(["g.png", "c.png"], (6, 8, 1))
    assert x.shape == (2, 6, 8, 1)
    np.testing.assert_array_equal(x[0], grey)


def test_folders_are_sorted_and_names_are_different(folder):
    for seed, name in enumerate(["d/z.png", "d/cat/a.png", "d/dog/a.JPG", "d/b.png", "e/a.png"]):
        (folder / name).parent.parent.mkdir(exist_ok=True)
        write_image(folder / name, seed=seed)
    (folder / "d" / "notes.txt").write_text("no image")
    x, names, _ = loading.load_images(["d", "e/a.png", "e/a.png"], (6, 8, 3))
    assert names == ["b", "cat_a", "dog_a", "z", "e_a", "e_a_2"]
    assert len(x) == 6
    assert len(np.unique(x[:5].sum((1, 2, 3)))) == 5


def test_arrays(folder):
    values = np.random.default_rng(0).normal(size=(11, 5, 2))
    np.savez("a.npz", y=np.arange(11), x=values)
    x, names, raw = loading.load_images(["a.npz"], (None, 2))
    np.testing.assert_array_equal(x, values.astype(np.float32))
    assert (names[0], names[10], raw) == ("a_00", "a_10", None)
    np.savez("first.npz", data=values)
    assert loading.load_images(["first.npz"], (5, 2))[0].shape == (11, 5, 2)
    np.save("one.npy", values[0])
    assert loading.load_images(["one.npy"], (5, 2))[0].shape == (1, 5, 2)
    np.save("grey.npy", np.zeros((3, 5, 2), np.uint8))
    x, _, raw = loading.load_images(["grey.npy"], (5, 2, 1))
    assert x.shape == raw.shape == (3, 5, 2, 1)


@pytest.mark.parametrize(
    ("paths", "shape", "error", "message"),
    [
        ([], (6, 8, 3), ValueError, "There is no image. Give at least one"),
        (
            ["b.png"],
            (6, 8, 3),
            FileNotFoundError,
            "The image b.png does not exist. Did you mean .*a.png",
        ),
        (["empty"], (6, 8, 3), ValueError, "The folder empty holds no image"),
        (["a.txt"], (6, 8, 3), ValueError, "a.txt ends in '.txt'. Expected an image"),
        (["damaged.png"], (6, 8, 3), ValueError, "damaged.png cannot be read as an image"),
        (["cut.png"], (6, 8, 3), ValueError, "cut.png cannot be read as an image"),
        (["deep.png"], (6, 8, 1), ValueError, "deep.png has more than 8 bits per channel"),
        (["a.png"], (6, 8), ValueError, r"a.png is an image, but .* shape \(6, 8\)"),
        (["a.png"], (6, 8, 2), ValueError, "Images fit .height, width, 1 or 3"),
        (["a.png", "c.png"], (None, None, 3), ValueError, "The inputs have the shapes"),
        (["damaged.npz"], (2,), ValueError, "damaged.npz cannot be read as NumPy arrays"),
        (["none.npz"], (2,), ValueError, "none.npz cannot .* it holds no array"),
        (
            ["object.npy"],
            (2,),
            ValueError,
            "object.npy holds an array of type object",
        ),
        (["text.npy"], (2,), ValueError, "text.npy holds an array of type <U1. Expected numbers"),
        (["nan.npy"], (2,), ValueError, r"nan.npy \(sample 1\): the file has NaN or infinite"),
        (["nan.npy"], (3,), ValueError, r"shape \(2, 2\). The model takes \(n, 3\)"),
        (["zero.npy"], (2,), ValueError, r"shape \(0, 2\). Give at least one sample"),
    ],
)
def test_input_errors(folder, paths, shape, error, message):
    write_image(folder / "a.png")
    write_image(folder / "c.png", size=(4, 4))
    (folder / "empty").mkdir()
    for name in ("a.txt", "damaged.png", "damaged.npz"):
        (folder / name).write_bytes(b"damaged")
    write_image(folder / "cut.png", size=(64, 64))
    (folder / "cut.png").write_bytes((folder / "cut.png").read_bytes()[:2000])
    Image.fromarray(np.full((6, 8), 40_000, np.uint16)).save("deep.png")
    np.savez("none.npz")
    np.save("object.npy", np.array([{}, 1], dtype=object))
    np.save("text.npy", np.array(["a", "b"]))
    np.save("nan.npy", np.array([[1.0, 2.0], [np.nan, 1.0]]))
    np.save("zero.npy", np.zeros((0, 2)))
    with pytest.raises(error, match=message):
        loading.load_images(paths, shape)


# preprocessing


def test_formula():
    function = loading.preprocessing("scale=0.5, mean=1:2:3,std=2")
    x = np.full((1, 2, 2, 3), 10.0)
    np.testing.assert_allclose(function(x)[0, 0, 0], [2.0, 1.5, 1.0])
    np.testing.assert_allclose(loading.preprocessing("mean=4")(x), 6.0)


def test_preprocessing_by_keras_leaves_raw_values_alone(folder):
    write_image(folder / "a.png")
    for name in ("mobilenet", "vgg16"):  # vgg16's works in place
        x, _, raw = loading.load_images(["a.png"], (6, 8, 3), name)
        expected = getattr(keras.applications, name).preprocess_input(raw.astype(np.float32))
        np.testing.assert_allclose(x, expected)
        assert raw.dtype == np.uint8


def test_preprocessing_by_a_function(folder):
    (folder / "user_p.py").write_text("def half(x):\n    return x / 2\nnumber = 3\n")
    write_image(folder / "a.png")
    x, _, raw = loading.load_images(["a.png"], (6, 8, 3), "user_p:half")
    np.testing.assert_array_equal(x, raw / np.float32(2))
    x, _, raw = loading.load_images(["a.png"], (6, 8, 3), lambda values: values + 1)
    np.testing.assert_array_equal(x, raw + np.float32(1))
    with pytest.raises(TypeError, match="user_p:number is a int. Expected a function"):
        loading.preprocessing("user_p:number")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mobilnet", "The preprocessing is 'mobilnet'. Did you mean 'mobilenet"),
        ("scale=1,shift=2", "has 'shift', unknown. Expected as 'scale="),
        ("scale=1,scale=2", "has 'scale', twice"),
        ("mean=a:b", "has 'a:b' for mean, no numbers"),
        ("std=0", "has '0' for std. Numbers must be finite, and scale and std not 0"),
        ("user_missing:f", "'user_missing' of 'user_missing:f' cannot be imported"),
    ],
)
def test_preprocessing_errors(folder, text, message):
    with pytest.raises(ValueError, match=message):
        loading.preprocessing(text)


@pytest.mark.parametrize(
    ("preprocess", "message"),
    [
        ("mean=1:2", "preprocessing failed: ValueError: mean has 2 numbers for 3 channels"),
        (lambda x: x[:, 1:], r"preprocessing made \(1, 5, 8, 3\) of \(1, 6, 8, 3\)"),
        (lambda x: x * np.nan, r"a.png \(sample 0\): the preprocessing gives NaN"),
    ],
)
def test_preprocessing_of_images_errors(folder, preprocess, message):
    write_image(folder / "a.png")
    with pytest.raises(ValueError, match=message):
        loading.load_images(["a.png"], (6, 8, 3), preprocess)
