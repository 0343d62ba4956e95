"""Loaders of data: what they read, what they draw, and what they refuse."""

import csv
import dataclasses
import io
import tarfile

import keras
import numpy as np
import pytest
from PIL import Image

from models import datasets, images
from models.datasets import (
    Dataset,
    draw,
    list_photographs,
    load_cifar10,
    load_mnist,
    load_mnist_split,
    load_photographs,
)


def picture(seed, height=32, width=32):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), "uint8")


def arrays(shape, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "x_train": rng.integers(0, 256, (5, *shape), "uint8"),
        "y_train": rng.integers(0, 10, (5, 1), "uint8"),
        "x_test": rng.integers(0, 256, (2, *shape), "uint8"),
        "y_test": rng.integers(0, 10, (2, 1), "uint8"),
    }


def write_images(folder, names):
    """One image per name; its seed is the position of the name."""
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed)).save(path)


@pytest.fixture
def photographs(tmp_path):
    """Folder of five photographs with labels, one of them grey, in two folders."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "more").mkdir()
    rows = [("b.png", 7), ("a.jpeg", 3), ("more/c.png", 999), ("d.png", 0), ("e.png", 7)]
    for seed, (name, _) in enumerate(rows):
        Image.fromarray(picture(seed, 40, 60)).save(folder / name)
    Image.fromarray(picture(3, 40, 60)[..., 0]).save(folder / "d.png")
    (folder / "README").write_text("not an image")
    write_labels(folder, rows)
    return folder


def write_labels(folder, rows, columns=("file", "index")):
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([columns, *rows])


# CIFAR-10 and MNIST


@pytest.mark.parametrize("name, shape", [("cifar10", (32, 32, 3)), ("mnist", (28, 28))])
def test_arrays_of_keras(monkeypatch, name, shape):
    given = arrays(shape)
    parts = [(given[f"x_{part}"], given[f"y_{part}"]) for part in ("train", "test")]
    monkeypatch.setattr(getattr(keras.datasets, name), "load_data", lambda: tuple(parts))
    found = getattr(datasets, f"load_{name}")()
    np.testing.assert_array_equal(found.x_test, given["x_test"])
    np.testing.assert_array_equal(found.y_train, given["y_train"][:, 0])
    assert found.y_train.dtype == np.int64 and len(found.class_names) == 10
    assert "keras.datasets, lossless" in found.source and not found.lossy


def test_download_that_fails(monkeypatch):
    def fail():
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.datasets.mnist, "load_data", fail)
    with pytest.raises(ValueError, match="cannot load MNIST.*URL fetch failure.*path of a copy"):
        load_mnist()


def test_split_of_mnist(monkeypatch):
    """Every image holds its number, which is also its class."""
    numbers = np.arange(42_010)
    x = numbers.astype(">u2").view(np.uint8).reshape(-1, 1, 2)
    mnist = Dataset(x, numbers, x[:3], numbers[:3], ("0",), "numbers")
    monkeypatch.setattr(datasets, "load_mnist", {"here": mnist}.__getitem__)
    found = load_mnist_split("here")
    assert (found.x_train.shape, found.x_test.shape) == ((33_600, 1, 2), (8_400, 1, 2))
    together = np.concatenate([found.y_train, found.y_test])
    np.testing.assert_array_equal(np.sort(together), numbers[:42_000])
    assert found.y_train[:3].tolist() == [4264, 19872, 30141] and found.y_test[:3].tolist() == [
        36431,
        16787,
        4740,
    ]
    for images_, labels in (
        (found.x_train, found.y_train),
        (found.x_test, found.y_test),
        found.more["mnist_test"],
    ):
        np.testing.assert_array_equal(images_.reshape(-1, 2).view(">u2")[:, 0], labels)
    assert len(found.more["mnist_test"][1]) == 3
    assert found.source == "numbers; the first 42000 training images, split with seed 42"
    empty = dataclasses.replace(mnist, x_test=x[:0], y_test=numbers[:0])
    monkeypatch.setattr(datasets, "load_mnist", lambda path: empty)
    assert load_mnist_split().more == {}
    few = dataclasses.replace(mnist, x_train=x[:41_999], y_train=numbers[:41_999])
    monkeypatch.setattr(datasets, "load_mnist", lambda path: few)
    with pytest.raises(
        ValueError, match=r"41999 training images \(numbers\). Expected at least 42"
    ):
        load_mnist_split()


@pytest.mark.parametrize("load, shape", [(load_cifar10, (32, 32, 3)), (load_mnist, (28, 28))])
def test_archive_of_arrays(tmp_path, load, shape):
    given = arrays(shape)
    np.savez(tmp_path / "both.npz", **given)
    found = load(tmp_path / "both.npz")
    for key, array in given.items():
        expected = array if key[0] == "x" else array[:, 0]
        np.testing.assert_array_equal(getattr(found, key), expected)
    assert "arrays of both.npz" in found.source
    np.savez(tmp_path / "one.npz", x=given["x_train"], y=given["y_train"][:, 0])
    found = load(tmp_path / "one.npz")
    np.testing.assert_array_equal(found.x_train, given["x_train"])
    assert found.x_test.shape == (0, *shape) and found.y_test.shape == (0,)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x_train": None}, "holds the arrays x_test, y_test, y_train. Expected x_train, y_train"),
        ({"x_test": np.zeros((2, 32, 32, 3))}, "x_test of .* is float64 of shape"),
        ({"x_test": np.zeros((2, 28, 28), "uint8")}, r"shape \(2, 28, 28\).*\(n, 32, 32, 3\)"),
        ({"x_test": np.zeros((0, 32, 32, 3), "uint8")}, "n at least 1"),
        ({"y_test": np.zeros(3, int)}, r"y_test of .* shape \(3,\). Expected integers of shape"),
        ({"y_test": np.zeros(2)}, "y_test of .* is float64"),
        ({"y_test": np.array([3, 10])}, r"values 3\.\.10. Expected classes 0\.\.9"),
    ],
)
def test_archive_of_other_arrays(tmp_path, change, message):
    given = {k: v for k, v in {**arrays((32, 32, 3)), **change}.items() if v is not None}
    np.savez(tmp_path / "wrong.npz", **given)
    with pytest.raises(ValueError, match=message):
        load_cifar10(tmp_path / "wrong.npz")


def test_damaged_archive_of_arrays(tmp_path):
    path = tmp_path / "cut.npz"
    np.savez(path, **arrays((28, 28)))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cut\.npz.* cannot be read as .npz.*damaged"):
        load_mnist(path)


FILES = ["train/cat/2.png", "train/cat/1.png", "test/ship/1.png", "train/airplane/5.png"]


def test_folder_of_images(tmp_path):
    write_images(tmp_path / "copy", FILES)
    found = load_cifar10(tmp_path / "copy")
    np.testing.assert_array_equal(found.x_train, [picture(3), picture(1), picture(0)])
    np.testing.assert_array_equal(found.y_train, [0, 3, 3])
    np.testing.assert_array_equal(found.x_test, [picture(2)])
    np.testing.assert_array_equal(found.y_test, [8])
    assert "copy (lossless image files" in found.source and not found.lossy


@pytest.mark.parametrize("suffix", ["xz", "gz"])
def test_archive_of_images_equals_the_folder(tmp_path, suffix):
    write_images(tmp_path / "copy", FILES)
    path = tmp_path / f"copy.tar.{suffix}"
    with tarfile.open(path, f"w:{suffix}") as archive:
        archive.add(tmp_path / "copy", "copy")
    found, expected = load_cifar10(path), load_cifar10(tmp_path / "copy")
    for key in ("x_train", "y_train", "x_test", "y_test"):
        np.testing.assert_array_equal(getattr(found, key), getattr(expected, key))
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"copy\.tar.* cannot be read as an archive.*not complete"):
        load_cifar10(path)


def test_images_of_one_part_and_in_jpeg_form(tmp_path):
    write_images(tmp_path / "copy", ["truck/1.jpg", "cat/1.jpg", "cat/.hidden.jpg"])
    found = load_cifar10(tmp_path / "copy")
    np.testing.assert_array_equal(found.y_train, [3, 9])
    assert found.x_test.shape == (0, 32, 32, 3)
    assert found.lossy and "JPEG form, lossy: results are not results on CIFAR-10" in found.source


def test_other_folders_of_images(tmp_path):
    write_images(tmp_path / "names", ["cat/1.png", "cats/1.png", "1.png"])
    with pytest.raises(ValueError, match=r"2 images .* no class folder: 1\.png, cats/1\.png"):
        load_cifar10(tmp_path / "names")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="none' holds no image. Expected folders named airplane"):
        load_cifar10(tmp_path / "none")
    (tmp_path / "size" / "cat").mkdir(parents=True)
    Image.fromarray(picture(0, 30, 31)).save(tmp_path / "size" / "cat" / "1.png")
    with pytest.raises(ValueError, match=r"cat/1\.png.* has 31 x 30 pixels.* have 32 x 32"):
        load_cifar10(tmp_path / "size")


def test_damaged_image_in_an_archive(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, "PNG")
    content = buffer.getvalue()[:500]
    member = tarfile.TarInfo("train/cat/1.png")
    member.size = len(content)
    with tarfile.open(tmp_path / "all.tar.gz", "w:gz") as archive:
        archive.addfile(member, io.BytesIO(content))
    with pytest.raises(ValueError, match=r"train/cat/1\.png in .*all\.tar\.gz.*as an image"):
        load_cifar10(tmp_path / "all.tar.gz")


def test_data_that_are_not_there_or_of_another_kind(tmp_path):
    for load in (load_cifar10, load_mnist, load_photographs):
        with pytest.raises(FileNotFoundError, match="nothing', which does not exist"):
            load(tmp_path / "nothing")
    (tmp_path / "data.bin").write_bytes(b"0")
    for load, message in (
        (load_cifar10, "Expected .npz, a folder of class folders"),
        (load_mnist, "Expected an .npz archive"),
        (load_photographs, "which is a file"),
    ):
        with pytest.raises(ValueError, match=message):
            load(tmp_path / "data.bin")


# Photographs


def test_all_photographs_in_the_order_of_their_paths(photographs):
    found = load_photographs(photographs, size=20)
    assert found.names == ["a.jpeg", "b.png", "d.png", "e.png", "more/c.png"]
    np.testing.assert_array_equal(found.y, [3, 7, 0, 7, 999])
    assert found.x.shape == (5, 20, 20, 3) and found.x.dtype == np.uint8
    assert (found.x[2] == found.x[2][..., :1]).all()  # grey
    assert found.source.startswith("all of 5 photographs in photographs, 20 pixels (whole, bicubic")
    again = load_photographs(photographs, size=20, first="d.png")
    assert again.names == ["d.png", "a.jpeg", "b.png", "e.png", "more/c.png"]


def test_both_ways_to_make_a_square(photographs):
    whole = load_photographs(photographs, size=20)
    image = Image.fromarray(picture(0, 40, 60))
    expected = np.asarray(image.resize((20, 20), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(whole.x[1], expected)
    middle = load_photographs(photographs, size=20, resize=30)
    expected = image.resize((45, 30), Image.Resampling.BILINEAR).crop((12, 5, 32, 25))
    np.testing.assert_array_equal(middle.x[1], np.asarray(expected))
    assert "shorter side to 30, middle, bilinear" in middle.source


def test_draws_of_photographs(photographs):
    three = load_photographs(photographs, 3, 8, seed=4)
    assert len(set(three.names)) == 3
    assert load_photographs(photographs, 5, 8, seed=4).names[:3] == three.names
    assert load_photographs(photographs, 5, 8, seed=5).names[:3] != three.names
    published = load_photographs(photographs, 12, 8, replace=True, first="e.png")
    assert published.names[0] == "e.png" and "e.png" not in published.names[1:]
    assert len(published.x) == len(published.y) == 12
    assert published.source.startswith("12 drawn with replacement, seed 0, e.png first, of 5")
    labels = list_photographs(photographs)
    assert published.y.tolist() == [labels[name] for name in published.names]
    with pytest.raises(ValueError, match="6 are to be drawn from 5. Expected 1 to 5, or replace"):
        load_photographs(photographs, 6)
    with pytest.raises(ValueError, match="replace is True, but count is None"):
        load_photographs(photographs, replace=True)
    with pytest.raises(ValueError, match="first is 'f.png', which is not among the 5"):
        load_photographs(photographs, 2, first="f.png")


def test_draw():
    found = draw(1000, 200, seed=1, first=30)
    assert found[0] == 30 and len(set(found.tolist())) == 200
    np.testing.assert_array_equal(draw(1000, 50, seed=1, first=30), found[:50])
    np.testing.assert_array_equal(np.sort(draw(7, 7)), range(7))
    many = draw(20, 4000, seed=1, replace=True, first=19)
    assert many[0] == 19 and set(many[1:].tolist()) == set(range(19))
    counts = np.bincount(many[1:], minlength=20)[:19]
    assert counts.min() > 150 and counts.max() < 280  # 210 each, standard deviation 14
    np.testing.assert_array_equal(draw(1, 1, first=0), [0])
    np.testing.assert_array_equal(draw(1, 1, first=0, replace=True), [0])
    for total, count, options in ((5, 0, {}), (5, 6, {}), (1, 2, {"first": 0, "replace": True})):
        with pytest.raises(ValueError, match=f"{count} are to be drawn from {total}"):
            draw(total, count, **options)
    with pytest.raises(ValueError, match=r"first is 5; expected a position 0\.\.4"):
        draw(5, 2, first=5)


def test_class_folders(tmp_path):
    for index in range(1000):
        (tmp_path / f"n{index * 7:08d}").mkdir()
    for seed, index in enumerate((998, 2, 2)):
        Image.fromarray(picture(seed)).save(tmp_path / f"n{index * 7:08d}" / f"{seed}.png")
    found = load_photographs(tmp_path, size=32)
    np.testing.assert_array_equal(found.y, [2, 2, 998])
    np.testing.assert_array_equal(found.x, [picture(1), picture(2), picture(0)])
    Image.fromarray(picture(0)).save(tmp_path / "loose.png")
    with pytest.raises(ValueError, match=r"1 images .* have no label: loose\.png"):
        list_photographs(tmp_path)
    (tmp_path / "loose.png").unlink()
    (tmp_path / "n00000000").rmdir()
    with pytest.raises(ValueError, match="no labels.csv and 999 class folders.*Expected all 1000"):
        list_photographs(tmp_path)


def test_labels_that_are_wrong(photographs):
    rows = [("a.jpeg", 3), ("b.png", 7), ("d.png", 0)]
    write_labels(photographs, rows)
    with pytest.raises(ValueError, match=r"2 images .* have no label: e\.png, more/c\.png"):
        list_photographs(photographs)
    write_labels(photographs, [*rows, ("f.png", 1)])
    with pytest.raises(FileNotFoundError, match=r"names 1 images that are not there: f\.png"):
        list_photographs(photographs)
    for index in ("1000", "-1", "tench", ""):
        write_labels(photographs, [*rows, ("e.png", index)])
        with pytest.raises(ValueError, match=rf"'e\.png' the index '{index}'. Expected 0\.\.999"):
            list_photographs(photographs)
    write_labels(photographs, [*rows, ("./a.jpeg", 4)])
    with pytest.raises(ValueError, match=r"'a\.jpeg' twice"):
        list_photographs(photographs)
    write_labels(photographs, rows, ("file", "class"))
    with pytest.raises(ValueError, match="has the columns file, class. Expected file and index"):
        list_photographs(photographs)


def test_folder_without_photographs(tmp_path):
    with pytest.raises(ValueError, match="holds no image. Expected files ending in .bmp"):
        load_photographs(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "text"])
def test_damaged_photograph(photographs, damage):
    path = photographs / "a.jpeg"
    path.write_bytes(path.read_bytes()[:1500] if damage == "cut" else b"<html>404</html>")
    with pytest.raises(ValueError, match=r"a\.jpeg.* cannot be read as an image.*damaged"):
        load_photographs(photographs, size=8)


def test_other_photographs(tmp_path):
    Image.fromarray(np.full((4, 4), 40000, "uint16")).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png.* more than 8 bits"):
        images.load_photograph(tmp_path / "deep.png", 4, None)
    with pytest.raises(FileNotFoundError, match=r"no image .*nothing\.png"):
        images.load_photograph(tmp_path / "nothing.png", 4)
    with pytest.raises(ValueError, match="size of a photograph is 0 pixels"):
        images.load_photograph(tmp_path / "deep.png", 0)


# Files of other people


@pytest.mark.data
def test_photographs_and_arrays_of_the_data_folder(data_dir):
    labels = list_photographs(data_dir / "imagenet")
    assert list(labels.values()) == list(range(0, 1000, 5))
    assert load_photographs(data_dir / "imagenet", 3).x.shape == (3, 224, 224, 3)
    mnist = load_mnist(data_dir / "mnist" / "mnist.npz")
    assert (mnist.x_train.shape, mnist.x_test.shape) == ((60000, 28, 28), (10000, 28, 28))
    cifar = load_cifar10(data_dir / "cifar10" / "cifar10_lossless_4000.npz")
    assert cifar.x_train.shape == (4000, 32, 32, 3) and not cifar.lossy
    assert cifar.y_train[:3].tolist() == [6, 9, 9]  # frog, truck, truck
