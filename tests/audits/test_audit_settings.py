"""What the settings of a run say: all that its numbers depend on, and nothing that clashes."""

import dataclasses
import inspect
import sys
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import rich.progress
import xarray as xr

import tfexplain
from tests.helpers.networks import fitted, randomize, sequential
from tfexplain import audits, koopman, runs
from tfexplain.audits import Case
from tfexplain.audits.base import RESERVED

LABELS = np.array([0, 1, 2])
MAPS = {"reduction": "abs_sum", "normalization": "minmax", "data_range": 2.0, "flip": True}
# Audit -> options of which each case starts, and another value for each field.
OTHERS = {
    "examples": ({}, {"examples": 1}),
    "parameter_randomization": (
        {},
        {
            "layers": "scores",
            "mode": "independent",
            "weights": "permutation",
            "statistics": "kept",
            "keep": [1],
            **MAPS,
        },
    ),
    "random_logit": ({}, {"num_classes": 2, **MAPS}),
    "cosine_convergence": (
        {},
        {
            "start": "conv",
            "layers": "conv",
            "num_vectors": 3,
            "quantity": "multiplier",
            "per_location": True,
        },
    ),
    "spectrum": (
        {},
        {
            "start": "conv",
            "method": "matrix_free",
            "policy": "active",
            "quantile": 0.25,
            "num_values": 2,
            "standard_error": 0.1,
            "tolerance": 0.1,
        },
    ),
    "pixel_flipping": (
        {"fill": "constant", "steps": 3},
        {"fraction": 0.1, "fill": "telea", "value": 1.0, "steps": 2, "reduction": "abs_sum"},
    ),
    "entropy": ({}, {"reduction": "abs_sum"}),
    "koopman": ({"repeats": 1}, {"repeats": 2, "max_dimension": 3}),
    "layer_norms": ({}, {"columns": 2}),
    "spectral_terms": (
        {},
        {
            "output_relevance": np.ones((3, 3)),
            "policy": "active",
            "quantile": 0.25,
            "num_terms": 2,
        },
    ),
    "pattern_spectrum": ({}, {}),
}
# Fields that count beside another one alone: audit -> field -> the other options.
BESIDE = {
    ("pixel_flipping", "radius"): ({"fill": "telea", "steps": 3}, 4.0),
    ("spectral_terms", "start"): ({"output_relevance": np.ones((3, 3))}, "scores"),
}
METHODS = {"cosine_convergence": "deep_lift.rescale", "pattern_spectrum": "pattern.net"}
# What explains no chosen output, and what draws nothing.
WITHOUT_TARGETS = {
    *("cosine_convergence", "spectrum", "koopman", "layer_norms", "pattern_spectrum"),
}
WITHOUT_SEED = {"pattern_spectrum"}


@pytest.fixture(scope="module")
def model():
    layers = keras.layers
    return randomize(
        sequential(
            (6, 6, 1),
            layers.Conv2D(2, 2, activation="relu", name="conv"),
            layers.Flatten(),
            layers.Dense(3, name="scores"),
        )
    )


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).normal(size=(3, 6, 6, 1)).astype("float32")


class Seen(Exception):
    """The settings with which a run was about to begin."""


@pytest.fixture
def settings_of(model, x, monkeypatch):
    """Function of an audit and of what a case takes that returns the settings of the run."""

    def seen(*functions, settings, **options):
        raise Seen(settings)

    monkeypatch.setattr(runs, "in_blocks", seen)
    monkeypatch.setattr(sys.modules[koopman.credit.__module__], "in_blocks", seen)
    analyzers = {}

    def settings_of(audit, **given):
        name = METHODS.get(audit.name, "lrp.z")
        if name not in analyzers:
            analyzers[name] = fitted(tfexplain.create_analyzer(name, model), x)
        pixels = np.random.default_rng(1).integers(0, 256, x.shape, "uint8")
        own = (pixels / np.float32(255), {"pixels": pixels, "preprocess": lambda p: p / 255})
        inputs, images = own if getattr(audit, "fill", "") == "telea" else (x, {})
        with pytest.raises(Seen) as error:
            audit.run(Case(analyzers[name], inputs, **images, **given))
        return error.value.args[0]

    return settings_of


