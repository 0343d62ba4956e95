"""Claims, criteria, findings and the table that joins them."""

import dataclasses
import json
import math

import pytest

from experiments.claim_table import (
    CONFIRMED,
    NOT_TESTED,
    REFUTED,
    Claim,
    ClaimTable,
    Criterion,
    Finding,
)

CLAIMS = (
    Claim("C1", "The ratio is > 6.", "> 6", "fig. 1", ("net",), ("first", "second")),
    Claim("C2", "It takes a day.", "a day", "section 2", reason="another machine"),
    Claim("C3", "It | converges.", "yes", "fig. 3", experiments=("second",)),
)


def found(value=7.0, **changes):
    fields = {
        "claim": "C1",
        "experiment": "first",
        "protocol": "published",
        "network": "net",
        "criteria": (Criterion("ratio", value, ">", 6),),
        "command": "python -m experiments.paper.first",
    }
    return Finding(**{**fields, **changes})


@pytest.mark.parametrize(
    ("relation", "values"),
    [
        (">", (False, False, True)),
        (">=", (False, True, True)),
        ("<", (True, False, False)),
        ("<=", (True, True, False)),
        ("==", (False, True, False)),
    ],
)
def test_relations(relation, values):
    assert tuple(Criterion("x", x, relation, 2).holds for x in (1, 2, 3)) == values
    assert Criterion("x", math.nan, relation, 2).holds is None


def test_wrong_criteria():
    with pytest.raises(ValueError, match="relation is '!='. Expected one of >, >="):
        Criterion("x", 1, "!=", 2)
    with pytest.raises(ValueError, match="The bound of 'x' is NaN"):
        Criterion("x", 1, ">", math.nan)


def test_the_verdict_follows_from_the_criteria():
    good, bad, unknown = (Criterion("x", x, ">", 0) for x in (1, -1, math.nan))
    assert found(criteria=[good, good]).verdict == CONFIRMED
    assert found(criteria=[good, bad]).verdict == REFUTED
    # One failure is enough, whatever else could not be measured.
    assert found(criteria=[unknown, bad], reason="short").verdict == REFUTED
    assert found(criteria=[good, unknown], reason="short").verdict == NOT_TESTED
    assert found(criteria=[], reason="no data").verdict == NOT_TESTED


def test_what_was_not_tested_needs_a_reason():
    with pytest.raises(ValueError, match=r"first has no verdict on C1 \(net, published\): ratio"):
        found(math.nan)
    with pytest.raises(ValueError, match="there are no criteria. Give the reason"):
        found(criteria=())
    with pytest.raises(ValueError, match="C9 has the experiments .* and the reason ''"):
        Claim("C9", "", "", "")
    with pytest.raises(ValueError, match="Claim C9"):
        Claim("C9", "", "", "", experiments=("first",), reason="none")


def test_findings_survive_json():
    original = found(numbers={"a": 1, "b": math.nan, "c": math.inf}, note="n")
    config = json.loads(json.dumps(original.to_config(), allow_nan=False))
    again = Finding.from_config(config)
    assert again.to_config() == original.to_config() and again.verdict == CONFIRMED
    assert math.isnan(again.numbers["b"]) and again.numbers["c"] == math.inf
    missing = found(math.nan, reason="short")
    assert Finding.from_config(missing.to_config()).verdict == NOT_TESTED


def test_an_edited_verdict_is_refused():
    config = found(5).to_config()
    assert config["verdict"] == REFUTED
    config["verdict"] = CONFIRMED
    with pytest.raises(ValueError, match="says 'confirmed', but its criteria give 'refuted'"):
        Finding.from_config(config)


def row(*findings, claim="C1"):
    (result,) = (r for r in ClaimTable(CLAIMS, findings).rows if r.claim.id == claim)
    return result


def test_a_claim_that_nobody_reported_has_a_reason():
    untested = {r.claim.id: (r.verdict(), r.reason) for r in ClaimTable(CLAIMS, [found()]).rows}
    assert untested["C1"] == (CONFIRMED, "")
    assert untested["C2"] == (NOT_TESTED, "another machine")
    assert untested["C3"] == (NOT_TESTED, "second did not report on it")
    partly = row(found(criteria=(), reason="no weights"))
    assert partly.verdict() == NOT_TESTED
    assert partly.reason == "no weights; second did not report on it"


@pytest.mark.parametrize(
    ("published", "corrected", "both"),
    [
        (7, 7, "yes"),
        (7, 5, "no, not in corrected"),
        (5, 7, "no, not in published"),
        (5, 5, "no, in neither"),
        (7, None, "corrected not tested"),
        (None, 5, "published not tested"),
    ],
)
def test_both_protocols(published, corrected, both):
    values = {"published": published, "corrected": corrected}
    result = row(*(found(v, protocol=p) for p, v in values.items() if v is not None))
    assert result.both == both


def test_one_network_refutes():
    result = row(found(network="a"), found(5, network="b"), found(network="c", experiment="second"))
    assert result.verdict() == result.verdict("published") == REFUTED
    assert result.verdict("corrected") == NOT_TESTED
    assert result.networks(CONFIRMED) == ("a", "c") and result.networks(REFUTED) == ("b",)
    assert row().both == NOT_TESTED


@pytest.mark.parametrize(
    ("findings", "message"),
    [
        ([found(claim="C7")], r"first on C7 \(net\): there is no such claim"),
        ([found(experiment="third")], "third on C1 .*: the claim does not name this experiment"),
        ([found(protocol="other")], "there is no protocol 'other'"),
        ([found(), found(5)], "first on C1 .*, published: reported twice"),
    ],
)
def test_inconsistent_ledgers(findings, message):
    with pytest.raises(ValueError, match=message):
        ClaimTable(CLAIMS, findings)
    with pytest.raises(ValueError, match="claim C2 occurs twice"):
        ClaimTable((*CLAIMS, dataclasses.replace(CLAIMS[1])), [])


def test_markdown_and_json():
    findings = [found(numbers={"median": 1.5}, note="A note."), found(5, protocol="corrected")]
    table = ClaimTable(CLAIMS, findings)
    text = table.markdown("Claims", "How to read it.")
    assert "| C1 | The ratio is > 6. | > 6 | refuted | no, not in corrected | net | net |" in text
    assert (
        "| C2 | It takes a day. | a day | not tested: another machine | not tested |  |  |" in text
    )
    assert "It \\| converges." in text
    assert "| net | published | confirmed | ratio > 6 | 7 | yes |" in text
    assert "| net | corrected | refuted | ratio > 6 | 5 | no |" in text
    assert "net, published: median 1.5." in text
    assert text.count("A note.") == text.count("    python -m experiments.paper.first") == 1
    config = table.to_config()["claims"]
    assert [c["id"] for c in config] == ["C1", "C2", "C3"]
    assert config[0]["protocols"] == {"published": CONFIRMED, "corrected": REFUTED}
    json.dumps(config, allow_nan=False)
