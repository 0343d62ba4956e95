"""The audits as a registry: what each declares, what is refused, and audits of a user's own."""

import dataclasses
import importlib
import inspect
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import xarray as xr

import tfexplain
from tests.helpers.audit_networks import table_columns, table_network
from tfexplain import audits, report, runs
from tfexplain.audits import Case, judging
from tfexplain.audits.registry import all_checks, in_reports
from tfexplain.names import REPORTED_AUDITS
from tfexplain.references import REFERENCES

FUNCTIONS = {
    "cosine_convergence",
    "entropy",
    "examples",
    "layer_norms",
    "parameter_randomization",
    "pattern_spectrum",
    "pixel_flipping",
    "random_logit",
    "spectral_terms",
    "spectrum",
}
IN_REPORTS = FUNCTIONS - {"layer_norms", "pattern_spectrum", "spectral_terms"} | {"koopman"}
# What a function takes besides the options of its audit.
OF_THE_RUN = {"analyzers", "analyzer", "x", "y", "seed", "batch_size", "block_size", "path"}
OF_THE_RUN |= {"pixels", "preprocess"}


@pytest.fixture
def registry():
    """A registry that forgets what a test enters."""
    before = dict(tfexplain.AUDITS)
    yield tfexplain.AUDITS
    tfexplain.AUDITS.clear()
    tfexplain.AUDITS.update(before)


def test_the_entries_are_the_functions_and_koopman():
    assert set(tfexplain.AUDITS) == FUNCTIONS | {"koopman"}
    assert set(in_reports()) == IN_REPORTS
    assert tuple(in_reports()) == REPORTED_AUDITS
    apart = {name for name, cls in tfexplain.AUDITS.items() if not cls.by_samples}
    assert apart == {"koopman", "pattern_spectrum"}


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_fields_are_the_options_of_the_function(name):
    cls = tfexplain.AUDITS[name]
    parameters = inspect.signature(getattr(audits, name)).parameters
    options = {field.name: field.default for field in dataclasses.fields(cls)}
    taken = {key: p.default for key, p in parameters.items() if key not in OF_THE_RUN}
    assert {k: v for k, v in options.items() if v != ()} == {
        k: v for k, v in taken.items() if v != ()
    }
    assert set(options) == set(taken)
    if "block_size" in parameters:
        assert parameters["block_size"].default == cls.block_size