def test_every_field_has_another_value():
    assert set(OTHERS) == set(tfexplain.AUDITS)
    for name, cls in tfexplain.AUDITS.items():
        beside = {field for audit, field in BESIDE if audit == name}
        fields = {field.name for field in dataclasses.fields(cls)}
        assert fields == {*OTHERS[name][1], *beside}, name


@pytest.mark.parametrize("name", list(OTHERS))
def test_all_that_numbers_depend_on_is_in_the_settings(name, settings_of):
    cls, (options, others) = tfexplain.AUDITS[name], OTHERS[name]
    first = settings_of(cls(**options), y=0)
    assert settings_of(cls(**options), y=0) == first
    for field, value in others.items():
        assert settings_of(cls(**{**options, field: value}), y=0) != first, field
    for (audit, field), (besides, value) in BESIDE.items():
        if audit == name:
            before = settings_of(cls(**besides), y=0)
            assert settings_of(cls(**besides, **{field: value}), y=0) != before, field
    assert (settings_of(cls(**options), y=[0, 1, 2]) != first) is (name not in WITHOUT_TARGETS)
    assert (settings_of(cls(**options), y=0, seed=1) != first) is (name not in WITHOUT_SEED)


def test_relevance_of_other_outputs_is_another_run(settings_of):
    one, other = np.ones((3, 3)), np.ones((3, 3))
    other[2, 1] = 2
    settings = [settings_of(audits.SpectralTerms(output_relevance=a)) for a in (one, other)]
    assert runs.differing(*settings) == ["output_relevance_sha256"]


def test_stored_terms_of_other_outputs_are_not_returned(model, x, tmp_path):
    analyzer, path = tfexplain.create_analyzer("lrp.z", model), tmp_path / "terms.nc"
    found = audits.SpectralTerms(num_terms=2).run(Case(analyzer, x, 0), path=path)
    xr.testing.assert_equal(
        audits.SpectralTerms(num_terms=2).run(Case(analyzer, x, 0), path=path), found
    )
    with pytest.raises(ValueError, match="differ in num_terms, targets_sha256"):
        audits.SpectralTerms(num_terms=3).run(Case(analyzer, x, 1), path=path)


# --- options of a user's audit ---


def make(**options):
    """Returns an audit class with options, whose name -> default are given."""

    def measure(self, work, block, advance):
        type(self).measured += 1
        return {"value": np.ones((len(work.case.analyzers), block.stop - block.start))}

    def combine(self, work, blocks):
        values = np.concatenate([block["value"] for block in blocks], axis=1)
        return xr.Dataset(
            {"value": (("analyzer", "sample"), values)}, {"analyzer": list(work.case.analyzers)}
        )

    body = {"name": "own", "title": "Own", "question": "What?", "measured": 0}
    body |= {"measure": measure, "combine": combine, **options}
    body["__annotations__"] = dict.fromkeys(options, "object")
    return dataclass(frozen=True)(type("Own", (audits.Audit,), body))


@pytest.fixture
def case(model, x):
    return Case(tfexplain.create_analyzer("gradient", model), x)


@pytest.mark.parametrize("name", RESERVED)
def test_names_that_every_run_has_are_refused(name, case, monkeypatch):
    monkeypatch.setattr(audits.registry, "AUDITS", {})
    cls = make(**{name: 1})
    for refused in (lambda: audits.register(cls), lambda: cls().run(case)):
        with pytest.raises(ValueError, match=f"the field.s. {name}, and every run has"):
            refused()


def test_the_reserved_names_are_those_of_a_run(case, tmp_path):
    settings = runs.settings(
        "any", case.analyzers, case.inputs, case.options("targets"), with_data=True
    )
    stored = make()().run(case, path=tmp_path / "own.nc")
    assert set(RESERVED) == {*settings, *stored.attrs, "block_size"}


def test_other_options_of_a_work_are_refused_too(case, monkeypatch):
    cls = make()
    work = audits.Work(case, {"audit": "mine"}, 1)
    monkeypatch.setattr(cls, "prepare", lambda self, case: work)
    with pytest.raises(ValueError, match="'own' has the option.s. audit, and every run"):
        cls().run(case)


