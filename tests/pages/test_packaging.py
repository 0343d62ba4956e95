"""What is installed, what imports what, and what an import costs."""

import ast
import email
import graphlib
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from packaging.requirements import Requirement

import tfexplain

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "tfexplain"

# Each module imports only modules before it.
ORDER = (
    "errors",
    "checks",
    "references",
    "names",
    "files",
    "locks",
    "numpy_files",
    "netcdf",
    "tables",
    "numerics",
    "compilation",
    "operations",
    "graph",
    "layer_types",
    "patterns",
    "masks",
    "wrappers",
    "opening",
    "canonizers",
    "rules",
    "selectors",
    "composites",
    "reverse",
    "results",
    "metrics",
    "analyzers",
    "plotting",
    "runs",
    "koopman",
    "audits",
    "support",
    "loading",
    "report",
    "demo",
    "cli",
    "__main__",
)


def run(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
    )


BUILD = "from setuptools import build_meta; print(build_meta.build_sdist({!r}))"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """Builds the source distribution from a copy, because builds leave folders behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for file in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    for file in ("CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / file, source)
    shutil.copytree(PACKAGE, source / "tfexplain", ignore=shutil.ignore_patterns("__pycache__"))
    # Packages of the checkout that a search for packages could find.
    for folder in ("models", "examples", "experiments", "benchmarks", "docs", "tests"):
        (source / folder).mkdir()
        (source / folder / "__init__.py").touch()
    # A name that builds of source distributions look for.
    (source / "tests" / "test_one.py").touch()
    built = run("-c", BUILD.format(str(target)), cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.glob("*.tar.gz")
    return path


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Builds the wheel from the source distribution alone, as an installer does."""
    target = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--no-index")
    built = run("-m", "pip", "wheel", *options, "--wheel-dir", str(target), str(sdist))
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return path.name, {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel):
    return email.message_from_bytes(
        wheel[1][f"tfexplain-{tfexplain.__version__}.dist-info/METADATA"]
    )


def files_of_the_package():
    """All of them, so that one which package-data in pyproject.toml does not name is missed."""
    paths = (path for path in PACKAGE.rglob("*") if path.is_file())
    return {str(p.relative_to(ROOT)) for p in paths if "__pycache__" not in p.parts}


def test_the_wheel_holds_only_tfexplain(wheel):
    name, files = wheel
    info = f"tfexplain-{tfexplain.__version__}.dist-info"
    assert name == f"tfexplain-{tfexplain.__version__}-py3-none-any.whl"
    assert {file.split("/")[0] for file in files} == {"tfexplain", info}
    assert {file for file in files if file.startswith("tfexplain/")} == files_of_the_package()
    assert "tfexplain/py.typed" in files
    assert "tfexplain/report/report.html.jinja" in files
    assert {"tfexplain/trained/digits.npz", "tfexplain/trained/digits.json"} <= files.keys()
    assert any(file.endswith("/LICENSE") for file in files)


def test_the_source_distribution_holds_what_builds_the_wheel(sdist):
    name = f"tfexplain-{tfexplain.__version__}"
    assert sdist.name == f"{name}.tar.gz"
    with tarfile.open(sdist) as archive:
        files = {m.name.removeprefix(f"{name}/") for m in archive.getmembers() if m.isfile()}
    about = {"README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"}
    made = {"PKG-INFO", "setup.cfg"}
    own = {file for file in files if not file.startswith("tfexplain.egg-info/")}
    build = {"setup.py", "pyproject.toml", "MANIFEST.in"}
    assert own == files_of_the_package() | about | build | made


def test_the_metadata_of_the_wheel(wheel, metadata):
    info = f"tfexplain-{tfexplain.__version__}.dist-info"
    assert metadata["Version"] == tfexplain.__version__
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    assert {"keras", "tensorflow", "numpy", "xarray"} <= {r.name for r in requirements(metadata)}
    assert set(metadata.get_all("Provides-Extra")) == {"inpainting", "test", "dev"}
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().startswith("# tfexplain")
    assert b"tfexplain = tfexplain.__main__:main" in wheel[1][f"{info}/entry_points.txt"]


def requirements(metadata, extra=""):
    """Those without an extra, and those of the extra."""
    found = map(Requirement, metadata.get_all("Requires-Dist"))
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


def test_opencv_is_an_extra(metadata):
    added = {r.name for r in requirements(metadata, "inpainting")}
    assert added - {r.name for r in requirements(metadata)} == {"opencv-python-headless"}


