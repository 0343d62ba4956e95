"""Data of an audit: folders, tables, archives and functions, and what is wrong with them."""

import io
import zipfile

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.helpers.audit_networks import write_data
from tfexplain import report

FUNCTIONS = """
import io
import zipfile

import numpy as np
import tensorflow as tf

x = np.arange(60, dtype="float32").reshape(12, 5)
y = np.arange(12) % 3

def batches():
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(5)

def one_hot():
    return tf.data.Dataset.from_tensor_slices((x, np.eye(3)[y]))

def inputs():
    return tf.data.Dataset.from_tensor_slices(x).repeat()

def empty():
    return tf.data.Dataset.from_tensor_slices((x, y)).take(0)

def triple():
    return tf.data.Dataset.from_tensor_slices((x, y, y))

def arrays():
    return x, y

def text():
    return "nothing"

def broken():
    raise RuntimeError("no disk")

def unknown_shapes():
    def samples():
        yield from zip(x, y)
    return tf.data.Dataset.from_generator(samples, output_types=(tf.float32, tf.int32))

def labels_by_name():
    return tf.data.Dataset.from_tensor_slices((x, {"a": y}))

def unreadable():
    return tf.data.Dataset.from_tensor_slices(["no.tfrecord"]).map(tf.io.read_file)

def no_samples():
    return np.ones((0, 5)), np.ones(0, int)

def ragged():
    return [x, y]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data of all kinds, for a network of images and one of tables."""
    path = tmp_path_factory.mktemp("data")
    x = write_data(path)
    rows = ["a,b,label,c,d,e"]
    rows += [
        ",".join([*map(str, row[:2]), name, *map(str, row[2:])])
        for row, name in zip(x, "usvu", strict=True)
    ]
    (path / "named.csv").write_text("\n".join(rows))
    (path / "plain.csv").write_text("\n".join(",".join(map(str, [*row, 1])) for row in x))
    (path / "functions_of_audits.py").write_text(FUNCTIONS)
    return path


def targets(source, model="table.keras", **options):
    """The labels that are read from a source."""
    given = {"count": 8, **options}
    shape, outputs = ((6, 6, 1), 3) if model == "images.keras" else ((5,), 3)
    return report.load_data(source, shape, outputs, **given)


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)


RECORDS = """
import tensorflow as tf


def samples():
    features = {"x": tf.io.FixedLenFeature([], tf.string), "y": tf.io.FixedLenFeature([], tf.int64)}

    def parsed(record):
        found = tf.io.parse_single_example(record, features)
        return tf.io.decode_raw(found["x"], tf.float32), found["y"]

    return tf.data.TFRecordDataset("samples.tfrecord").map(parsed)
"""


@pytest.mark.usefixtures("here")
def test_class_folders_are_labels():
    data = targets("photos", "images.keras")
    assert data.y.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.x.shape == (6, 6, 6, 1) and data.pixels.dtype == np.uint8
    np.testing.assert_array_equal(data.preprocess(data.pixels), data.x)
    scaled = targets("photos", "images.keras", preprocess="scale=0.5,mean=1")
    np.testing.assert_allclose(scaled.x, data.x / 2 - 1)
    np.testing.assert_allclose(scaled.preprocess(scaled.pixels), scaled.x)
    assert targets("photos", "images.keras", labels="none").y is None
    some = targets("photos", "images.keras", count=2, seed=1)
    assert len(some.x) == 2 and "2 of 6 images, drawn at random" in some.notes[0]
    places = [next(i for i in range(6) if (data.x[i] == image).all()) for image in some.x]
    np.testing.assert_array_equal(some.y, data.y[places])


@pytest.mark.usefixtures("here")
def test_class_folders_follow_the_names_of_the_labels(tmp_path):
    (tmp_path / "names.txt").write_text("eel\nnewt\ncat\ndog\n")
    data = report.load_data("photos", (6, 6, 1), 4, labels=str(tmp_path / "names.txt"), count=8)
    assert data.y.tolist() == [2, 2, 3, 3, 0, 0]
    unknown = report.load_data("photos", (6, 6, 1), 4, count=8)
    assert unknown.y is None and "are 3, and the model has 4 outputs" in unknown.notes[0]
    (tmp_path / "names.json").write_text('["eel", "cat"]')
    with pytest.raises(ValueError, match="dog are not among the names"):
        targets("photos", "images.keras", labels=str(tmp_path / "names.json"))


