"""Recipes of CONTRIBUTING.md are short and lead to what is there; types are checked everywhere."""

import pathlib
import re
import subprocess
import tokenize

import pytest

ROOT = pathlib.Path(__file__).parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
_PARTS = re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)[1:]
RECIPES = {
    title.removeprefix("Recipe: "): part
    for title, part in zip(_PARTS[::2], _PARTS[1::2], strict=True)
    if title.startswith("Recipe: ")
}
IGNORE = re.compile(r"#\s*(?:type|pyright|mypy):\s*ignore")
WITH_REASON = re.compile(r"# type: ignore\[[a-z-]+(, [a-z-]+)*\]  # \w.{8,}")


def test_there_are_four_recipes():
    assert list(RECIPES) == ["a rule", "an operation", "an audit", "an experiment"]


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_is_short_and_has_an_example(title):
    lines = [line for line in RECIPES[title].splitlines() if line]
    assert len(lines) <= 15
    assert re.match(r"Example: (`examples/\w+\.py`|the commit \")", lines[0])


@pytest.mark.parametrize("title", RECIPES)
def test_files_of_a_recipe_exist(title):
    paths = re.findall(r"`([\w.]+/[\w./]*)`", RECIPES[title])
    assert paths and not [path for path in paths if not (ROOT / path).exists()]


def test_commits_of_recipes_exist():
    git = ["git", "-C", str(ROOT)]
    shallow = subprocess.run(
        [*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True
    )
    if shallow.stdout.strip() != "false":
        pytest.skip("there is no whole history of the project here")
    history = subprocess.run([*git, "log", "--format=%s"], capture_output=True, text=True)
    subjects = history.stdout.splitlines()
    named = re.findall(r'the commit\s+"([^"]+)"', TEXT)
    assert named and not [subject for subject in named if subject not in subjects]


def comments():
    """Yields (file, comment) of the package."""
    for path in sorted((ROOT / "tfexplain").rglob("*.py")):
        with tokenize.open(path) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.COMMENT:
                    yield path.relative_to(ROOT), token.string


def test_few_lines_are_not_checked_and_each_says_why():
    ignored = [(path, comment) for path, comment in comments() if IGNORE.search(comment)]
    assert len(ignored) <= 40
    assert not [found for found in ignored if not WITH_REASON.fullmatch(found[1])]
