"""Claims of a paper, what experiments found about them, and the table that joins both.

An experiment states no verdict: it gives criteria, which are a measured number, a relation and a
bound, and the verdict follows from them, here and whenever a table is read again.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tfexplain import tables

CONFIRMED, REFUTED, NOT_TESTED = "confirmed", "refuted", "not tested"
PROTOCOLS = ("published", "corrected")
RELATIONS = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
}


@dataclass(frozen=True)
class Claim:
    """One statement of a paper, in our own words.

    Args:
        id: Short name, as "S4".
        statement: What is claimed.
        published: The published value, or what stands for it.
        place: Where the paper says it.
        networks: What the paper shows it on.
        experiments: Names of the modules that report on it.
        reason: Why no experiment reports on it.

    Raises:
        ValueError: If neither experiments nor a reason are given, or both are.
    """

    id: str
    statement: str
    published: str
    place: str
    networks: tuple[str, ...] = ()
    experiments: tuple[str, ...] = ()
    reason: str = ""

    def __post_init__(self) -> None:
        """Checks that somebody is responsible, or that it is said why nobody is."""
        if bool(self.experiments) == bool(self.reason):
            raise ValueError(
                f"Claim {self.id} has the experiments {self.experiments} and the reason "
                f"{self.reason!r}. Name the experiments that report on it, or, if there are none, "
                "the reason."
            )


@dataclass(frozen=True)
class Criterion:
    """One comparison of a number with a bound.

    Args:
        quantity: What was measured, with its unit if it has one.
        value: The number; NaN if it could not be measured.
        relation: One of `RELATIONS`.
        bound: What it is compared with.

    Raises:
        ValueError: For another relation, or a bound that is NaN.

    Example:
        >>> Criterion("median |cos|", 0.97, ">=", 0.99).holds
        False
    """

    quantity: str
    value: float
    relation: str
    bound: float

    def __post_init__(self) -> None:
        """Checks the relation and makes Python numbers of NumPy's."""
        if self.relation not in RELATIONS:
            raise ValueError(
                f"relation is {self.relation!r}. Expected one of {', '.join(RELATIONS)}."
            )
        object.__setattr__(self, "value", float(self.value))
        object.__setattr__(self, "bound", float(self.bound))
        if math.isnan(self.bound):
            raise ValueError(f"The bound of {self.quantity!r} is NaN. Give a number.")

    @property
    def holds(self) -> bool | None:
        """Whether the relation holds; None if the value is NaN."""
        if math.isnan(self.value):
            return None
        return RELATIONS[self.relation](self.value, self.bound)

    def __str__(self) -> str:
        """Writes the quantity, its value, and what it is compared with."""
        return f"{self.quantity}: {self.value:.4g} ({self.relation} {self.bound:g})"


