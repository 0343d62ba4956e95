"""The page of an audit: one file that says what the Datasets say, whole, safe and by itself."""

import base64
import html.parser
import io
import json
import re

import numpy as np
import pytest
from keras import layers
from matplotlib.figure import Figure
from PIL import Image

import tfexplain
from tests.helpers.networks import randomize, sequential
from tfexplain import report
from tfexplain.audits import Gallery, Grid, Tile
from tfexplain.audits.parameter_randomization import MOST_COLUMNS
from tfexplain.audits.registry import in_reports
from tfexplain.report import Thresholds
from tfexplain.report.figures import PERCENTILE, drawn, small_map
from tfexplain.report.page import _gallery, _grid

# A name that would be markup.
MINE = "<b>mine</b>"
VOID = {"meta", "link", "img", "br"}


class Page(html.parser.HTMLParser):
    """What is in a page; tags that are not closed are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words, self.ids = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def picture(source):
    kind, _, data = source.partition(",")
    assert kind in ("data:image/png;base64", "data:image/jpeg;base64")
    image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
    image.load()
    return image


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """Images, with a method of another name and one that does not fit."""
    model = randomize(
        sequential(
            (6, 6, 1),
            layers.Flatten(),
            layers.Dense(6, "relu", name="hidden"),
            layers.Dense(3, name="scores"),
        )
    )
    folder = tmp_path_factory.mktemp("page") / "run"
    methods = {
        "gradient": {},
        MINE: tfexplain.create_analyzer("lrp.z", model),
        "grad_cam": {},
        "smoothgrad": {"samples": 2},
    }
    x = np.random.default_rng(0).uniform(size=(9, 6, 6, 1)).astype("float32")
    about = {
        "command": "tfexplain audit m.keras <x>",
        "notes": ["three & more"],
        "classes": {"0": "cat", "1": "dog", "2": "eel"},
    }
    found = tfexplain.audit(
        model, x, np.arange(9) % 3, methods=methods, preset="quick", folder=folder, about=about
    )
    return found, folder


@pytest.fixture(scope="module")
def page(audited):
    return Page((audited[1] / "report.html").read_text(encoding="utf-8"))


def test_every_part_has_words():
    for name, audit in tfexplain.AUDITS.items():
        assert audit.name == name and audit.title
        assert audit.question.endswith("?") and audit.question.count("?") == 1
        assert audit.caption or not audit.in_report


def test_the_page_needs_nothing_from_outside(page, audited):
    assert not page.of("script") and not page.of("iframe")
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.of("img"))
    assert [link["href"] for link in page.of("link")] == ["data:,"]
    handlers = [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert not handlers
    text = (audited[1] / "report.html").read_text(encoding="utf-8")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style and "@import" not in style
    # Links are followed by people only.
    outside = {link["href"] for link in page.of("a") if not link["href"].startswith("#")}
    assert outside and all(
        re.match(r"https://(arxiv\.org/abs|doi\.org)/\S+$", href) for href in outside
    )


def test_the_page_is_for_all_screens(page, audited):
    viewport = [meta for meta in page.of("meta") if meta.get("name") == "viewport"]
    assert viewport[0]["content"] == "width=device-width, initial-scale=1"
    text = (audited[1] / "report.html").read_text(encoding="utf-8")
    for wanted in ("prefers-color-scheme: dark", "@media print", "@media (max-width"):
        assert wanted in text
    assert page.of("html")[0]["lang"] == "en"
    assert all(image["alt"] for image in page.of("img"))


def test_links_inside_lead_somewhere(page):
    targets = {link["href"][1:] for link in page.of("a") if link["href"].startswith("#")}
    assert targets <= set(page.ids) and len(set(page.ids)) == len(page.ids)
    assert {"examples", "parameter_randomization", "koopman", "methods", "settings"} <= targets


def test_the_page_says_what_the_verdict_says(page, audited):
    verdict = audited[0].verdict()
    assert [row.method for row in verdict.rows] == verdict.methods
    for row in verdict.rows:
        assert f"{row.method} {row.trust} {row.passed} of {row.measured} tests" in page.text
        for cell in row.cells.values():
            word, _, reason = cell.word.partition(": ")
            assert f"{cell.text.replace('^', ' ')} {word} {reason}".strip() in page.text
    assert "Not audited: 1 of the methods grad_cam grad_cam needs" in page.text
    passed = sum(row.trust == "trustworthy" for row in verdict.rows)
    assert f"3 methods were audited on 8 of 9 samples; {passed} of them passed" in page.text
    styles = [cell.get("class") for cell in page.of("td") if cell.get("data-title") == "Verdict"]
    expected = {"trustworthy": "pass", "not trustworthy": "fail", "undecided": ""}
    assert styles == [expected[row.trust] for row in verdict.rows]


def test_names_are_no_markup(page, audited):
    text = (audited[1] / "report.html").read_text(encoding="utf-8")
    assert MINE not in text and "&lt;b&gt;mine&lt;/b&gt;" in text
    assert MINE in page.text
    assert "tfexplain audit m.keras <x>" in page.text and "three & more" in page.text


def test_the_gallery_has_a_map_of_each_method(page, audited):
    dataset = audited[0].datasets["examples"]
    maps = [i for i in page.of("img") if i["alt"] == f"map by {MINE}"]
    assert len(maps) == dataset.sizes["example"] == 3
    colours = np.array(picture(maps[0]["src"]).convert("RGB")).astype(int)
    relevance = dataset.relevance.sel(analyzer=MINE).values[0, ..., 0]
    assert colours.shape == (6, 6, 3)
    # Red where it speaks for the output, blue where against.
    strong = np.abs(relevance) > 0.2 * np.abs(relevance).max()
    assert strong.sum() > 3 and (relevance[strong] < 0).any() and (relevance[strong] > 0).any()
    warmer = colours[..., 0] > colours[..., 2]
    np.testing.assert_array_equal(warmer[strong], relevance[strong] > 0)
    for place in dataset.example.values:
        target = int(dataset.target[place])
        name = ("cat", "dog", "eel")[target]
        position = audited[0].record["samples"]["positions"][place]
        assert f"Sample {position}: explained is {name} (output {target})" in page.text
        best = int(dataset.output.values[place].argmax())
        largest = ("cat", "dog", "eel")[best]
        value = dataset.output.values[place, best]
        assert f"largest outputs: {largest} (output {best}): {value:.3g}" in page.text


def test_pictures_can_be_read(page):
    sizes = [picture(image["src"]).size for image in page.of("img")]
    assert min(min(size) for size in sizes) == 6
    # One figure per part but the gallery, besides small maps.
    assert sum(min(size) > 100 for size in sizes) == len(in_reports()) - 1


def test_there_is_a_map_for_each_step_of_random_weights(page, audited):
    kept = audited[0].datasets["parameter_randomization"].relevance
    assert kept.map_step.values[0] == "trained" and kept.sizes["map_step"] >= 3
    shown = [image["alt"] for image in page.of("img") if image["alt"].startswith("map by")]
    for name in kept.analyzer.values:
        for step in kept.map_step.values:
            assert shown.count(f"map by {name}, {step}") == kept.sizes["kept"]


def test_of_many_steps_some_are_shown(audited):
    found = audited[0]
    dataset = found.datasets["parameter_randomization"]
    maps = dataset.relevance.isel(map_step=np.arange(20) % dataset.sizes["map_step"])
    names = ["trained", *(f"layer_{number}" for number in range(1, 20))]
    many = dataset.drop_vars("relevance").drop_vars("map_step")
    many = many.assign(relevance=maps.assign_coords(map_step=names))
    page = Page(
        report.Outcome({"parameter_randomization": many}, found.record, Thresholds()).to_html()
    )
    columns = re.findall(r"Method (trained .*?layer_19) ", page.text)
    assert [len(found.split()) for found in columns] == [MOST_COLUMNS] * maps.sizes["kept"]


def test_large_maps_are_kept_as_jpeg():
    noise = np.random.default_rng(0).normal(size=(300, 200, 1))
    source, limit = small_map(noise, 120)
    image = picture(source)
    assert (image.format, image.size) == ("JPEG", (80, 120))
    assert limit == pytest.approx(np.percentile(np.abs(noise), PERCENTILE), rel=1e-6)
    assert picture(small_map(noise[:20, :30])[0]).format == "PNG"


@pytest.mark.parametrize("shape", [(6, 6, 1), (4, 3), (5,)])
def test_the_limit_of_no_relevance_is_0(shape):
    assert small_map(np.zeros(shape))[1] == 0
    assert small_map(np.full(shape, -2.0))[1] == 2


def test_layers_of_one_channel_have_no_directions(page):
    assert "They do so nearly everywhere at: input." in page.text


def test_methods_have_rules_options_and_papers(page, audited):
    assert "In proportion to contributions" in page.text
    assert "Gradient averaged over noisy copies" in page.text and "samples=2" in page.text
    rows = json.loads(audited[0].datasets["examples"].attrs["assignment"])[MINE]
    assert len(rows) >= 3
    for row in rows:
        assert " ".join(" ".join(row).split()) in page.text
    links = {link["href"] for link in page.of("a")}
    assert "https://doi.org/10.1371/journal.pone.0130140" in links
    assert "Not measured: 1 of the methods smoothgrad no single backward chain" in page.text


def test_the_page_is_made_again_from_the_files(audited, tmp_path):
    found, folder = audited
    again = report.load(folder).to_html(tmp_path / "again.html")
    assert again == (tmp_path / "again.html").read_text(encoding="utf-8")
    assert again == (folder / "report.html").read_text(encoding="utf-8")
    strict = found.to_html(thresholds=Thresholds(directions=0))
    assert "a median |cos| above 0 at the first layer" in Page(strict).text


def test_a_table_has_bars_and_says_what_is_left_out():
    model = randomize(sequential((4,), layers.Dense(5, "relu"), layers.Dense(3)))
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    found = tfexplain.audit(
        model, x, methods=["gradient"], audits=["examples", "random_logit"], preset="quick"
    )
    page = Page(found.to_html())
    assert picture(page.of("img")[1]["src"]).size == (220, 150)
    assert "Maps of other classes the structural similarity compares maps" in page.text
    assert "undecided 0 of 0 tests" in page.text
    assert "explained is output" in page.text


def test_what_cannot_be_drawn_says_why(audited):
    found = audited[0]
    dataset = found.datasets["parameter_randomization"].copy(deep=True)
    for name in ("ssim", "spearman", "median", "low", "high"):
        dataset[name] = dataset[name] * np.nan
    broken = report.Outcome({"parameter_randomization": dataset}, found.record, found.thresholds)
    page = Page(broken.to_html())
    assert "as weights become random cannot be drawn" in page.text
    assert all(image["alt"].startswith("map by") for image in page.of("img"))


def test_many_methods_fit_into_the_pictures(audited):
    found, names = audited[0], [f"lrp.a_long_name_{number}" for number in range(34)]

    def repeated(dataset):
        if "analyzer" not in dataset.coords:
            return dataset
        count = dataset.sizes["analyzer"]
        chosen = dataset.isel(analyzer=[number % count for number in range(len(names))])
        attributes = {**chosen.attrs}
        if "assignment" in attributes:
            attributes["assignment"] = json.dumps({name: [] for name in names})
        return chosen.assign_coords(analyzer=names).assign_attrs(attributes)

    about = {"summary": "", "references": []}
    record = {
        **found.record,
        "methods": dict.fromkeys(names, about),
        "reasons": {},
        "settings": {
            **found.record["settings"],
            "analyzers": {name: {"options": {}} for name in names},
        },
    }
    datasets = {name: repeated(dataset) for name, dataset in found.datasets.items()}
    page = Page(report.Outcome(datasets, record, found.thresholds).to_html())
    images = [picture(image["src"]) for image in page.of("img") if "lrp." not in image["alt"]]
    # Three inputs, and a figure for each part but the gallery.
    assert len(images) == 3 + len(in_reports()) - 1
    assert "cannot be drawn" not in page.text


# --- names and shapes that are rare ---


def test_channels_first_are_drawn_as_images():
    model = randomize(
        sequential(
            (3, 6, 8), layers.Flatten(data_format="channels_first"), layers.Dense(3, name="scores")
        )
    )
    x = np.random.default_rng(1).uniform(size=(2, 3, 6, 8)).astype("float32")
    found = tfexplain.audit(model, x, methods="gradient", audits="examples")
    assert found.datasets["examples"].input.dims == ("example", "channel", "height", "width")
    page = Page(found.to_html())
    images = [picture(image["src"]) for image in page.of("img")]
    assert len(images) == 4 and {image.size for image in images} == {(8, 6)}
    shown = np.array(images[0], "float64") / 255
    expected = x[found.datasets["examples"].example.values[0]].transpose(1, 2, 0)
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(shown[..., :3], expected, atol=0.003)


def test_names_are_no_formulas():
    model = randomize(sequential((6,), layers.Dense(4, "relu"), layers.Dense(3)))
    x = np.random.default_rng(1).normal(size=(3, 6)).astype("float32")
    name = r"$\frac{a$"
    methods = {name: tfexplain.create_analyzer("gradient", model), "lrp.z": {}}
    page = Page(tfexplain.audit(model, x, methods=methods, preset="quick").to_html())
    assert "cannot be drawn" not in page.text
    assert name in page.text and r"\$" not in page.text


def test_what_cannot_be_drawn_says_so():
    def broken():
        return Figure().text(0.5, 0.5, r"$\frac{a$")

    assert drawn(broken, "A figure", "").startswith("A figure cannot be drawn: ")


def test_the_page_says_which_outputs_are_explained(page):
    assert "Explained the given classes" in page.text
    assert "Outputs are values before a last softmax or sigmoid" in page.text
    model = randomize(sequential((6,), layers.Dense(3, "softmax")))
    kept = {"kept": tfexplain.create_analyzer("gradient", model, output_activation="keep")}
    x = np.random.default_rng(1).normal(size=(2, 6)).astype("float32")
    text = Page(tfexplain.audit(model, x, methods=kept, audits="examples").to_html()).text
    assert "Explained the largest output of each sample" in text
    assert "before a last softmax" not in text


def test_samples_have_the_names_and_the_number_of_their_source():
    model = randomize(sequential((6,), layers.Dense(3)))
    x = np.random.default_rng(1).normal(size=(4, 6)).astype("float32")
    about = {"names": ["a.png", "b.png", "c.png", "<d>.png"], "given": 90}
    options = {"methods": "gradient", "audits": ["examples", "parameter_randomization"]}
    found = tfexplain.audit(model, x, images=3, seed=2, about=about, **options)
    page, positions = Page(found.to_html()), found.record["samples"]["positions"]
    assert positions != [0, 1, 2]
    for place in positions:
        assert f"Sample {place} ({about['names'][place]}): explained is" in page.text
    # Maps of random weights are those of the first and the last of the three.
    titles = re.findall(r"(Sample \S+ \(\S+\)) Method", page.text)
    assert titles == [f"Sample {place} ({about['names'][place]})" for place in positions[::2]]
    assert "audited on 3 of 90 samples" in page.text and "Samples 3 of 90," in page.text


def test_options_are_no_walls_of_numbers():
    model = randomize(sequential((6,), layers.Dense(3)))
    x = np.random.default_rng(1).normal(size=(4, 6)).astype("float32")
    parts = ["entropy", "parameter_randomization"]
    found = tfexplain.audit(model, x, methods="pattern.net", audits=parts, preset="quick")
    page = Page(found.to_html())
    (options,) = re.findall(r"Options: (.*?) Settings", page.text)
    assert "pattern.net: what was fitted to the trained model stays" in page.text
    assert "patterns=" in options and "estimator=relu" in options and len(options) < 300


def test_a_tile_says_whether_it_is_an_image_or_has_channels():
    values = np.random.default_rng(0).normal(size=(8, 6))
    image, steps = (
        Tile(values, "a map", has_channels=has_channels) for has_channels in (False, True)
    )
    sizes = {}
    for kind, tile in (("image", image), ("steps", steps)):
        gallery = _gallery(Gallery("", "", [tile]))["pictures"]
        ((in_grid,),) = (row["maps"] for row in _grid(Grid("", ["1"], {"a": [tile]}))["rows"])
        # A place on the page does not change what it is.
        sizes[kind] = {picture(found.source).size for found in (*gallery, in_grid)}
    assert sizes["image"] == {(6, 8)} and len(sizes["steps"]) == 1
    assert sizes["steps"] != sizes["image"]
