"""Theorems 1 to 6 and eq. 1 on random matrices and linear blocks, K-C4 to K-C8.

`published` takes statements as they are printed, `corrected` as they have to be:

* theorem 3 has ||M M^+ - N|| on its right side, where the least value is ||M M^+ N - N|| (K1);
* where a determinant is zero the paper multiplies the non-zero eigenvalues, which is no volume
  (K17); singular values are;
* operators are fitted on one trajectory of 2d steps, as section III.C has it, or on many inputs
  (K11).

Theorem 5 is for square operators of one size. What its conclusion, that credit and sensitivity are
inversely related, becomes for the widths of the paper's network is a finding of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from experiments.claim_table import Criterion, Finding
from experiments.koopman2022.protocol import PROTOCOLS, sizes
from experiments.runs import Experiment, Task, finding
from tfexplain import koopman

RANDOM, WIDTHS = "random", "random, widths of pooled_mlp"
# Rows and columns.
SHAPES = ((4, 4), (7, 4), (4, 7), (20, 8), (8, 20), (60, 15))
# Input and output dimensions of linear blocks: from large to small, and from small to large.
SHRINKING = ((20, 8), (81, 10), (64, 24))
ENLARGING = ((8, 20), (81, 128), (10, 40))
POOLED = (81, 128, 64, 24, 10)
BLOCKS, ORDER = 4, 5
# Part of a matrix by which least squares are disturbed.
DISTURBED = 1e-3
EXACT, FITTED = 1e-9, 1e-6
# Name of a measured quantity -> its largest or least value.
Worst = Callable[[str], float]


def compute(task: Task) -> xr.Dataset:
    """Measures all identities, one number for each seed: the worst over sizes."""
    protocol = PROTOCOLS[task.protocol]
    rows = [
        {
            **alignments(task.generator("alignment", seed), protocol.alignment),
            **kronecker_products(task.generator("kronecker", seed)),
            **determinants(task.generator("determinants", seed)),
            **pseudo_inverses(task.generator("pseudo-inverses", seed)),
            **sensitivities(task.generator("widths", seed)),
            **recovered(task.generator("recovered", seed), protocol.single, protocol.alignment),
        }
        for seed in range(sizes(task.request.tiny).seeds)
    ]
    draws = sizes(task.request.tiny).alignments
    losses = enlarged(task.generator("enlarged"), draws, protocol.alignment)
    return xr.Dataset(
        {
            **{name: ("seed", [row[name] for row in rows]) for name in rows[0]},
            **{name: ("enlarging", values) for name, values in losses.items()},
        },
        {"enlarging": [f"{p} to {q}" for p, q in ENLARGING]},
        {"described": str(protocol), "draws": draws},
    )


def alignments(generator: np.random.Generator, kind: str) -> dict[str, float]:
    """Theorem 4: distances of ||B A - I|| from its minimum, for A = B^+ and for others."""
    missed, others = [], []
    for n, m in SHAPES:
        a, b = koopman.alignment(m, n, generator, kind)
        least = np.sqrt(max(n - m, 0))
        missed.append(abs(_distance(b, a) - least))
        # A perturbation of B^+, and an unrelated matrix in its best scale.
        disturbed = a + DISTURBED * np.abs(a).max() * generator.normal(size=a.shape)
        others.append(_distance(b, disturbed) - least)
        drawn = generator.normal(size=a.shape)
        product = b @ drawn
        others.append(_distance(b, drawn * np.trace(product) / np.sum(product**2)) - least)
    return {"alignment_missed": max(missed), "alignment_others": min(others)}


def _distance(b: np.ndarray, a: np.ndarray) -> float:
    return float(np.linalg.norm(b @ a - np.eye(len(b))))


def kronecker_products(generator: np.random.Generator) -> dict[str, float]:
    """Theorems 1, 5 and 6, and eq. 2 as printed, for square operators of one size."""
    a, b = generator.normal(size=(3, 5)), generator.normal(size=(4, 6))
    x = generator.normal(size=(5, 4))
    vectorised = np.kron(a, b.T) @ x.ravel()
    ks = generator.normal(size=(BLOCKS, ORDER, ORDER))
    volumes = np.linalg.slogdet(ks)[1]
    determinant, printed, place = [], [], []
    order = generator.permutation(BLOCKS)
    for i in range(BLOCKS):
        jacobian = jacobian_of_product(ks, i)
        sensitivity = np.linalg.slogdet(jacobian)[1]
        determinant.append(sensitivity - ORDER * (volumes.sum() - volumes[i]))
        above, below = _product(ks[i + 1 :]), _product(ks[:i])
        printed.append(
            np.linalg.norm(np.kron(below, above.T) - jacobian) / np.linalg.norm(jacobian)
        )
        moved = jacobian_of_product(ks[order], int(np.flatnonzero(order == i)[0]))
        place.append(np.linalg.slogdet(moved)[1] - sensitivity)
    library = koopman.log_sensitivities(list(ks))
    expected = ORDER * (volumes.sum() - volumes)
    return {
        "theorem_1": float(np.abs(vectorised - (a @ x @ b).ravel()).max()),
        "theorem_5": float(np.abs(determinant).max()),
        "theorem_5_library": float(np.abs(library - expected).max()),
        "theorem_6": float(np.abs(place).max()),
        "equation_2_printed": float(np.min(printed)),
    }


def jacobian_of_product(ks: Sequence[np.ndarray], i: int) -> np.ndarray:
    """Returns the Jacobian of K_m ... K_1 by K_i, entry by entry; the product is linear in each.

    Args:
        ks: K_1 ... K_m.
        i: From 0.
    """
    columns = []
    for place in np.ndindex(ks[i].shape):
        unit = np.zeros(ks[i].shape)
        unit[place] = 1
        columns.append(_product([*ks[:i], unit, *ks[i + 1 :]]).ravel())
    return np.stack(columns, axis=1)


def _product(ks: Sequence[np.ndarray]) -> np.ndarray:
    """Returns K_m ... K_1; the identity of the common size without any."""
    product = np.eye(ORDER) if not len(ks) else ks[0]
    for k in ks[1:]:
        product = k @ product
    return product


def determinants(generator: np.random.Generator) -> dict[str, float]:
    """Determinants of non-square matrices, and volumes of singular square ones."""
    errors, eigenvalues, volumes = [], [], []
    for n, m in SHAPES:
        matrix = generator.normal(size=(n, m))
        gram = matrix.T @ matrix if n > m else matrix @ matrix.T
        volume = koopman.volume(matrix)
        errors.append(volume.log_volume - np.linalg.slogdet(gram)[1] / 2)
        # A singular matrix of known row and column space: M = Q_1 S Q_2^T.
        rank, size = max(1, min(n, m) // 2), min(n, m)
        left = np.linalg.qr(generator.normal(size=(size, rank)))[0]
        right = np.linalg.qr(generator.normal(size=(size, rank)))[0]
        stretched = generator.normal(size=(rank, rank))
        true = np.linalg.slogdet(stretched)[1]
        singular = left @ stretched @ right.T
        # Exactly as many eigenvalues are not zero as R S Q_2^T Q_1 has.
        eigenvalues.append(np.linalg.slogdet(stretched @ right.T @ left)[1] - true)
        volumes.append(koopman.volume(singular).log_volume - true)
    return {
        "determinant": float(np.abs(errors).max()),
        "eigenvalues_of_singular": float(np.abs(eigenvalues).max()),
        "volume_of_singular": float(np.abs(volumes).max()),
    }


def pseudo_inverses(generator: np.random.Generator) -> dict[str, float]:
    """Theorems 2 and 3, the latter as printed and as it has to be."""
    penrose, printed, corrected, library = [], [], [], []
    for n, m in SHAPES:
        matrix = generator.normal(size=(n, m))
        inverse = np.linalg.pinv(matrix)
        conditions = (
            matrix @ inverse @ matrix - matrix,
            inverse @ matrix @ inverse - inverse,
            (matrix @ inverse).T - matrix @ inverse,
            (inverse @ matrix).T - inverse @ matrix,
        )
        penrose += [np.abs(condition).max() for condition in conditions]
        # Square, so that the printed right side has a meaning: M M^+ - N.
        target = generator.normal(size=(n, n))
        best = inverse @ target
        least = np.linalg.norm(matrix @ best - target)
        printed.append(least - np.linalg.norm(matrix @ inverse - target))
        disturbed = best + DISTURBED * generator.normal(size=best.shape)
        corrected.append(np.linalg.norm(matrix @ disturbed - target) - least)
        # Rows are snapshots: Y' = K Y with Y = M^T has K = N^T (M^+)^T.
        fitted = koopman.fit(matrix, target).matrix
        library.append(np.abs(fitted - best.T).max())
    return {
        "penrose": max(penrose),
        "theorem_3_printed": min(printed),
        "theorem_3_corrected": min(corrected),
        "least_squares_library": max(library),
    }


def sensitivities(generator: np.random.Generator) -> dict[str, float]:
    """How often the block of larger credit has the smaller sensitivity; as theorem 5 has it."""
    square = list(generator.normal(size=(BLOCKS, ORDER, ORDER)))
    widths = [
        generator.normal(size=(q, p)) / np.sqrt(p) for p, q in zip(POOLED, POOLED[1:], strict=False)
    ]
    shares = {}
    for name, matrices in (("square", square), ("widths", widths)):
        credit = np.array([koopman.volume(matrix).log_volume for matrix in matrices])
        sensitivity = koopman.log_sensitivities(matrices)
        first, second = np.triu_indices(len(matrices), 1)
        inverse = (credit[first] - credit[second]) * (sensitivity[first] - sensitivity[second]) < 0
        shares[f"inverse_{name}"] = float(inverse.mean())
    return shares


def recovered(generator: np.random.Generator, single: bool, kind: str) -> dict[str, float]:
    """Eq. 1: relative error of the operator of linear blocks from large to small.

    Args:
        generator: It draws blocks, inputs and alignments.
        single: Fit 2d steps from one input; else two steps from p inputs.
        kind: The kind of alignment.
    """
    errors = []
    for p, q in SHRINKING:
        block = generator.normal(size=(q, p)) / np.sqrt(p)
        a, b = koopman.alignment(p, q, generator, kind)
        inputs, steps = (1, 2 * min(p, q)) if single else (p, 2)
        states = [generator.normal(size=(inputs, p))]
        for _ in range(steps):
            following = states[-1] @ block.T @ a.T
            # A linear block is the same at every scale, and its iterates shrink or grow.
            states.append(following / np.linalg.norm(following, axis=1, keepdims=True))
        before = np.concatenate(states[:-1])
        operator = b @ koopman.fit(before, before @ block.T @ a.T).matrix
        errors.append(np.linalg.norm(operator - block) / np.linalg.norm(block))
    return {"recovery_error": max(errors)}


def enlarged(generator: np.random.Generator, draws: int, kind: str) -> dict[str, np.ndarray]:
    """Eq. 1 for linear blocks from small to large, where K = B A W is what is fitted.

    Args:
        generator: It draws blocks and alignments.
        draws: Alignments.
        kind: The kind of alignment.

    Returns:
        Of each size: the mean relative error of one operator over sqrt(1 - p/q), the relative
        distance of the mean operator from (p/q) W and from W, and the largest distance of
        ||B A - I|| from sqrt(q - p).
    """
    errors: dict[str, list[float]] = {}
    for p, q in ENLARGING:
        block = generator.normal(size=(q, p)) / np.sqrt(p)
        size = np.linalg.norm(block)
        mean, single, missed = np.zeros((q, p)), [], []
        inputs = generator.normal(size=(2 * p, p))
        for _ in range(draws):
            a, b = koopman.alignment(p, q, generator, kind)
            operator = b @ koopman.fit(inputs, inputs @ block.T @ a.T).matrix
            single.append(np.linalg.norm(operator - block) / size)
            missed.append(abs(_distance(b, a) - np.sqrt(q - p)))
            mean += operator / draws
        values = {
            "single_error": np.mean(single) / np.sqrt(1 - p / q),
            "mean_from_shrunk": np.linalg.norm(mean - p / q * block)
            / np.linalg.norm(p / q * block),
            "mean_from_block": np.linalg.norm(mean - block) / size,
            "loss_missed": max(missed),
        }
        for name, value in values.items():
            errors.setdefault(name, []).append(float(value))
    return {name: np.array(values) for name, values in errors.items()}


# --- what the numbers say ------------------------------------------------------------------------


def judge(dataset: xr.Dataset) -> list[Finding]:
    """Returns what a Dataset says about K-C4 to K-C8."""
    attributes = dataset.attrs
    published = attributes["protocol"] == "published"
    note = (
        f"{attributes['protocol']}: {dataset.sizes['seed']} seeds; shapes "
        f"{', '.join(f'{n} x {m}' for n, m in SHAPES)}."
    )

    def most(name: str) -> float:
        return float(dataset[name].max())

    def least(name: str) -> float:
        return float(dataset[name].min())

    def say(claim: str, criteria: Iterable[Criterion], **more) -> Finding:
        given = {"note": note, **more}
        return finding(dataset, claim, list(criteria), reason="a value is missing", **given)

    widths = dataset.assign_attrs(network=WIDTHS)
    return [
        say(
            "K-C4",
            [
                Criterion(
                    "largest distance of ||BA - I|| from its minimum, A = B^+",
                    most("alignment_missed"),
                    "<=",
                    EXACT,
                ),
                Criterion(
                    "least excess of ||BA - I|| for another A", least("alignment_others"), ">", 0
                ),
            ],
        ),
        say(
            "K-C5",
            [
                Criterion("theorem 1: largest error", most("theorem_1"), "<=", EXACT),
                Criterion(
                    "theorem 5: largest error of a logarithm", most("theorem_5"), "<=", EXACT
                ),
                Criterion(
                    "theorem 6: largest change of a log-sensitivity when blocks are permuted",
                    most("theorem_6"),
                    "<=",
                    EXACT,
                ),
                Criterion(
                    "share of pairs in which more credit is less sensitivity",
                    float(dataset["inverse_square"].mean()),
                    "==",
                    1,
                ),
            ],
            numbers={
                "eq. 2 as printed: least relative error of the Jacobian": least(
                    "equation_2_printed"
                ),
                "largest error of koopman.log_sensitivities": most("theorem_5_library"),
            },
            note=f"{note} Square operators: {BLOCKS} of order {ORDER}. The sides of the product in "
            "eq. 2 are exchanged; its determinant is not concerned.",
        ),
        finding(
            widths,
            "K-C5",
            [
                Criterion(
                    "share of pairs in which more credit is less sensitivity",
                    float(dataset["inverse_widths"].mean()),
                    "==",
                    1,
                )
            ],
            note="Random operators of the widths "
            f"{', '.join(map(str, POOLED))}; sensitivities with generalised volumes.",
            reason="a value is missing",
        ),
        say("K-C6", _volume_criteria(published, most)),
        say(
            "K-C7",
            [
                Criterion("largest error of a Penrose condition", most("penrose"), "<=", EXACT),
                _least_squares(published, least),
            ],
            numbers={"largest error of koopman.fit": most("least_squares_library")},
        ),
        say(
            "K-C8",
            [
                Criterion(
                    "large to small: largest relative error of the recovered operator",
                    most("recovery_error"),
                    "<=",
                    FITTED,
                ),
                Criterion(
                    "small to large: largest distance of ||BA - I|| from sqrt(q - p)",
                    most("loss_missed"),
                    "<=",
                    EXACT,
                ),
            ],
            numbers=_enlarged_numbers(dataset),
            note=f"{attributes['protocol']}: {attributes['described']}; linear blocks, random "
            f"inputs; small to large: {attributes['draws']} alignments.",
        ),
    ]


def _volume_criteria(published: bool, most: Worst) -> list[Criterion]:
    """Volumes of non-square and of singular matrices."""
    name, text = (
        ("eigenvalues_of_singular", "non-zero eigenvalues")
        if published
        else ("volume_of_singular", "non-zero singular values")
    )
    return [
        Criterion(
            "largest distance of the log-volume from log sqrt(det(M^T M))",
            most("determinant"),
            "<=",
            EXACT,
        ),
        Criterion(
            f"singular matrices: largest distance of the product of {text} from the volume",
            most(name),
            "<=",
            EXACT,
        ),
    ]


def _least_squares(published: bool, least: Worst) -> Criterion:
    """Theorem 3, as printed or as it has to be."""
    if published:
        return Criterion(
            "theorem 3 as printed: least of min ||MZ - N|| minus ||M M^+ - N||",
            least("theorem_3_printed"),
            ">=",
            0,
        )
    return Criterion(
        "least excess of ||MZ - N|| over ||M M^+ N - N|| for another Z",
        least("theorem_3_corrected"),
        ">",
        0,
    )


def _enlarged_numbers(dataset: xr.Dataset) -> dict[str, float]:
    """What is lost from small to large."""
    texts = {
        "single_error": "relative error of one operator over sqrt(1 - p/q)",
        "mean_from_shrunk": "relative distance of the mean operator from (p/q) W",
        "mean_from_block": "relative distance of the mean operator from W",
    }
    numbers = {
        "large to small: median relative error of the recovered operator": float(
            dataset["recovery_error"].median()
        )
    }
    for place, size in enumerate(dataset["enlarging"].values.tolist()):
        numbers |= {f"{size}: {text}": float(dataset[name][place]) for name, text in texts.items()}
    return numbers


# --- figures -------------------------------------------------------------------------------------


def draw(datasets: Sequence[xr.Dataset]) -> dict[str, Figure]:
    """Nothing: the numbers stand in the table of claims."""
    return {}


EXPERIMENT = Experiment(
    "koopman2022",
    "theorems",
    "Theorems 1 to 6 and eq. 1 on random matrices and linear blocks.",
    compute,
    judge,
    draw,
    models=(RANDOM,),
    data=(),
    tiny={},
)
main = EXPERIMENT.main

if __name__ == "__main__":
    sys.exit(main())