@pytest.mark.parametrize("name", list(tfexplain.AUDITS))
def test_what_each_audit_declares(name):
    cls = tfexplain.AUDITS[name]
    assert cls.name == name and cls.title and cls.question.endswith("?") and cls.__doc__
    assert set(cls.references) <= set(REFERENCES)
    assert not cls.in_report or set(cls.presets) == set(audits.PRESETS)
    with pytest.raises(dataclasses.FrozenInstanceError):
        cls().anything = 1
    module, _, function = cls.function.rpartition(".")
    assert inspect.isfunction(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("name", list(tfexplain.AUDITS))
def test_samples_are_no_case(name):
    audit = tfexplain.AUDITS[name]()
    with pytest.raises(TypeError, match="case.Case.*, received ndarray") as error:
        audit.run(table_columns())
    assert str(error.value).endswith(f"Make one, Case(analyzers, x, y), or call {audit.function}.")


def test_an_own_audit_has_no_function_to_call():
    with pytest.raises(TypeError, match="received NoneType. Make one, .*y.\\.$"):
        Largest().run(None)


def test_checks_that_decide_come_first_and_have_names_of_their_own():
    found = [check for check, _ in all_checks()]
    names = [check.name for check in found]
    assert len(set(names)) == len(names)
    assert [check.decides for check in found] == sorted((c.decides for c in found), reverse=True)
    assert report.judge({}).checks == tuple(found)


def test_audits_import_nothing_heavy():
    code = (
        "import sys, tfexplain.audits; heavy = ['tensorflow', 'keras', 'matplotlib', 'xarray'];"
        "print([name for name in heavy if name in sys.modules], len(tfexplain.AUDITS))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == f"[] {len(tfexplain.AUDITS)}"


# --- an audit of a user's own ---


def _largest(dataset, method, thresholds):
    value = float(dataset["largest"].sel(analyzer=method).median())
    return audits.Cell("small" if value < 1e6 else "large", value, passed=value < 1e6)


@dataclass(frozen=True)
class Largest(audits.Audit):
    """The largest magnitude of each map, times a factor."""

    name = "largest"
    title = "Largest relevance"
    question = "How large is the largest relevance?"
    checks = (audits.Check("largest", "Is small", "Below a million.", _largest, decides=True),)
    factor: float = 2.0

    @classmethod
    def refuses(cls, analyzer, case):
        return "gradients have another unit" if analyzer.name == "gradient" else ""

    def measure(self, work, block, advance):
        values = []
        for name in work.case.analyzers:
            maps = np.abs(work.case.maps(name, block, "sum"))
            values.append(self.factor * maps.reshape(len(maps), -1).max(axis=1))
            advance()
        return {"largest": np.array(values)}

    def combine(self, work, blocks):
        values = np.concatenate([block["largest"] for block in blocks], axis=1)
        return xr.Dataset(
            {"largest": (("analyzer", "sample"), values)},
            {"analyzer": list(work.case.analyzers)},
            {"notes": "of mine"},
        )

    @classmethod
    def draw(cls, dataset, labels):
        tiles = [audits.Tile(dataset["largest"].values, "all of them", "values")]
        return [audits.Gallery(f"Sample {labels.sample(0)}", "in words", tiles)]


def test_an_own_audit_takes_part_in_everything(registry, tmp_path):
    audits.register(Largest)
    model, x = table_network(), table_columns()
    options = {"methods": ["gradient", "lrp.z", "lrp.flat"], "preset": "quick"}
    asked = {"audits": ["entropy", "largest"], "folder": tmp_path / "audit"}
    plans = []
    found = tfexplain.audit(model, x, announce=plans.append, **options, **asked)
    assert list(found.datasets) == ["entropy", "largest"]
    assert plans[0].passes["largest"] == len(x) * 6  # two methods of three passes
    dataset = found.datasets["largest"]
    expected = [
        2 * np.abs(tfexplain.create_analyzer(name, model).analyze(x)).max(axis=1)
        for name in ("lrp.z", "lrp.flat")
    ]
    np.testing.assert_allclose(dataset["largest"], expected, rtol=1e-6)
    assert dataset.attrs["audit"] == "largest" and dataset.attrs["factor"] == 2
    assert dataset.attrs["notes"] == "of mine" and dataset.attrs["seed"] == 0
    verdict = found.verdict()
    assert verdict["lrp.z"].cells["largest"].word == "small" and verdict["lrp.z"].passed == 1
    assert "another unit" in verdict["gradient"].cells["largest"].word
    page = (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")
    for text in ("Largest relevance", "How large is the largest", "Is small", "in words", "mine"):
        assert text in page, text
    assert report.load(tmp_path / "audit").verdict().to_dict() == verdict.to_dict()
    # Blocks and batches do not matter, and a run alone is the same.
    alone = Largest().run(
        Case({"lrp.z": tfexplain.create_analyzer("lrp.z", model)}, x, batch_size=2), block_size=2
    )
    np.testing.assert_allclose(alone["largest"].values, expected[:1], rtol=1e-6)
    del registry["largest"]
    with pytest.raises(ValueError, match="largest, which are not registered here. Import"):
        report.load(tmp_path / "audit")


def test_an_own_audit_that_fails_is_left_out(registry):
    @audits.register
    @dataclass(frozen=True)
    class Broken(Largest):
        name = "broken"
        checks = ()

        def measure(self, work, block, advance):
            raise ValueError("no numbers today")

    model, x = table_network(), table_columns()
    with pytest.warns(UserWarning, match="no numbers today"):
        found = tfexplain.audit(model, x, methods="lrp.z", audits=["broken", "entropy"])
    assert list(found.datasets) == ["entropy"]
    assert found.record["reasons"]["broken"][""] == "no numbers today"


def variant(**changes):
    """Returns `Largest` with something else, as if it were defined again."""
    own = {"__module__": Largest.__module__, "__qualname__": "Largest", **changes}
    return dataclass(frozen=True)(type("Largest", (Largest,), own))


@pytest.mark.parametrize("failing", ["measure", "wrong", "draw", "page_notes", "figure", "tiles"])
def test_what_fails_after_the_work_takes_nothing_else_away(registry, failing, tmp_path):
    def fails(*given):
        raise AttributeError("no such thing")

    drawing = audits.Drawing(fails, "a figure", "below")
    gallery = audits.Gallery("a row", "in words", [audits.Tile(np.zeros((1, 2, 3, 4)), "odd")])
    changes = {
        "measure": {"checks": (audits.Check("largest", "Is small", "Below.", fails),)},
        "wrong": {"checks": (audits.Check("largest", "Is small", "Below.", lambda *given: 1),)},
        "draw": {"draw": classmethod(fails)},
        "page_notes": {"page_notes": classmethod(fails)},
        "figure": {"draw": classmethod(lambda *given: [drawing])},
        "tiles": {"draw": classmethod(lambda *given: [gallery])},
    }[failing]
    audits.register(variant(**changes))
    found = tfexplain.audit(
        table_network(),
        table_columns(),
        methods="lrp.z",
        audits=["entropy", "largest"],
        folder=tmp_path / "audit",
    )
    assert list(found.datasets) == ["entropy", "largest"]
    page = (tmp_path / "audit" / "report.html").read_text(encoding="utf-8")
    word = found.verdict()["lrp.z"].cells["largest"].word
    if failing == "measure":
        assert word == "not measured: AttributeError: no such thing"
    elif failing == "wrong":
        assert word == "not measured: the check returned int, expected a Cell"
    else:
        assert word == "small"
        said = {"figure": "a figure cannot be drawn: AttributeError: no such thing"}
        said |= {"tiles": "Not shown: a row (", "draw": "Not shown: what it shows (Attribute"}
        assert said.get(failing, "Not shown: its notes (AttributeError: no such thing)") in page
    assert "Largest relevance" in page and "Entropy" in page


def test_notes_of_a_page_stay_those_of_the_audit(registry, tmp_path):
    notes = ["of the page"]
    audits.register(variant(page_notes=classmethod(lambda cls, dataset: notes)))
    found = tfexplain.audit(table_network(), table_columns(), methods="lrp.z", audits="largest")
    assert found.to_html() == found.to_html() and notes == ["of the page"]


def test_cells_of_numpy_values_are_plain(registry):
    cell = audits.Cell("small", np.float32(0.5), passed=np.bool_(False), samples=np.int64(3))
    assert cell == audits.Cell("small", 0.5, passed=False, samples=3)
    assert cell.passed is False and type(cell.samples) is int


def test_checks_that_do_not_decide_do_not_count(registry):
    def failed(dataset, method, thresholds):
        return audits.Cell("bad", 1.0, passed=False)

    audits.register(variant(checks=(audits.Check("extra", "Extra", "More.", failed),)))
    found = tfexplain.audit(table_network(), table_columns(), methods="lrp.z", audits="largest")
    row = found.verdict()["lrp.z"]
    assert row.cells["extra"].passed is False
    assert (row.trust, row.passed, row.measured) == ("undecided", 0, 0)


def test_settings_that_changed_are_refused_and_nothing_is_replaced(registry, tmp_path):
    options = {"methods": "lrp.z", "audits": ["largest", "entropy"], "folder": tmp_path / "audit"}
    model, x = table_network(), table_columns()
    audits.register(variant(presets={"default": {"factor": 2.0}}))
    first = tfexplain.audit(model, x, **options)
    audits.register(variant(presets={"default": {"factor": 3.0}}))
    with pytest.raises(ValueError, match="other settings of largest: .*2.0.*, now .*3.0"):
        tfexplain.audit(model, x, **options)
    # The default of a field stands in no preset: the stored result itself tells.
    preset = {"presets": {"default": {}}, "__annotations__": {"factor": "float"}}
    second = {**options, "folder": tmp_path / "other"}
    audits.register(variant(**preset))
    tfexplain.audit(model, x, **second)
    audits.register(variant(**preset, factor=3.0))
    with pytest.raises(runs.OtherSettingsError, match="largest.nc holds .* differ in factor"):
        tfexplain.audit(model, x, **second)
    for folder in (options["folder"], second["folder"]):
        stored = report.load(folder)
        xr.testing.assert_equal(stored.datasets["largest"], first.datasets["largest"])
        assert not stored.record["reasons"]["largest"]


@pytest.mark.parametrize("asked", ["suits", "refuses"])
def test_an_audit_that_cannot_tell_whether_it_fits_is_left_out(registry, asked):
    def fails(*given):
        raise TypeError("scale is missing")

    audits.register(variant(**{asked: classmethod(fails)}))
    found = tfexplain.audit(
        table_network(), table_columns(), methods="lrp.z", audits=["entropy", "largest"]
    )
    assert list(found.datasets) == ["entropy"]
    reasons = found.record["reasons"]["largest"]
    assert reasons["" if asked == "suits" else "lrp.z"] == "TypeError: scale is missing"


def test_options_that_do_not_fit_leave_the_audit_out_with_and_without_a_plan(registry):
    def for_case(cls, case, settings):
        raise KeyError("widht")

    audits.register(variant(for_case=classmethod(for_case)))
    plans = []
    for announce in (None, plans.append):
        with pytest.warns(UserWarning, match="Largest relevance: left out"):
            found = tfexplain.audit(
                table_network(),
                table_columns(),
                methods="lrp.z",
                audits=["entropy", "largest"],
                announce=announce,
            )
        assert found.record["reasons"]["largest"][""] == "KeyError: 'widht'"
    assert list(plans[0].passes) == ["entropy"]


def test_presets_are_checked(registry):
    for presets, error, message in (
        ({"fast": {}}, ValueError, "the preset 'fast'.*Presets: quick, default, thorough"),
        ({"quick": {"facter": 1}}, ValueError, "facter, which is no field. Did you mean 'factor'"),
        ({"quick": {"factor": object()}}, TypeError, "preset 'quick'.*cannot be written as JSON"),
    ):
        with pytest.raises(error, match=message):
            audits.register(variant(presets=presets))
    assert "largest" not in registry
    audits.register(variant(presets={"quick": {"factor": np.float32(1), "samples": 2}}))
    found = tfexplain.audit(
        table_network(), table_columns(), methods="lrp.z", audits="largest", preset="quick"
    )
    assert found.datasets["largest"].sizes["sample"] == 2
    assert found.record["audits"]["largest"] == {"factor": 1.0, "samples": 2}


def test_what_is_no_audit_is_refused(registry):
    with pytest.raises(TypeError, match="subclass of tfexplain.audits.Audit, received"):
        audits.register(int)
    with pytest.raises(TypeError, match="must be a frozen dataclass"):
        audits.register(type("Plain", (Largest,), {"name": "plain"}))
    bare = dataclass(frozen=True)(type("Bare", (audits.Audit,), {"name": "bare", "title": "Bare"}))
    with pytest.raises(ValueError, match="Bare lacks question, measure, combine"):
        audits.register(bare)
    taken = dataclass(frozen=True)(type("Taken", (Largest,), {"name": "entropy", "checks": ()}))
    with pytest.raises(ValueError, match="an audit 'entropy' already: Entropy"):
        audits.register(taken)
    odd = dataclass(frozen=True)(type("Odd", (Largest,), {"name": "a/b"}))
    with pytest.raises(ValueError, match="identifier, received 'a/b'"):
        audits.register(odd)
    check = judging.Check("class", "Mine", "Another.", _largest)
    repeated = dataclass(frozen=True)(type("Again", (Largest,), {"name": "x", "checks": (check,)}))
    with pytest.raises(ValueError, match=r"check\(s\) class already"):
        audits.register(repeated)
    assert list(registry) == list(tfexplain.AUDITS) and "x" not in registry
    # Defined again, as in a notebook, it takes the place of the first.
    audits.register(Largest)
    again = variant()
    audits.register(again)
    assert registry["largest"] is again


def test_names_of_audits_are_checked():
    model, x = table_network(), table_columns()
    with pytest.raises(ValueError, match="no audit 'entropi'. Did you mean 'entropy'"):
        tfexplain.audit(model, x, audits="entropi")
    with pytest.raises(ValueError, match="'layer_norms' takes no part in a report: call"):
        tfexplain.audit(model, x, audits="layer_norms")