@dataclass(frozen=True)
class Finding:
    """What one experiment found about one claim, on one network under one protocol.

    Args:
        claim: Id of the claim.
        experiment: Name of the module.
        protocol: Name of the protocol.
        network: What it was measured on.
        criteria: All of them have to hold; none means that the claim was not tested.
        numbers: Further numbers, by what they are.
        note: What a reader has to know beside the numbers.
        reason: Why it was not tested. Needed without criteria, and where a value is NaN.
        command: The command that made it.

    Raises:
        ValueError: If nothing was tested and no reason is given.
    """

    claim: str
    experiment: str
    protocol: str
    network: str
    criteria: tuple[Criterion, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""
    reason: str = ""
    command: str = ""

    def __post_init__(self) -> None:
        """Checks that what was not tested has a reason."""
        object.__setattr__(self, "criteria", tuple(self.criteria))
        numbers = {str(key): float(value) for key, value in self.numbers.items()}
        object.__setattr__(self, "numbers", numbers)
        if self.verdict == NOT_TESTED and not self.reason:
            missing = [c.quantity for c in self.criteria if c.holds is None]
            raise ValueError(
                f"{self.experiment} has no verdict on {self.claim} ({self.network}, "
                f"{self.protocol}): {', '.join(missing) or 'there are no criteria'}. Give the "
                "reason."
            )

    @property
    def verdict(self) -> str:
        """Refuted if a criterion fails, confirmed if all hold, else not tested."""
        holds = [criterion.holds for criterion in self.criteria]
        if False in holds:
            return REFUTED
        return CONFIRMED if holds and None not in holds else NOT_TESTED

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What tells findings apart."""
        return self.claim, self.experiment, self.protocol, self.network

    def to_config(self) -> dict[str, Any]:
        """Returns the finding as JSON-able data, with its verdict; NaN becomes None."""
        criteria = [
            {
                "quantity": c.quantity,
                "value": _number(c.value),
                "relation": c.relation,
                "bound": c.bound,
                "holds": c.holds,
            }
            for c in self.criteria
        ]
        return {
            "claim": self.claim,
            "experiment": self.experiment,
            "protocol": self.protocol,
            "network": self.network,
            "verdict": self.verdict,
            "criteria": criteria,
            "numbers": {key: _number(value) for key, value in self.numbers.items()},
            "note": self.note,
            "reason": self.reason,
            "command": self.command,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Finding:
        """Returns the finding that `to_config` described.

        Raises:
            ValueError: If the verdict is not the one that the criteria give.
        """
        values = dict(config)
        verdict = values.pop("verdict")
        criteria = [
            Criterion(c["quantity"], _value(c["value"]), c["relation"], c["bound"])
            for c in values.pop("criteria")
        ]
        numbers = {key: _value(value) for key, value in values.pop("numbers").items()}
        finding = cls(criteria=tuple(criteria), numbers=numbers, **values)
        if verdict != finding.verdict:
            raise ValueError(
                f"The finding of {finding.experiment} on {finding.claim} ({finding.network}, "
                f"{finding.protocol}) says {verdict!r}, but its criteria give "
                f"{finding.verdict!r}. Run the experiment again instead of editing its findings."
            )
        return finding


def _number(value: float) -> float | str | None:
    """Returns a value that strict JSON has."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)


def _value(stored: float | str | None) -> float:
    return math.nan if stored is None else float(stored)


@dataclass(frozen=True)
class Row:
    """A claim with all that was found about it.

    Args:
        claim: The claim.
        findings: Findings of all experiments, networks and protocols.
        reason: Why it was not tested, if it was not.
    """

    claim: Claim
    findings: tuple[Finding, ...]
    reason: str = ""

    @property
    def tested(self) -> tuple[Finding, ...]:
        """Findings with a verdict."""
        return tuple(f for f in self.findings if f.verdict != NOT_TESTED)

    def verdict(self, protocol: str | None = None) -> str:
        """Returns the verdict under one protocol, or under all.

        A claim is confirmed if every network that was tested confirms it; one that refutes it is
        enough to refute.
        """
        verdicts = {f.verdict for f in self.tested if protocol in (None, f.protocol)}
        if REFUTED in verdicts:
            return REFUTED
        return CONFIRMED if verdicts else NOT_TESTED

    @property
    def both(self) -> str:
        """Whether the claim holds in both protocols: "yes", "no", or where it was not tested."""
        verdicts = {protocol: self.verdict(protocol) for protocol in PROTOCOLS}
        if set(verdicts.values()) == {CONFIRMED}:
            return "yes"
        if set(verdicts.values()) == {NOT_TESTED}:
            return NOT_TESTED
        untested = [p for p, verdict in verdicts.items() if verdict == NOT_TESTED]
        if untested:
            return f"{untested[0]} not tested"
        refuted = [p for p, verdict in verdicts.items() if verdict == REFUTED]
        return "no, in neither" if len(refuted) == 2 else f"no, not in {refuted[0]}"

    def networks(self, verdict: str) -> tuple[str, ...]:
        """Returns the networks with a finding of that verdict, in order."""
        return tuple(dict.fromkeys(f.network for f in self.findings if f.verdict == verdict))


class ClaimTable:
    """All claims of a paper with all findings.

    Args:
        claims: The claims, in order.
        findings: What the experiments reported.

    Raises:
        ValueError: If a claim occurs twice, a finding concerns no claim or an unknown protocol,
            two findings have the same key, or an experiment reports on a claim that does not name
            it.
    """

    def __init__(self, claims: Sequence[Claim], findings: Iterable[Finding]) -> None:
        findings = list(findings)
        known = {claim.id: claim for claim in claims}
        problems = [f"claim {c.id} occurs twice" for c in claims if known[c.id] is not c]
        seen = set()
        for finding in findings:
            where = f"{finding.experiment} on {finding.claim} ({finding.network})"
            claim = known.get(finding.claim)
            if claim is None:
                problems.append(f"{where}: there is no such claim")
            elif finding.experiment not in claim.experiments:
                problems.append(f"{where}: the claim does not name this experiment")
            if finding.protocol not in PROTOCOLS:
                problems.append(f"{where}: there is no protocol {finding.protocol!r}")
            if finding.key in seen:
                problems.append(f"{where}, {finding.protocol}: reported twice")
            seen.add(finding.key)
        if problems:
            raise ValueError(f"The table of claims is inconsistent: {'; '.join(problems)}.")
        self.rows = tuple(self._row(claim, findings) for claim in claims)

    @staticmethod
    def _row(claim: Claim, findings: Sequence[Finding]) -> Row:
        own = tuple(f for f in findings if f.claim == claim.id)
        if any(f.verdict != NOT_TESTED for f in own):
            return Row(claim, own)
        reasons = [claim.reason] if claim.reason else [f.reason for f in own]
        silent = [e for e in claim.experiments if e not in {f.experiment for f in own}]
        if silent:
            reasons.append(f"{', '.join(silent)} did not report on it")
        return Row(claim, own, "; ".join(dict.fromkeys(reasons)))

    def to_config(self) -> dict[str, Any]:
        """Returns the table as JSON-able data."""
        return {
            "claims": [
                {
                    "id": row.claim.id,
                    "statement": row.claim.statement,
                    "published": row.claim.published,
                    "place": row.claim.place,
                    "published_networks": list(row.claim.networks),
                    "verdict": row.verdict(),
                    "protocols": {p: row.verdict(p) for p in PROTOCOLS},
                    "holds_in_both_protocols": row.both,
                    "reason": row.reason,
                    "findings": [finding.to_config() for finding in row.findings],
                }
                for row in self.rows
            ]
        }

    def markdown(self, title: str, introduction: str = "") -> str:
        """Returns the table as Markdown: a table of all claims, then each with its numbers.

        Args:
            title: Heading of the page.
            introduction: Text under it.
        """
        lines = [f"# {title}", "", *([introduction, ""] if introduction else [])]
        head = ["claim", "statement", "published value", "verdict", "in both protocols"]
        body = []
        for row in self.rows:
            on = [", ".join(row.networks(verdict)) for verdict in (CONFIRMED, REFUTED)]
            verdict = row.verdict()
            shown = f"{verdict}: {row.reason}" if verdict == NOT_TESTED else verdict
            claim = row.claim
            body.append((claim.id, claim.statement, claim.published, shown, row.both, *on))
        lines.append(tables.markdown([*head, "confirmed on", "refuted on"], body))
        for row in self.rows:
            if row.findings:
                lines += ["", *_section(row)]
        return "\n".join(lines) + "\n"


def _section(row: Row) -> list[str]:
    """Returns the lines about one claim."""
    claim = row.claim
    lines = [f"## {claim.id}: {row.verdict()}", "", f"{claim.statement} ({claim.place})", ""]
    if claim.networks:
        lines += [f"Published for {', '.join(claim.networks)}: {claim.published}.", ""]
    head = ("network", "protocol", "verdict", "criterion", "value", "holds")
    lines.append(tables.markdown(head, ()))
    for finding in row.findings:
        first = (finding.network, finding.protocol, finding.verdict)
        if not finding.criteria:
            lines.append(f"{tables.markdown_row((*first, finding.reason))} | |")
        for c in finding.criteria:
            holds = {True: "yes", False: "no", None: finding.reason}[c.holds]
            cells = (*first, f"{c.quantity} {c.relation} {c.bound:g}", f"{c.value:.4g}", holds)
            lines.append(tables.markdown_row(cells))
            first = ("", "", "")
    # What several findings say alike stands once.
    for text in dict.fromkeys(f.note for f in row.findings if f.note):
        lines += ["", text]
    for finding in row.findings:
        if finding.numbers:
            numbers = "; ".join(f"{key} {value:.4g}" for key, value in finding.numbers.items())
            lines += ["", f"{finding.network}, {finding.protocol}: {numbers}."]
    commands = dict.fromkeys(f.command for f in row.findings if f.command)
    return [*lines, "", *(f"    {command}" for command in commands)]
