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
import zipfile

import pytest

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
    "tables",
    "numerics",
    "operations",
    "graph",
    "layer_types",
    "patterns",
    "canonizers",
    "rules",
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


def run(*arguments, **environment):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Builds the wheel from a copy, because builds leave folders behind."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for file in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(PACKAGE, source / "tfexplain", ignore=ignored)
    # Packages of the checkout that a search for packages could find.
    for folder in ("models", "examples", "experiments", "benchmarks", "docs", "tests"):
        (source / folder).mkdir()
        (source / folder / "__init__.py").touch()
    options = ("--no-deps", "--no-build-isolation", "--quiet", "--no-index")
    built = run("-m", "pip", "wheel", *options, "--wheel-dir", str(target), str(source))
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = target.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        return path.name, {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_only_tfexplain(wheel):
    name, files = wheel
    info = f"tfexplain-{tfexplain.__version__}.dist-info"
    assert name == f"tfexplain-{tfexplain.__version__}-py3-none-any.whl"
    assert {file.split("/")[0] for file in files} == {"tfexplain", info}
    kinds = ("*.py", "*.jinja")
    sources = {str(path.relative_to(ROOT)) for kind in kinds for path in PACKAGE.rglob(kind)}
    network = {"tfexplain/trained/digits.npz", "tfexplain/trained/digits.json"}
    assert {file for file in files if file.startswith("tfexplain/")} == sources | network
    assert "tfexplain/report/report.html.jinja" in files
    assert any(file.endswith("/LICENSE") for file in files)


def test_the_metadata_of_the_wheel(wheel):
    files = wheel[1]
    info = f"tfexplain-{tfexplain.__version__}.dist-info"
    metadata = email.message_from_bytes(files[f"{info}/METADATA"])
    assert metadata["Version"] == tfexplain.__version__
    assert set(metadata["Requires-Python"].split(",")) == {">=3.10", "<3.14"}
    required = [re.match(r"[\w-]+", line)[0] for line in metadata.get_all("Requires-Dist")]
    assert {"keras", "tensorflow", "numpy", "xarray"} <= set(required)
    assert b"tfexplain = tfexplain.__main__:main" in files[f"{info}/entry_points.txt"]


def test_the_lowest_versions_are_those_of_the_requirements(wheel):
    metadata = email.message_from_bytes(
        wheel[1][f"tfexplain-{tfexplain.__version__}.dist-info/METADATA"]
    )
    bounds = {}
    for line in metadata.get_all("Requires-Dist"):
        if "extra" not in line:
            name, bound = re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups()
            bounds[name] = bound
    lines = (ROOT / ".ci" / "lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert set(pins) == set(bounds)
    for name, bound in bounds.items():
        assert re.fullmatch(rf"{re.escape(bound)}(\.0)*", pins[name]), (name, bound, pins[name])


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