def test_the_lowest_versions_are_those_of_the_requirements(metadata):
    bounds = {}
    for requirement in requirements(metadata, "inpainting"):
        ((operator, bound),) = [(s.operator, s.version) for s in requirement.specifier]
        assert operator == ">="
        bounds[requirement.name] = bound
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert set(pins) == set(bounds)
    for name, bound in bounds.items():
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", pins[name]), (name, bound, pins[name])


def test_what_says_the_version_says_the_same():
    cited = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited[1] == tfexplain.__version__
    changes = re.findall(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert changes[0] == tfexplain.__version__


def modules():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(ROOT).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        yield path, parts


def imported(path, parts):
    """Yields the full name of each module, or attribute, that a file imports."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = parts if path.name == "__init__.py" else parts[:-1]
                base = ".".join([*package[: len(package) + 1 - node.level], *base.split(".")])
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def test_every_module_has_a_place():
    found = {parts[1] for _, parts in modules() if len(parts) > 1}
    assert found == set(ORDER)


def test_modules_import_only_those_above():
    wrong = []
    for path, parts in modules():
        if len(parts) == 1:
            continue
        allowed = ORDER[: ORDER.index(parts[1])]
        for name in imported(path, parts):
            package, *rest = name.split(".")
            public = rest in ([], ["__version__"])
            if package != "tfexplain" or public or rest[0] in (*allowed, parts[1]):
                continue
            wrong.append(f"{'.'.join(parts)} imports {name}")
    assert not wrong


def test_modules_of_analyzers_form_no_circle():
    """Each can be read, and imported, after those it imports; none imports inside of a function."""
    folder = PACKAGE / "analyzers"
    above = {}
    for path in sorted(folder.glob("*.py")):
        parts = ["tfexplain", "analyzers"] + ([] if path.stem == "__init__" else [path.stem])
        names = [name for name in imported(path, parts) if name.startswith("tfexplain.analyzers.")]
        # What is no module is a name that the package itself has.
        stems = {name.split(".")[2] for name in names}
        above[path.stem] = {s if (folder / f"{s}.py").exists() else "__init__" for s in stems}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                inside = {type(inner) for inner in ast.walk(node)}
                assert not inside & {ast.Import, ast.ImportFrom}, f"{path.stem}.{node.name}"
    order = list(graphlib.TopologicalSorter(above).static_order())
    assert order[-1] == "__init__" and order.index("base") < order.index("registry")


def test_tfexplain_imports_neither_models_nor_experiments():
    for path, parts in modules():
        packages = {name.split(".")[0] for name in imported(path, parts)}
        assert not packages & {"models", "experiments", "benchmarks", "tests"}, path


def test_models_do_not_import_tfexplain_or_experiments():
    for path in sorted((ROOT / "models").rglob("*.py")):
        packages = {name.split(".")[0] for name in imported(path, ["models", path.stem])}
        assert not packages & {"tfexplain", "experiments", "benchmarks", "tests"}, path


def test_importing_is_light():
    code = (
        "import sys, tfexplain; print(tfexplain.__version__);"
        "print(sorted({'tensorflow', 'keras', 'numpy', 'xarray', 'matplotlib'} & set(sys.modules)))"
    )
    assert run("-c", code).stdout.splitlines() == [tfexplain.__version__, "[]"]


def test_every_public_name_resolves():
    assert len(set(tfexplain.__all__)) == len(tfexplain.__all__)
    for name in tfexplain.__all__:
        assert getattr(tfexplain, name) is not None
        assert name in dir(tfexplain)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tfexplain.nothing  # noqa: B018


def test_type_checkers_see_every_public_name():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n)]
    seen = {}
    for node in block.body:
        (alias,) = node.names
        # Without "as" a name is private to checkers.
        assert alias.name == alias.asname
        seen[alias.name] = node.module
    homes = {name: f"tfexplain.{home}" for name, home in tfexplain._HOMES.items()}
    assert seen == homes | dict.fromkeys(tfexplain._MODULES, "tfexplain")


def assert_refused(found, backend):
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: tfexplain needs Keras with the TensorFlow backend")
    assert repr(backend) in last and "KERAS_BACKEND=tensorflow" in last


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_another_backend_is_refused(backend, tmp_path):
    for module in ("tfexplain", "tfexplain.analyzers"):
        assert_refused(run("-c", f"import {module}", KERAS_BACKEND=backend), backend)
    (tmp_path / "keras.json").write_text(f'{{"backend": "{backend}"}}')
    environment = {key: value for key, value in os.environ.items() if key != "KERAS_BACKEND"}
    found = subprocess.run(
        [sys.executable, "-c", "import tfexplain"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "KERAS_HOME": str(tmp_path)},
    )
    assert_refused(found, backend)
