"""The pages: their code runs, their links lead somewhere, their tables are those of the code.

Blocks of Python and the quick commands of a page run one after the other in one empty folder, as a
reader would paste them.
"""

import dataclasses
import pathlib
import re
import shlex
import urllib.parse

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from benchmarks import page as benchmarks_page
from docs import methods
from experiments.commands import Options, PaperOptions
from tfexplain import ANALYZERS, cli, loading
from tfexplain.audits.registry import all_checks

# NumPy warns about Keras' variables when Keras saves them
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

ROOT = pathlib.Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
PAGES += [ROOT / folder / "README.md" for folder in ("examples", "benchmarks")]
LINKED = [*ROOT.glob("*.md"), *PAGES[1:], *ROOT.glob("benchmarks/*/*.md")]
LINKED += ROOT.glob("experiments/**/*.md")

# Languages of blocks: what is code, and what a program prints.
LANGUAGES = ("python", "sh", "text")
# Commands that run here where they name the network of the library. An audit takes minutes, and
# `koopman` would do again what its page does in Python.
QUICK = ("methods", "describe", "explain", "export")
NETWORK = "tfexplain.demo:network"
# What a page may call that is not ours.
OTHERS = ("venv", "pip", "pytest")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def blocks(path):
    """The blocks of code of a page: language and text."""
    found = re.findall(
        r"^```(.*)\n((?:.*\n)*?)```$", path.read_text(encoding="utf-8"), re.MULTILINE
    )
    assert all(language in LANGUAGES for language, _ in found), path
    return found


def split(code):
    """The commands of a block of shell, as words."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in re.split(r"\s+&&\s+", line.strip()):
            program, *rest = shlex.split(command)
            yield [pathlib.PurePosixPath(program).name, *rest]


def shown(path):
    """All commands in the blocks of a page."""
    return [words for language, code in blocks(path) if language == "sh" for words in split(code)]


def prose(path):
    """The text of a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(encoding="utf-8"), flags=re.M | re.S)


def commands():
    return typer.main.get_command(cli.app).commands


def check_command(words):
    """Refuses commands, options, methods, modules and files that do not exist."""
    program, *rest = words
    if program == "tfexplain" or rest[:2] == ["-m", "tfexplain"]:
        check_ours(rest[2:] if rest[0] == "-m" else rest)
    elif rest[0] == "-m":
        check_module(rest[1], rest[2:])
    else:
        assert program == "python" and rest[0].endswith(".py"), words
        assert (ROOT / rest[0].replace("EXAMPLES", "examples")).is_file(), words
        check_options(rest[0].replace("EXAMPLES", "examples"), rest[1:])


def check_ours(words):
    if not words:
        return
    name, *rest = words
    assert name in commands(), words
    if not rest:
        return
    # Refuses unknown options, missing arguments and wrong values.
    parameters = commands()[name].make_context(name, list(rest)).params
    given = parameters.get("method") or []
    given = [given] if isinstance(given, str) else given
    given = [*given, *(parameters.get("methods") or "").split(",")]
    assert all(method in ANALYZERS for method in given if method), words
    if parameters.get("preprocess"):
        assert callable(loading.preprocessing(parameters["preprocess"])), words


def check_module(module, words):
    if module in OTHERS:
        return
    place = ROOT.joinpath(*module.split("."))
    file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__main__.py"
    assert file.is_file(), module
    check_options(name_of(file), words)


