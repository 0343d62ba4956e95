"""What an audit is: one question about explanations, with all that concerns it, in one class."""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tfexplain.audits.drawings import Drawing, Gallery, Grid, Labels
from tfexplain.audits.judging import Check
from tfexplain.checks import frozen

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from tfexplain.analyzers import Analyzer
    from tfexplain.audits.case import Case

PRESETS = ("quick", "default", "thorough")
# As in `tfexplain.runs`, which imports TensorFlow.
Arrays = dict[str, "np.ndarray"]
# What the settings and attributes of every run have; an option of the same name would be lost.
RESERVED = (
    "analyzers",
    "architecture_sha256",
    "audit",
    "batch_size",
    "block_size",
    "notes",
    "precision",
    "samples_sha256",
    "seed",
    "settings",
    "targets_sha256",
    "versions",
    "weights_sha256",
)


@dataclass(frozen=True, eq=False)
class Work:
    """A case, and what an audit has made ready for it; audits add fields of their own.

    Attributes:
        case: What is audited.
        options: All that the numbers depend on besides model, methods and samples, as JSON-able
            data; they become attributes of the Dataset.
        steps: Into how many steps the work on one block falls, for the display of progress.
        notes: What a reader may not expect.
        versions: Package -> version, of packages that only this audit uses.
        sample_steps: How many steps there are for each sample of a block besides.
    """

    case: Case
    options: Mapping[str, Any]
    steps: int
    notes: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    sample_steps: int = 0