@pytest.mark.parametrize("name", ["x", "with_data", "options", "case"])
def test_all_other_names_are_free(name, case):
    assert make(**{name: 1})(**{name: 2}).run(case).attrs[name] == 2


def test_options_become_plain(case):
    cls = make(width=1)
    assert type(cls(np.int64(3)).width) is int
    for value in ([[1, 2]], np.array([[1, 2]]), ((1, 2),)):
        assert cls(value) == cls(((1, 2),)) and hash(cls(value)) == hash(cls(((1, 2),)))
    assert cls(np.arange(3)).run(case).attrs["width"] == "[0, 1, 2]"
    relevance = [audits.SpectralTerms(output_relevance=np.ones((2, 3))) for _ in range(2)]
    assert relevance[0] == relevance[1] and len({*relevance}) == 1


def test_options_that_cannot_be_written_are_refused_before_work(case):
    cls = make(width=1)
    with pytest.raises(TypeError, match="option 'width' of the audit 'own' cannot be written as"):
        cls(object()).run(case)
    assert cls.measured == 0


# --- blocks ---


@pytest.mark.parametrize("name", ["spectrum", "layer_norms"])
@pytest.mark.parametrize("block_size", [1, 2, 3])
def test_progress_counts_the_samples_of_the_given_blocks(name, block_size, model, x, monkeypatch):
    totals, advanced = [], []
    progress = rich.progress.Progress
    add, advance = progress.add_task, progress.advance

    def added(self, title, **options):
        totals.append(options["total"])
        return add(self, title, **options)

    def one_more(self, task, amount=1):
        advanced.append(amount)
        advance(self, task, amount)

    monkeypatch.setattr(progress, "add_task", added)
    monkeypatch.setattr(progress, "advance", one_more)
    analyzer = tfexplain.create_analyzer("lrp.z", model)
    tfexplain.AUDITS[name]().run(Case(analyzer, x), block_size=block_size)
    assert totals == [len(x)] and sum(advanced) == len(x)


@pytest.mark.parametrize("name", ["koopman", "pattern_spectrum"])
def test_audits_without_blocks_refuse_their_size(name, model, x):
    analyzer = fitted(tfexplain.create_analyzer("pattern.net", model), x)
    with pytest.raises(ValueError, match="not measured in blocks of samples, received block_size"):
        tfexplain.AUDITS[name]().run(Case(analyzer, x), block_size=2)


def test_koopman_has_the_options_of_its_function(model, x):
    parameters = inspect.signature(koopman.credit).parameters
    for field in dataclasses.fields(audits.Koopman):
        assert field.default == parameters[field.name].default, field.name
    case = Case(tfexplain.create_analyzer("gradient", model), x)
    whole = audits.Koopman(max_dimension=None)
    # The largest tensor has 36 values.
    assert whole.passes(case) == audits.Koopman(max_dimension=1000).passes(case)
    assert whole.seconds(case) > audits.Koopman(max_dimension=3).seconds(case)


def test_patterns_of_one_analyzer_are_compared_and_written(model, x, tmp_path):
    nets = {
        name: fitted(tfexplain.create_analyzer(name, model), x)
        for name in ("pattern.net", "pattern.attribution")
    }
    with pytest.raises(ValueError, match="patterns of one analyzer are compared, received 2"):
        audits.PatternSpectrum().run(Case(nets, x))
    path = tmp_path / "patterns.nc"
    found = audits.PatternSpectrum().run(Case(nets["pattern.net"], x), path=path)
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        xr.testing.assert_identical(stored.load(), found)
    # The samples have no part in it.
    again = audits.PatternSpectrum().run(Case(nets["pattern.net"], 2 * x), path=path)
    xr.testing.assert_identical(again, found)
    with pytest.raises(ValueError, match="other settings; they differ in analyzers"):
        audits.PatternSpectrum().run(Case(nets["pattern.attribution"], x), path=path)


def test_steps_of_random_weights_are_counted_for_all_ways_to_name_layers(case):
    found = [
        audits.ParameterRandomization(layers=layers).passes(case)
        for layers in (None, ("scores", "conv"), "scores", ["scores"])
    ]
    one_map = case.count * case.passes_per_map()
    assert found == [3 * one_map, 3 * one_map, 2 * one_map, 2 * one_map]
