"""Numbers from arrays: reductions and normalisations of maps, similarities, pooled quantiles.

A map is relevance without its channels, shape (*sizes). What compares maps takes one pair, what
measures a map takes one; both return one float, NaN where it is not defined (a constant map).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import scipy.special
import scipy.stats
from skimage.metrics import structural_similarity

# Bins of 1 - |cos|: all below 1e-16 in the first, then 50 per decade up to 1.
BINS_PER_DECADE = 50
DECADES = 16
BIN_EDGES = np.concatenate(
    [[0.0], 10.0 ** (np.arange(BINS_PER_DECADE * DECADES + 1) / BINS_PER_DECADE - DECADES)]
)
# Resamples and level of the interval of a median, as in [sixt2020when].
RESAMPLES, CONFIDENCE = 10_000, 0.99
BOOTSTRAP_NUMBERS = 2**23


# --- reductions over channels ---


def abs_sum(relevance: np.ndarray) -> np.ndarray:
    """Sums magnitudes over the last axis: what [sixt2020when] writes of gradient maps."""
    return np.abs(relevance).sum(axis=-1)


def abs_max(relevance: np.ndarray) -> np.ndarray:
    """Largest magnitude of the last axis: what the code of [sixt2020when] does."""
    return np.abs(relevance).max(axis=-1)


def channel_sum(relevance: np.ndarray) -> np.ndarray:
    """Sums over the last axis: the relevance of a location."""
    return relevance.sum(axis=-1)


REDUCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "abs_sum": abs_sum,
    "abs_max": abs_max,
    "sum": channel_sum,
}


# --- normalisations ---


def percentile(map: np.ndarray, percent: float = 99.5) -> np.ndarray:
    """Scales a map to 0..1 between two percentiles; beyond them it is clipped.

    (m - lo) / (hi - lo) with hi the given and lo the opposite percentile. The published code of
    [sixt2020when] swaps the two, which inverts maps (see `inverted_percentile`).

    Args:
        map: Any shape.
        percent: Upper percentile, in (50, 100].

    Returns:
        Float64 array of the same shape; NaN everywhere if the two percentiles are equal, or if the
        map holds NaN or infinity.
    """
    map = np.asarray(map, "float64")
    if not np.isfinite(map).all():
        return np.full(map.shape, np.nan)
    low, high = np.percentile(map, [100 - percent, percent])
    if not high > low:
        return np.full(map.shape, np.nan)
    return np.clip((map - low) / (high - low), 0, 1)


def minmax(map: np.ndarray) -> np.ndarray:
    """Scales a map to 0..1 between its extremes: for sparse maps (see `percentile`)."""
    return percentile(map, 100)


def inverted_percentile(map: np.ndarray, percent: float = 99.5) -> np.ndarray:
    """`percentile` upside down, as the code of [sixt2020when] has it: background is 1.

    The bright background raises the luminance term of SSIM for sparse maps.
    """
    return 1 - percentile(map, percent)


def inverted_minmax(map: np.ndarray) -> np.ndarray:
    """`minmax` upside down, as the code of [sixt2020when] has it for RectGrad."""
    return 1 - percentile(map, 100)


NORMALIZATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "percentile": percentile,
    "minmax": minmax,
    "inverted_percentile": inverted_percentile,
    "inverted_minmax": inverted_minmax,
}


# --- similarities ---


def ssim(first: np.ndarray, second: np.ndarray, data_range: float = 1.0) -> float:
    """Mean structural similarity of two normalised maps.

    Window of 5, uniform filter, sample covariance, K1 = 0.01, K2 = 0.03, as in [sixt2020when].

    Args:
        first: Map with every size >= 5; one axis (a sequence), two (an image) or more.
        second: Map of the same shape.
        data_range: Range of the values. The published code of [sixt2020when] leaves it to a
            library that takes 2 for floats, which raises the similarity of flat regions.

    Returns:
        -1..1; NaN if a map holds NaN.

    Raises:
        ValueError: If a size is below 5, or shapes differ.
    """
    if np.shape(first) != np.shape(second) or min(np.shape(first), default=0) < 5:
        raise ValueError(
            f"SSIM compares maps of one shape with sizes >= 5, received {np.shape(first)} and "
            f"{np.shape(second)}."
        )
    if np.isnan(first).any() or np.isnan(second).any():
        return float("nan")
    return float(structural_similarity(first, second, win_size=5, data_range=data_range))


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation of two maps, ties at their mean rank; NaN if one is constant or not finite.

    Args:
        first: Any shape.
        second: The same shape.

    Returns:
        -1..1.
    """
    ranks = []
    for map in (first, second):
        if not np.isfinite(map).all():
            return float("nan")
        rank = scipy.stats.rankdata(np.ravel(map))
        ranks.append(rank - (rank.size + 1) / 2)
    return cosine(*ranks)


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    """Cosine of the angle between two maps as vectors; NaN if one is zero or not finite.

    Close to 1 and to -1 it is taken from the distance of the normalised vectors, so that 1 - cos
    has no cancellation beyond the spacing of floats.
    """
    first, second = np.ravel(first).astype("float64"), np.ravel(second).astype("float64")
    # Scaled first, because squares of tiny numbers vanish.
    for vector in (first, second):
        largest = np.abs(vector).max(initial=0)
        if largest == 0 or not np.isfinite(largest):
            return float("nan")
        vector /= largest
        vector /= np.linalg.norm(vector)
    apart, together = np.sum((first - second) ** 2) / 2, np.sum((first + second) ** 2) / 2
    return float(1 - apart if apart < together else together - 1)


