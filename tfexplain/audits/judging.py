"""What an audit says of each method: cells of the verdict, made of saved Datasets by thresholds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tfexplain.checks import real

if TYPE_CHECKING:
    import xarray as xr

SENSITIVE, INSENSITIVE, NOT_MEASURED = "sensitive", "insensitive", "not measured"
SSIM, RANK, COSINE = "structural similarity", "|rank correlation|", "|cos|"
# |cos| from here on is written by its distance from 1.
FROM_ONE = 0.9
_NAN = math.nan


@dataclass(frozen=True)
class Thresholds:
    """From where on a number counts as insensitive, all settable.

    Attributes:
        last_layers: Median structural similarity of maps before and after the last layer is
            randomised; above it a method is insensitive to the last layer.
        last_layers_rank: The same for the magnitude of the rank correlation, which is used where
            maps have no structural similarity (tables).
        other_class: Median structural similarity of the maps of two classes.
        directions: Median |cos| of the relevance of random outputs at the first layer.
        conservation: Median magnitude of the sum of a map minus the explained output, relative to
            that output; up to it a map is called conserved.
        ssm: Share of the way of SSM from 1 (all maps alike) to the largest possible value, up to
            which maps are called alike.

    Raises:
        ValueError: If one is no number in 0..1.
    """

    last_layers: float = 0.95
    last_layers_rank: float = 0.95
    other_class: float = 0.95
    directions: float = 0.99
    conservation: float = 0.01
    ssm: float = 0.1

    def __post_init__(self) -> None:
        """Checks the values."""
        for name, value in dataclasses.asdict(self).items():
            number = real(name, value, 0)
            if number > 1:
                raise ValueError(f"{name} must be a number in 0..1, received {value!r}.")
            # JSON knows no NumPy numbers.
            object.__setattr__(self, name, number)


@dataclass(frozen=True)
class Cell:
    """One check of one method.

    Attributes:
        word: In plain words: "sensitive", "insensitive", "not measured: <reason>" ...
        value: The number; not a number where nothing was measured.
        low: Lower end of the interval.
        high: Upper end.
        passed: For checks that decide on trust; None for others, and where nothing was measured.
        measure: What the number is.
        interval: What the interval is.
        samples: How many samples count; 0 where pairs of vectors do.
    """

    word: str
    value: float = _NAN
    low: float = _NAN
    high: float = _NAN
    passed: bool | None = None
    measure: str = ""
    interval: str = ""
    samples: int = 0

    def __post_init__(self) -> None:
        """Makes NumPy's values plain: JSON knows none of them."""
        for name in ("value", "low", "high"):
            object.__setattr__(self, name, float(getattr(self, name)))
        object.__setattr__(self, "samples", int(self.samples))
        if self.passed is not None:
            object.__setattr__(self, "passed", bool(self.passed))

    @property
    def measured(self) -> bool:
        """Whether there is a number."""
        return not math.isnan(self.value)

    @property
    def text(self) -> str:
        """The number as people read it."""
        return self.text_of(self.value) if self.measured else ""

    def text_of(self, value: float) -> str:
        """Returns a number in the unit of the cell: |cos| near 1 by its distance from 1."""
        if self.measure != COSINE or value < FROM_ONE:
            return f"{value:.3g}"
        return "1" if value >= 1 else f"1-10^-{-math.log10(1 - value):.1f}"


@dataclass(frozen=True)
class Check:
    """One question of the verdict, which the Dataset of an audit answers for each method.

    Attributes:
        name: In tables and files.
        title: As a heading.
        meaning: For people who did not read the papers.
        measure: Function of (Dataset, method, thresholds) that returns the cell.
        decides: Whether trust depends on it.
        breaks_ties: Whether methods of equal trust are sorted by it, the lowest first.
        head: Head of its column in printed tables, a word or two; empty: it is not printed.
        interval: What its intervals are; empty for those of medians (`bootstrap`).
    """

    name: str
    title: str
    meaning: str
    measure: Callable[[xr.Dataset, str, Thresholds], Cell]
    decides: bool = False
    breaks_ties: bool = False
    head: str = ""
    interval: str = ""


def bootstrap() -> str:
    """Returns what the intervals of medians are."""
    from tfexplain import metrics

    return f"{metrics.CONFIDENCE:.0%} of the median, by resampling the samples"


def missing(reason: str) -> Cell:
    """Returns the cell of a method of which there is no number."""
    return Cell(f"{NOT_MEASURED}: {reason}")


def median_cell(
    values: np.ndarray, measure: str, word: Callable[[float, float, float], str]
) -> Cell | None:
    """Returns the cell of the median of a number over samples; None if no number is finite.

    Args:
        values: (samples,).
        measure: What the number is.
        word: Function of the median and the ends of its interval.
    """
    from tfexplain import metrics

    middle, low, high = map(float, metrics.median_interval(values))
    if math.isnan(middle):
        return None
    count = int(np.isfinite(values).sum())
    text = word(middle, low, high)
    return Cell(text, middle, low, high, None, measure, bootstrap(), count)


def similarity_cell(values: np.ndarray, measure: str, threshold: float) -> Cell:
    """Returns the cell of a similarity of maps, high for methods that are insensitive.

    Args:
        values: (samples,).
        measure: What the number is.
        threshold: A median above it is insensitive.
    """
    cell = median_cell(
        values, measure, lambda middle, *_: INSENSITIVE if middle > threshold else SENSITIVE
    )
    if cell is None:
        return missing("maps are constant or not finite")
    return dataclasses.replace(cell, passed=cell.word == SENSITIVE)


def ranked_cell(dataset: xr.Dataset, method: str, variable: str, measure: str) -> Cell:
    """Returns the cell of a number that is compared with that of the other methods, by thirds.

    Args:
        dataset: With the variable over (analyzer, sample).
        method: Name of the analyzer.
        variable: Its name.
        measure: What the number is.
    """
    everyone = dataset[variable].median("sample").values
    everyone = everyone[np.isfinite(everyone)]
    few = len(everyone) < 3
    lower, upper = (0.0, 0.0) if few else np.quantile(everyone, [1 / 3, 2 / 3])

    def word(middle: float, low: float, high: float) -> str:
        if few:
            return "too few methods to compare with"
        return "low" if middle < lower else "high" if middle > upper else "middle"

    unit = measure if few else f"{measure}; thirds of {len(everyone)} methods"
    cell = median_cell(dataset[variable].sel(analyzer=method).values, unit, word)
    return missing("not a number for any sample") if cell is None else cell