def check_options(file, words):
    """Options stand in the program itself, or where programs of its folder share them."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    top = ROOT / pathlib.PurePosixPath(file).parts[0]
    if top.name == "experiments":
        kind = PaperOptions if file.endswith("__main__.py") else Options
        known = {f"--{field.name}" for field in dataclasses.fields(kind)}
        assert known >= set(options), (file, words)
        return
    sources = [ROOT / file] if top.name == "examples" else top.rglob("*.py")
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    assert not [option for option in options if f'"{option}"' not in text], (file, words)


def run_command(words):
    """Runs a quick command of ours in this process."""
    if words[0] != "tfexplain" or words[1] not in QUICK:
        return
    if words[1] != "methods" and words[2] != NETWORK:
        return
    done = CliRunner().invoke(cli.app, words[1:], catch_exceptions=False)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_code_of_the_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for language, code in blocks(path):
        if language == "python":
            exec(compile(code, name_of(path), "exec"), names)
        elif language == "sh":
            for words in split(code):
                check_command(words)
                run_command(words)
    if path == README:
        with Image.open("maps.png") as made, Image.open(ROOT / "docs" / "first.png") as kept:
            assert made.size == kept.size, "run python -m docs.picture"


def test_every_command_is_shown_and_those_in_the_text_parse():
    used = set()
    for path in PAGES:
        found = re.findall(r"`((?:tfexplain|python -m|python) [^`]+)`", prose(path))
        inline = [shlex.split(" ".join(text.split())) for text in found]
        for words in inline:
            if not words[-1].isupper():  # a form, as in `tfexplain audit MODEL DATA`
                check_command(words)
        used |= {words[1] for words in [*shown(path), *inline] if words[0] == "tfexplain"}
    assert used >= set(commands())


def anchors(path):
    """The anchors of the headings of a page, as GitHub makes them."""
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", LINKED, ids=name_of)
def test_links_lead_somewhere(path):
    text = re.sub(r"`[^`\n]*`", "", prose(path))
    for link in re.findall(r"\]\(([^)]*)\)", text):
        parts = urllib.parse.urlsplit(link)
        if parts.scheme or parts.netloc:
            assert parts.scheme in ("http", "https") and "." in parts.netloc, link
            assert not re.search(r"\s", link), link
            continue
        target = (path.parent / parts.path).resolve() if parts.path else path
        assert target.exists() and ROOT in [target, *target.parents], link
        if parts.fragment:
            assert parts.fragment in anchors(target), link


def test_the_readme_is_short_and_links_every_page():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    for path in PAGES[1:]:
        assert f"({name_of(path)}" in text, path


def test_the_verdict_of_the_readme_has_the_columns_of_a_verdict():
    (text,) = [code for language, code in blocks(README) if language == "text"]
    head, *rows = text.splitlines()
    heads = [check.head for check, _ in all_checks() if check.head]
    assert head.split() == ["method", "trust", "tests", *" ".join(heads).split()]
    for name, _, passed, *cells in map(str.split, rows):
        assert name in ANALYZERS and re.fullmatch(r"\d/\d", passed)
        assert len(cells) == len(heads)


@pytest.mark.parametrize("name", methods.PAGES)
def test_lists_are_those_of_the_code(name):
    text = (methods.FOLDER / name).read_text(encoding="utf-8")
    assert text == methods.updated(name), f"run {methods.COMMAND}"


def test_speeds_in_the_readme_are_those_of_the_rows():
    rows = {row["analyzer"]: row for row in benchmarks_page._rows("vgg16")}
    (line,) = re.findall(r"\* \[Speed\][^*]*", README.read_text(encoding="utf-8"))
    said = re.findall(r"\d\.\d+", line)
    ratios = [rows[name]["ratio"] for name in ("lrp.epsilon", "lrp.z_plus", "lrp.alpha_2_beta_1")]
    of_many = rows["lrp.z_plus"]["ratio_20_vectors"] / 20
    wanted = [f"{rows['gradient']['tapes']:.2f}", *(f"{r:.1f}" for r in (*ratios, of_many))]
    assert said == wanted


def test_tables_of_the_benchmarks_are_those_of_the_rows():
    text = benchmarks_page.PAGE.read_text(encoding="utf-8")
    assert text == benchmarks_page.updated(), f"run {benchmarks_page.COMMAND}"


def test_continuous_integration_runs_the_tests_of_the_readme():
    given = shown(README)
    (documented,) = [words[3:] for words in given if words[1:3] == ["-m", "pytest"]]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("\\\n", " ")
    assert f"-m pytest {shlex.join(documented)}\n" in script
    # Both install the same extra; the newest versions get the tools of "dev" beside it.
    (installed,) = [words for words in given if words[1:5] == ["-m", "pip", "install", "-e"]]
    extra = re.search(r"\[(\w+)\]", installed[-1])[1]
    assert f'install lowest "$lowest" {extra} ' in script
    assert 'install newest "$newest" dev\n' in script
    assert f'dev = ["tfexplain[{extra}]", ' in (ROOT / "pyproject.toml").read_text("utf-8")