@dataclass(frozen=True)
class Audit(abc.ABC):
    """One question about explanations: a frozen dataclass whose fields are its options.

    Arrays and lists among the options become nested tuples, NumPy's numbers those of Python, so
    that audits can be compared and their settings be written.

    A subclass declares what it asks and where it fits, and defines `measure` and `combine` (or, if
    samples cannot be taken apart, `compute`). `tfexplain.audits.register` enters it in `AUDITS`:
    then it takes part in `tfexplain.audit`, the page and the verdict.

    Attributes:
        name: In files, tables and options.
        title: As a heading.
        question: What it asks, in one sentence.
        caption: What a reader sees on the page.
        function: Full name of the public function that asks the same; empty if there is none.
        references: Keys of `tfexplain.references.REFERENCES`.
        presets: Name of a preset -> what a report sets: options, of which `for_case` makes the
            audit, and `samples`, how many samples it takes at most.
        in_report: Whether it takes part in a report.
        by_samples: Whether samples are measured block by block.
        of_model: Whether it looks at the model alone, without methods.
        precise: Whether it measures directions, spectra or conservation: then methods run at the
            highest precision.
        compiled: How much it compiles for each method, in units of the first map of that method.
        block_size: Samples that are finished and stored together, unless told otherwise.
        checks: What it answers in the verdict.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]
    caption: ClassVar[str] = ""
    function: ClassVar[str] = ""
    references: ClassVar[tuple[str, ...]] = ()
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    in_report: ClassVar[bool] = True
    by_samples: ClassVar[bool] = True
    of_model: ClassVar[bool] = False
    precise: ClassVar[bool] = False
    compiled: ClassVar[float] = 0.0
    block_size: ClassVar[int] = 32
    checks: ClassVar[tuple[Check, ...]] = ()

    def __post_init__(self) -> None:
        """Freezes the options."""
        for option in dataclasses.fields(self):
            object.__setattr__(self, option.name, frozen(getattr(self, option.name)))

    @classmethod
    def check_fields(cls) -> None:
        """Refuses options whose names mean something else in every run.

        Raises:
            ValueError: If there are some.
        """
        names = [option.name for option in dataclasses.fields(cls)]
        if taken := [name for name in names if name in RESERVED]:
            raise ValueError(
                f"The audit {cls.__name__} has the field(s) {', '.join(taken)}, and every run has "
                "settings of that name: seed and batches come with the case. Choose other names."
            )

    # --- where it fits, and what it costs ---

    @classmethod
    def suits(cls, case: Case) -> str:
        """Returns why it makes no sense for a model and its data; empty if it does."""
        return ""

    @classmethod
    def refuses(cls, analyzer: Analyzer, case: Case) -> str:
        """Returns why a method has no such number; empty if it has one."""
        return ""

    @classmethod
    def lacks(cls, case: Case) -> str:
        """Returns which package a report of the case needs and does not find; empty if none."""
        return ""

    @classmethod
    def for_case(cls, case: Case, settings: Mapping[str, Any]) -> Audit:
        """Returns the audit that a report runs; by default the settings are its options.

        Args:
            case: What is audited, as many samples as the settings say.
            settings: Those of a preset, without `samples`.
        """
        return cls(**settings)

    def passes(self, case: Case) -> float:
        """Returns about how many forward passes of the model it takes; by default a map each."""
        return case.count * case.passes_per_map()

    def seconds(self, case: Case) -> float:
        """Returns what it takes besides those passes."""
        return 0.0

    # --- the work ---

    def prepare(self, case: Case) -> Work:
        """Checks the options against the case, before heavy work starts.

        Raises:
            ValueError: If they do not fit.
        """
        options = {**dataclasses.asdict(self), **case.options("targets")}
        return Work(case, options, len(case.analyzers))

    def measure(self, work: Any, block: slice, advance: Callable[[], None]) -> Arrays:
        """Measures a block of samples.

        Args:
            work: The `Work` that `prepare` returned.
            block: Which samples.
            advance: Function to call after each step; a block has `work.steps`, and
                `work.sample_steps` for each of its samples.

        Returns:
            Arrays by name, which are kept until all blocks are done.
        """
        raise NotImplementedError

    def combine(self, work: Any, blocks: Sequence[Arrays]) -> xr.Dataset:
        """Returns the Dataset of all blocks; attributes of its own win over those of the run."""
        raise NotImplementedError

    def compute(self, case: Case, path: str | os.PathLike | None) -> xr.Dataset:
        """Returns the Dataset, where samples are not measured block by block."""
        raise NotImplementedError

    def check(self, case: Case) -> None:
        """Refuses a case that the audit does not fit, before `run` measures it.

        Raises:
            ValueError: With the reason.
        """
        if reason := self.suits(case):
            raise ValueError(f"{reason[0].upper()}{reason[1:].rstrip('.')}.")
        self.check_methods(case)

    def check_methods(self, case: Case) -> None:
        """Refuses methods that have no such number.

        Raises:
            ValueError: With the reason of the first.
        """
        for name, analyzer in case.analyzers.items():
            if reason := self.refuses(analyzer, case):
                raise ValueError(
                    f"{name!r} ({analyzer.name}) has no place in {self.name}: "
                    f"{reason.rstrip('.')}. Leave it out."
                )

    def run(
        self, case: Case, *, block_size: int | None = None, path: str | os.PathLike | None = None
    ) -> xr.Dataset:
        """Measures a case.

        Args:
            case: What is audited.
            block_size: Samples that are finished and stored together; None for `block_size`. An
                audit that is not measured block by block takes None alone.
            path: NetCDF file for the result. A run that was stopped continues with the same numbers
                (finished blocks are in the folder `<path>.blocks`); a finished file of the same
                settings is read. None: nothing is written.

        Raises:
            TypeError: If `case` is no Case, for example the samples alone.
            ValueError: If the audit does not fit, or the path holds another run.
        """
        from tfexplain import runs
        from tfexplain.audits.case import Case

        if not isinstance(case, Case):
            raise TypeError(
                f"{type(self).__name__}.run takes a case (tfexplain.audits.case.Case), received "
                f"{type(case).__name__}. Make one, Case(analyzers, x, y)"
                + (f", or call {self.function}." if self.function else ".")
            )
        self.check_fields()
        self.check(case)
        if not self.by_samples:
            if block_size is not None:
                raise ValueError(
                    f"{self.name} is not measured in blocks of samples, received "
                    f"block_size={block_size!r}. Leave it out."
                )
            return self.compute(case, path)
        if self.precise:
            case = case.at_highest_precision()
        work = self.prepare(case)
        settings = runs.settings(
            self.name, case.analyzers, case.inputs, work.options, with_data=path is not None
        )
        settings["versions"] |= work.versions

        def combine(blocks: Sequence[Arrays]) -> xr.Dataset:
            dataset = self.combine(work, blocks)
            return dataset.assign_attrs({**runs.attributes(settings, work.notes), **dataset.attrs})

        return runs.in_blocks(
            lambda block, advance: self.measure(work, block, advance),
            combine,
            title=self.name.replace("_", " "),
            count=case.count,
            block_size=self.block_size if block_size is None else block_size,
            steps=work.steps,
            sample_steps=work.sample_steps,
            settings=settings,
            path=path,
        )

    # --- what is shown ---

    @classmethod
    def draw(cls, dataset: xr.Dataset, labels: Labels) -> Iterable[Drawing | Gallery | Grid]:
        """Returns what a page shows of the Dataset; by default nothing.

        Args:
            dataset: With the methods in the order in which they are shown.
            labels: How samples and outputs are called.
        """
        return ()

    @classmethod
    def page_notes(cls, dataset: xr.Dataset) -> list[str]:
        """Returns what a reader of the page has to know beside the Dataset's own notes."""
        return []