def test_records_are_read_by_a_function(tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    with tf.io.TFRecordWriter(str(tmp_path / "samples.tfrecord")) as writer:
        for row, label in zip(x, [2, 0, 1, 2], strict=True):
            features = {
                "x": tf.train.Feature(bytes_list=tf.train.BytesList(value=[row.tobytes()])),
                "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
            }
            example = tf.train.Example(features=tf.train.Features(feature=features))
            writer.write(example.SerializeToString())
    (tmp_path / "records_of_audits.py").write_text(RECORDS)
    monkeypatch.chdir(tmp_path)
    data = report.load_data("records_of_audits:samples", (5,), 3, count=3)
    np.testing.assert_array_equal(data.x, x[:3])
    assert data.y.tolist() == [2, 0, 1] and "the first 3 samples" in data.notes[0]


@pytest.mark.usefixtures("here")
def test_tables_hold_labels_in_a_column(folder):
    x = np.load("x.npy")
    named = targets("named.csv")
    np.testing.assert_allclose(named.x, x)
    assert named.y.tolist() == [1, 0, 2, 1]
    plain_table = targets("plain.csv")
    np.testing.assert_allclose(plain_table.x, x)
    assert plain_table.y.tolist() == [1] * 4
    scaled = targets("plain.csv", preprocess="scale=2")
    np.testing.assert_allclose(scaled.x, 2 * x)


@pytest.mark.usefixtures("here")
def test_functions_return_datasets():
    for name in ("batches", "one_hot", "arrays"):
        data = targets(f"functions_of_audits:{name}")
        count = 12 if name == "arrays" else 8
        np.testing.assert_array_equal(data.x, np.arange(60).reshape(12, 5)[:count])
        assert data.y.tolist() == [place % 3 for place in range(count)]
    inputs = targets("functions_of_audits:inputs", preprocess="scale=0.5")
    assert inputs.y is None and inputs.x[0, 1] == 0.5
    assert "the first 8 samples" in inputs.notes[0]


@pytest.mark.usefixtures("here")
def test_labels_of_arrays(tmp_path):
    assert targets("xy.npz").y.tolist() == [2, 1, 0, 0]
    assert targets("x.npy").y is None
    np.save(tmp_path / "y.npy", [1, 1, 2, 0])
    assert targets("x.npy", labels=str(tmp_path / "y.npy")).y.tolist() == [1, 1, 2, 0]
    np.save(tmp_path / "y.npy", np.eye(3)[[1, 1, 2, 0]])
    assert targets("x.npy", labels=str(tmp_path / "y.npy")).y.tolist() == [1, 1, 2, 0]


@pytest.mark.parametrize(
    ("source", "options", "error", "message"),
    [
        ("nothing", {}, ValueError, "There is no such file. Expected a folder of images"),
        ("x.txt", {}, ValueError, "Expected a folder of images"),
        ("empty", {}, ValueError, "holds no image"),
        ("missing.csv", {}, FileNotFoundError, "missing.csv does not exist"),
        ("bad.csv", {}, ValueError, "row 2 of the data has 'none', no number"),
        ("narrow.csv", {}, ValueError, "1 rows of 2 columns. The model takes 5"),
        ("functions_of_audits:empty", {}, ValueError, "is an empty Dataset"),
        ("functions_of_audits:triple", {}, TypeError, "elements of 3 parts"),
        ("functions_of_audits:text", {}, TypeError, "returned str"),
        ("functions_of_audits:broken", {}, ValueError, "RuntimeError: no disk"),
        ("functions_of_audits:absent", {}, ValueError, "no function 'absent'"),
        ("functions_of_audits:labels_by_name", {}, TypeError, "elements of dict"),
        ("functions_of_audits:unreadable", {}, ValueError, "unreadable failed: NotFoundError"),
        ("functions_of_audits:no_samples", {}, ValueError, "returned no sample"),
        ("functions_of_audits:ragged", {}, ValueError, "ragged failed: ValueError"),
        ("latin.csv", {}, ValueError, "latin.csv cannot be read as a table"),
        ("x.npy", {"labels": "cats"}, ValueError, "The labels are 'cats'"),
        ("x.npy", {"labels": "cats.txt"}, FileNotFoundError, "cats.txt does not exist"),
        ("x.npy", {"labels": "short.npy"}, ValueError, "4 samples and labels of shape"),
        ("x.npy", {"labels": "large.npy"}, ValueError, "go from 0 to 3. Expected"),
        ("x.npy", {"labels": "real.npy"}, ValueError, "are float64. Expected class indices"),
        ("x.npy", {"labels": "list.json"}, ValueError, "no list of names"),
        ("x.npy", {"labels": "blank.txt"}, ValueError, "none of them empty"),
        ("photos", {"labels": "twice.txt"}, ValueError, "cat are names of several outputs"),
        ("photos", {"labels": "short.npy"}, ValueError, "one label per sample, and the samples"),
    ],
)
def test_wrong_data(folder, tmp_path, monkeypatch, source, options, error, message):
    for file in folder.iterdir():
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.csv").write_text("1,2,3,4,5\n1,2,none,4,5\n")
    (tmp_path / "latin.csv").write_bytes("größe,b,c,d,e".encode("latin-1"))
    (tmp_path / "narrow.csv").write_text("1,2\n")
    (tmp_path / "list.json").write_text('{"cat": 1}')
    (tmp_path / "twice.txt").write_text("cat\ndog\neel\ncat\n")
    (tmp_path / "blank.txt").write_text("cat\n\neel\n")
    np.save("short.npy", [1, 2])
    np.save("large.npy", [0, 1, 2, 3])
    np.save("real.npy", [0.5, 1, 2, 0])
    model = "images.keras" if source == "photos" else "table.keras"
    with pytest.raises(error, match=message):
        targets(source, model, **options)


@pytest.mark.usefixtures("here")
def test_a_table_for_images_is_refused():
    with pytest.raises(ValueError, match="is a table, and the model takes inputs of shape"):
        targets("plain.csv", "images.keras")


# --- what would go wrong in silence ---


def read(shape=(3,), outputs=2, source="data.csv", **options):
    return report.load_data(source, shape, outputs, **{"count": 8, **options})


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_coordinate_y_is_no_label_where_there_is_another(place):
    (place / "data.csv").write_text("x,y,z,label\n5,0,3,1\n6,1,4,0\n")
    data = read()
    np.testing.assert_array_equal(data.x, [[5, 0, 3], [6, 1, 4]])
    assert data.y.tolist() == [1, 0]
    (place / "data.csv").write_text("a,y,b,c\n5,0,3,1\n6,1,4,0\n")
    assert read().y.tolist() == [0, 1]


@pytest.mark.parametrize("name", ["label", " Target", "class"])
def test_labels_are_no_input_where_a_column_is_missing(place, name):
    (place / "data.csv").write_text(f"a,b,{name}\n5,0,3\n6,1,4\n")
    with pytest.raises(ValueError, match="3 columns, as many as the model takes, and one is calle"):
        read()
    (place / "data.csv").write_text("x,y,z\n5,0,3\n6,1,4\n")
    assert read().y is None


@pytest.mark.parametrize("cell", ["", "nan", "missing"])
def test_a_first_row_with_a_gap_is_no_head(place, cell):
    (place / "data.csv").write_text(f"1,{cell},3\n4,5,6\n")
    with pytest.raises(ValueError, match=f"row 1 of the data has {cell!r}, no number"):
        read()


def test_numbers_of_columns_and_rows_are_no_samples(place):
    (place / "data.csv").write_text("0,1,2\n7,8,9\n")
    data = read()
    np.testing.assert_array_equal(data.x, [[7, 8, 9]])
    assert "the first row of data.csv, 0, 1, 2, names columns" in data.notes[0]
    (place / "data.csv").write_text(",a,b,c\n0,1,2,0\n1,4,5,1\n")
    with pytest.raises(ValueError, match="a column without a name. Numbers of rows are no input"):
        read()


def test_text_labels_name_the_classes(place):
    (place / "data.csv").write_text("a,b,c,kind\n1,2,3,dog\n4,5,6,cat\n")
    data = read()
    assert data.y.tolist() == [1, 0] and data.classes == {"0": "cat", "1": "dog"}


def test_names_of_labels_name_the_classes_of_all_data(place):
    np.savez(place / "data.npz", x=np.ones((2, 3)), y=[1, 0])
    (place / "names.txt").write_text("cat\ndog\n\n")
    data = read(source="data.npz", labels="names.txt")
    assert data.classes == {"0": "cat", "1": "dog"} and data.y.tolist() == [1, 0]
    (place / "names.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match="at least one, and none of them empty"):
        read(source="data.npz", labels="names.txt")
    (place / "names.txt").write_text("cat\ndog\neel\n")
    with pytest.raises(ValueError, match="are 3 names, and the model has 2 outputs"):
        read(source="data.npz", labels="names.txt")


def test_an_archive_says_which_array_is_x(place):
    np.savez(place / "data.npz", x_test=np.ones((2, 3)), x_train=np.ones((4, 3)))
    with pytest.raises(ValueError, match="has the keys x_test, x_train. Expected the samples as x"):
        read(source="data.npz")
    np.savez(place / "data.npz", only=np.ones((2, 3)))
    assert read(source="data.npz").x.shape == (2, 3)
    np.savez(place / "data.npz", x=np.ones((1, 3)), y=np.array([None]))
    with pytest.raises(ValueError, match="data.npz holds labels of type object"):
        read(source="data.npz")


@pytest.mark.parametrize("y", [[[1, 1], [0, 1]], [[0, 0], [0, 1]], [[0.4, 0.6], [1, 0]]])
def test_several_classes_of_one_sample_are_refused(place, y):
    np.savez(place / "data.npz", x=np.ones((2, 3)), y=y)
    with pytest.raises(ValueError, match="have 2 columns that are not one-hot"):
        read(source="data.npz")


def test_labels_choose_nothing_in_a_model_with_a_single_output(place):
    (place / "data.csv").write_text("a,b,c,label\n1,2,3,0\n4,5,6,1\n")
    data = read(outputs=1)
    assert data.y is None
    assert data.notes == ["the model has a single output: the labels of data.csv choose none."]


def test_hidden_images_are_not_read_and_mixed_folders_are_no_labels(place):
    for name in ("cat/1.png", "dog/1.png"):
        (place / "photos" / name).parent.mkdir(parents=True)
        Image.fromarray(np.zeros((4, 4), "uint8")).save(place / "photos" / name)
    (place / "photos" / "cat" / "._1.png").write_bytes(b"not an image")
    (place / "photos" / ".cache").mkdir()
    (place / "photos" / ".cache" / "1.png").write_bytes(b"not an image")
    data = read((4, 4, 1), source="photos")
    assert data.y.tolist() == [0, 1] and not data.notes
    Image.fromarray(np.zeros((4, 4), "uint8")).save(place / "photos" / "2.png")
    data = read((4, 4, 1), source="photos")
    assert data.y is None and len(data.x) == 3
    assert "images beside folders of images" in data.notes[0]


@pytest.mark.usefixtures("here")
def test_datasets_of_unknown_shapes():
    data = targets("functions_of_audits:unknown_shapes")
    np.testing.assert_array_equal(data.x, np.arange(40).reshape(8, 5))
    assert data.y.tolist() == [place % 3 for place in range(8)]


# --- what would be other numbers, or too many ---


@pytest.mark.parametrize("label", ["1e20", "-1e20", "9007199254740992"])
def test_labels_that_are_no_integers_of_64_bits_are_refused(label, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(f"a,b,label\n1,2,0\n3,4,{label}\n")
    with pytest.raises(ValueError, match="t.csv: row 2 of the data has the label"):
        report.load_data(str(table), (2,), 3, count=9)
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=np.array([0.0, float(label)]))
    with pytest.raises(ValueError, match=r"a.npz: row 2 of the data has the label"):
        report.load_data(str(tmp_path / "a.npz"), (2,), 3, count=9)


@pytest.mark.parametrize("cell", ["1e39", "-4e38"])
def test_a_number_beyond_float32_is_named_with_its_row(cell, tmp_path):
    table = tmp_path / "t.csv"
    table.write_text(f"a,b,label\n1,2,0\n3,{cell},1\n")
    with pytest.raises(ValueError, match=rf"t.csv: row 2 of the data has {cell}, .*float32"):
        report.load_data(str(table), (2,), 3, count=9)


def declared(path, shape, dtype="float32"):
    """Writes an archive whose array declares a shape, and holds next to nothing."""
    header = io.BytesIO()
    fields = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_2_0(header, fields)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header.getvalue() + bytes(1000))


@pytest.mark.parametrize(
    ("shape", "dtype", "error", "message"),
    [
        ((2**40, 2), "float32", MemoryError, r"needs 8,796,093,022,208 bytes, and [\d,]+ are"),
        ((2**40, 3), "float32", ValueError, r"shape \(1099511627776, 3\). The model takes \(n, 2"),
        ((2**40, 2), "complex64", ValueError, "type complex64. Expected numbers"),
        ((0, 2), "float32", ValueError, "at least one sample"),
        ((4, 2), "float32", None, ""),
        ((400, 2), "float32", ValueError, "cannot be read"),
    ],
)
def test_arrays_are_refused_by_their_header(shape, dtype, error, message, tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    declared(path, shape, dtype)
    if error is None:
        assert report.load_data(str(path), (2,), 3, count=9).x.shape == shape
        return
    if "cannot" not in message:
        # Nothing is unpacked before.
        monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was unpacked"))
    with pytest.raises(error, match=message) as seen:
        report.load_data(str(path), (2,), 3, count=9)
    assert "a.npz" in str(seen.value)


def test_labels_are_refused_by_their_header(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 2)), y=np.array(["a", "b"]))
    with pytest.raises(ValueError, match="a.npz holds labels of type <U1"):
        report.load_data(str(tmp_path / "a.npz"), (2,), 3, count=9)
