"""How the commands that audit say what they are going to do, and what they found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tfexplain.cli.consoles import out, print_text, show_warning

if TYPE_CHECKING:
    from tfexplain.report import Plan, Verdict

_MOST_REASONS = 8  # that are printed; audit.json has all


def print_plan(plan: "Plan", notes: Sequence[str] = ()) -> None:
    """Says what is going to be done and how long it may take, before it starts.

    Args:
        plan: The plan of an audit.
        notes: What else is worth saying.
    """
    for note in [*notes, *plan.notes]:
        show_warning(note)
    for name, reason in list(plan.left_out.items())[:_MOST_REASONS]:
        print_text(f"left out: {name}: {reason}")
    if len(plan.left_out) > _MOST_REASONS:
        print_text(f"left out: {len(plan.left_out) - _MOST_REASONS} more methods, see audit.json")
    for name, reasons in plan.reasons.items():
        if "" in reasons:
            print_text(f"left out: the audit {name}: {reasons['']}")
    print_text(
        f"methods: {len(plan.methods)}, audits: {len(plan.passes)}, passes of the model: about "
        f"{sum(plan.passes.values()):.0f}, about {_time(plan.seconds)} here"
    )


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def print_verdict(verdict: "Verdict") -> None:
    """Prints a line per method: the checks that have a head."""
    out.print(str(verdict), markup=False, highlight=False, soft_wrap=True)
    print_text("!: fails the test. -: not measured; report.html says why.")
