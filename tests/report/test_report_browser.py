"""The page of an audit in a real browser, where Chromium is installed: desktop, phone and dark."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from keras import layers
from PIL import Image

import tfexplain
from tests.helpers.networks import randomize, sequential

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")

# Asks a copy of the page, which has no script itself, how wide it is and what it loads.
PROBE = """<script>addEventListener("load", () => { document.title = [
document.documentElement.scrollWidth, innerWidth,
performance.getEntriesByType("resource").filter(e => !e.name.startsWith("data:")).length,
[...document.images].filter(i => !i.naturalWidth).length,
Number(getComputedStyle(document.querySelector(".verdict thead")).display === "none")
].join(" "); });</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    model = randomize(
        sequential((6, 6, 1), layers.Flatten(), layers.Dense(6, "relu"), layers.Dense(3))
    )
    x = np.random.default_rng(0).uniform(size=(4, 6, 6, 1)).astype("float32")
    found = tfexplain.audit(
        model,
        x,
        methods=["gradient", "lrp.z", "lrp.z_plus", "lrp.sequential_preset_a_flat"],
        audits=["examples", "random_logit", "parameter_randomization", "entropy"],
        preset="quick",
    )
    path = tmp_path_factory.mktemp("browser") / "report.html"
    found.to_html(path)
    return path


def browse(page, width, *options):
    """Opens a page of a window that wide; returns what Chromium prints."""
    done = subprocess.run(
        [
            *(CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--enable-logging=stderr", f"--user-data-dir={page.parent / 'profile'}"),
            *(f"--window-size={width},1400", *options, page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [1280, 500])
def test_it_fits_the_screen_and_asks_for_nothing(page, width):
    copy = page.with_name("probe.html")
    text = page.read_text(encoding="utf-8")
    copy.write_text(text.replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    title = re.search(r"<title>([\d ]+)</title>", browse(copy, width, "--dump-dom"))
    needed, inner, requests, broken, cards = map(int, title[1].split())
    assert inner == width
    assert needed <= inner
    assert requests == broken == 0
    # A phone gets a card per method in place of the table.
    assert cards == (width < 700)


def test_it_fits_paper(page):
    copy = page.with_name("paper.html")
    text = page.read_text(encoding="utf-8").replace("@media print", "@media screen")
    wide = """<script>addEventListener("load", () => { document.title =
    Math.max(...[...document.querySelectorAll(".wide")].map(e => e.scrollWidth - e.clientWidth))
    });</script>"""
    copy.write_text(text.replace("</body>", f"{wide}</body>"), encoding="utf-8")
    # A4 without the margins of a printer; what does not fit on paper cannot be scrolled to.
    title = re.search(r"<title>(\d+)</title>", browse(copy, 718, "--dump-dom"))
    assert int(title[1]) == 0


def shot(page, width, name, *options):
    path = page.with_name(name)
    browse(page, width, f"--screenshot={path}", *options)
    return np.array(Image.open(path).convert("L")).astype(int)


def test_it_is_drawn_light_and_dark(page):
    light = shot(page, 1280, "light.png")
    dark = shot(page, 1280, "dark.png", "--blink-settings=preferredColorScheme=0")
    assert light.shape == dark.shape == (1400, 1280)
    assert np.median(light) > 230 and np.median(dark) < 60
    # There are words in both.
    assert (light < 100).mean() > 0.01 and (dark > 180).mean() > 0.01