# --- one map ---


def entropy(map: np.ndarray) -> float:
    """Shannon entropy of a map in nats: p_i = |r_i| / sum |r|, and H = -sum p_i log p_i.

    Low where few locations have the relevance, log(number of locations) where all have the same.
    It ignores the signs and the scale of the map.

    Args:
        map: Any shape.

    Returns:
        0..log(map.size); 0 log 0 counts as 0. NaN if the map is zero everywhere or not finite.

    Example:
        >>> round(entropy(np.array([3.0, -3.0])), 3)
        0.693
    """
    magnitudes = np.abs(np.asarray(map, "float64"))
    largest = magnitudes.max(initial=0)
    if largest == 0 or not np.isfinite(largest):
        return float("nan")
    # Scaled first, because sums of huge numbers are infinite.
    magnitudes = magnitudes / largest
    # Clipped, because the parts of a map with a single location sum to 1 but for rounding.
    return max(0.0, float(scipy.special.entr(magnitudes / magnitudes.sum()).sum()))


# --- counts of 1 - |cos| ---


def histogram_quantiles(count: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Returns quantiles of |cos| from counts of 1 - |cos| over `BIN_EDGES`.

    Within a bin the logarithm of 1 - |cos| is taken as uniform; what lies in the first bin counts
    as |cos| = 1. The error of 1 - |cos| is at most the width of a bin, 4.8 %.

    Args:
        count: Shape (..., bins).
        q: Probabilities in 0..1, shape (k,).

    Returns:
        Shape (..., k); NaN where nothing was counted.
    """
    count, q = np.asarray(count), np.asarray(q, "float64")
    flat = count.reshape(-1, count.shape[-1])
    quantiles = np.full((len(flat), len(q)), np.nan)
    for row, counts in enumerate(flat):
        total = counts.sum()
        if total == 0:
            continue
        # The quantile q of |cos| is the quantile 1 - q of 1 - |cos|.
        upto = np.cumsum(counts)
        wanted = (1 - q) * total
        places = np.minimum(np.searchsorted(upto, wanted, side="left"), len(counts) - 1)
        # An empty bin holds no quantile; q = 1 is the lower end of the first that holds one.
        places = np.maximum(places, np.flatnonzero(counts)[0])
        share = (wanted - (upto[places] - counts[places])) / counts[places]
        low, high = BIN_EDGES[places], BIN_EDGES[places + 1]
        inside = np.maximum(low, BIN_EDGES[1]) ** (1 - share) * high**share
        quantiles[row] = 1 - np.where(places == 0, 0.0, inside)
    return quantiles.reshape(*count.shape[:-1], len(q))


def random_direction_cosine(size: int, q: float = 0.5) -> float:
    """Returns a quantile of |cos| of two random directions in `size` dimensions.

    cos^2 of two Gaussian vectors follows the Beta distribution with 1/2 and (size - 1)/2.

    Args:
        size: Number of dimensions, >= 1; in one dimension all directions agree.
        q: Probability.

    Example:
        >>> round(random_direction_cosine(2), 3)
        0.707
    """
    if size == 1:
        return 1.0
    return float(np.sqrt(scipy.stats.beta.ppf(q, 0.5, (size - 1) / 2)))


# --- summaries ---


def median_interval(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the median of values and its 99 % interval, by resampling them 10,000 times.

    Args:
        values: Shape (n,); what is not a number is left out.
        seed: The seed of the resamples.

    Returns:
        Median, low and high: not a number without values; low and high need two of them.
    """
    values = values[~np.isnan(values)]
    if not len(values):
        return np.full(3, np.nan)
    middle = np.median(values)
    if len(values) < 2:
        return np.array([middle, np.nan, np.nan])
    # Named random_state before SciPy 1.15.
    known = inspect.signature(scipy.stats.bootstrap).parameters
    generator = {"rng" if "rng" in known else "random_state": np.random.default_rng(seed)}
    interval = scipy.stats.bootstrap(
        (values,),
        np.median,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        # Bounds the memory: all resamples of a batch are made at once.
        batch=max(1, BOOTSTRAP_NUMBERS // len(values)),
        **generator,
    ).confidence_interval
    return np.array([middle, interval.low, interval.high])
