"""Plants faults in a copy of the package, one at a time, and tells which of them tests catch.

    python -m tests.planted_faults [--root CHECKOUT] [--only NAME ...] [--output FILE.json]

A suite that became quicker must catch what it caught before: run this on both checkouts. Each fault
is a line or two of a module, such as a sign or a missing bias: the code still runs, but a number is
wrong. Some show only where a function is traced or exported, and nowhere eagerly.

The checkout itself is never changed. This is no test, and pytest does not collect it.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

ROOT = pathlib.Path(__file__).resolve().parents[1]
# What no test reads, or what pytest would take for results of the copy.
LEFT_OUT = (".git", "__pycache__", ".pytest_cache", ".hypothesis", "*.egg-info", "output")
TIMEOUT = 600
TRACED, EXPORTED = "only where it is traced", "only in what is exported"
# How pytest ends where it finds no test of a name, or no test at all.
NO_SUCH_TEST, NO_TESTS = 4, 5


@dataclass(frozen=True)
class Fault:
    """A change of one module that makes a number wrong.

    Attributes:
        name: What `--only` calls it.
        module: Path below tfexplain/.
        old: Text that occurs there exactly once.
        new: What replaces it.
        kind: What is wrong.
        tests: Files, or tests as file::name, that are expected to catch it. Files are named without
            their folder.
        shows: Where it shows; empty: wherever the code runs.
    """

    name: str
    module: str
    old: str
    new: str
    kind: str
    tests: tuple[str, ...]
    shows: str = ""


FAULTS = (
    Fault(
        "linear_signs",
        "operations/linear.py",
        "expand(negative(x)) * self._pull_parts(x, to_negative, to_positive)",
        "expand(negative(x)) * self._pull_parts(x, to_positive, to_negative)",
        "negative inputs meet the kernel of the other sign",
        ("test_rules.py::test_rule_equals_the_formula_on_the_jacobian",),
    ),
    Fault(
        "linear_pairs",
        "operations/linear.py",
        """        if (dtype, part) not in known:
            known[dtype, part] = self._kernel_part(dtype, part)
        return known[dtype, part]
""",
        """        key = dtype, frozenset(part)
        if key not in known:
            known[key] = self._kernel_part(dtype, part)
        return known[key]
""",
        "a W+ + n W- and n W+ + a W- share one entry of the cache",
        ("test_serving.py::test_a_fresh_process_gives_the_same_numbers",),
        TRACED,
    ),
    Fault(
        "linear_weights",
        "operations/weights.py",
        """    return tf.cast(tf.convert_to_tensor(value), dtype)
""",
        """    with tf.init_scope():
        kept = tf.constant(value.numpy())
    return tf.cast(kept, dtype)
""",
        "stale weights: those of the first call stay in the graph",
        (
            "test_shapley.py::test_it_follows_the_weights",
            "test_pattern_analyzers.py::test_new_weights_count_and_patterns_stay",
            "test_regressions.py::test_shap_global_registry",
            "test_graphs.py::test_model_trains_after_it_was_explained",
        ),
        TRACED,
    ),
    Fault(
        "vectors_tiled",
        "numerics.py",
        "    return tf.repeat(activation, vectors, axis=0)\n",
        """    if isinstance(vectors, int):
        return tf.repeat(activation, vectors, axis=0)
    return tf.tile(activation, [vectors, *[1] * (len(activation.shape) - 1)])
""",
        "a number of vectors that is unknown while tracing pairs vectors with other samples",
        (
            "test_propagation.py::test_compiled_propagation_is_the_eager_one",
            "test_inputs_and_outputs.py::test_unknown_image_size",
        ),
        TRACED,
    ),
    Fault(
        "pooling_rest",
        "operations/pooling.py",
        "if all(isinstance(rest, int) and rest == 0 for _, rest in rests):",
        "if all(not isinstance(rest, int) or rest == 0 for _, rest in rests):",
        "a size that is unknown while tracing counts as a multiple of the window",
        (
            "test_inputs_and_outputs.py::test_unknown_image_size",
            "test_deep_lift_baselines.py::test_unknown_sizes",
        ),
        TRACED,
    ),
    Fault(
        "averages_mean",
        "analyzers/averages.py",
        "*(tf.add_n(list(p)) / len(of_paths) for p in zip(*of_paths, strict=True))]",
        "*(tf.add_n(list(p)) for p in zip(*of_paths, strict=True))]",
        "the sum over baselines instead of their mean",
        ("test_serving.py::test_a_fresh_process_gives_the_same_numbers",),
        EXPORTED,
    ),
    Fault(
        "deep_lift_mean",
        "analyzers/deep_lift.py",
        "tf.add_n(list(p)) / len(of_baselines)\n",
        "tf.add_n(list(p))\n",
        "the sum over baselines instead of their mean",
        ("test_deep_lift_baselines.py::test_export",),
        EXPORTED,
    ),
    Fault(
        "first_baseline",
        "analyzers/deep_lift.py",
        "if known is not None and all(map(_is_same, known[0], parts)):",
        "if known is not None:",
        "every batch gets the baseline of the first",
        ("test_deep_lift_baselines.py::test_baselines_of_single_samples_are_not_mixed_up",),
    ),
    Fault(
        "serving_target",
        "analyzers/serving.py",
        "tf.fill([tf.shape(tensors[0])[0]], -1)",
        "tf.fill([tf.shape(tensors[0])[0]], 0)",
        "output 0 is explained instead of the largest",
        (
            "test_serving.py::test_exported_weights_are_those_of_the_export",
            "test_serving.py::test_a_fresh_process_gives_the_same_numbers",
        ),
        EXPORTED,
    ),
    Fault(
        "pooling_ties",
        "operations/base.py",
        "winners.append(equal if taken is None else equal & ~taken)",
        "winners.append(equal)",
        "every one of equal winners gets all of the relevance",
        ("test_merges_and_pools.py::test_max_pooling_gives_all_to_the_first_winner",),
    ),
    Fault(
        "relu_threshold",
        "operations/elementwise.py",
        "nonnegative = not slope and threshold >= 0",
        "nonnegative = not slope",
        "a ReLU with a negative threshold counts as >= 0",
        ("test_signs.py::test_what_makes_negative_numbers_is_not_marked",),
    ),
    Fault(
        "maximum_share",
        "operations/merges.py",
        "share = tf.math.divide_no_nan(relevance, average) / len(inputs)",
        "share = tf.math.divide_no_nan(relevance, average)",
        "a missing factor: shares are not those of an average",
        ("test_extrema.py::test_winner_average_and_gradient",),
    ),
    Fault(
        "square",
        "operations/base.py",
        "    SQUARE: tf.square,\n",
        "    SQUARE: tf.abs,\n",
        "magnitudes of weights instead of their squares",
        ("test_rules.py::test_rule_equals_the_formula_on_the_jacobian",),
    ),
    Fault(
        "folded_names",
        "canonizers.py",
        "merged[target] = graph.readouts.get(after.name, after.outputs[0])",
        "merged[target] = after.outputs[0]",
        "the name of a folded normalisation reads another tensor",
        ("test_batch_norm.py", "test_propagation.py"),
    ),
    Fault(
        "lost_norm",
        "canonizers.py",
        "before.operation.source, before.operation.norm_before, norm",
        "before.operation.source, None, norm",
        "the second of two folded normalisations replaces the first",
        ("test_batch_norm.py::test_folded_batch_norm_is_the_effective_kernel_and_bias",),
    ),
    Fault(
        "gamma_gate",
        "rules/contributions.py",
        'Group(1.0, more, gate="negative")',
        'Group(more, 1.0, gate="negative")',
        "the wrong sign is favoured at negative outputs",
        ("test_rules.py::test_rule_equals_the_formula_on_the_jacobian",),
    ),
    Fault(
        "full_bias",
        "rules/groups.py",
        '"full": (max(group.positive, group.negative),) * 2,',
        '"full": (group.positive, group.negative),',
        "the bias is split where all of it should count",
        ("test_rules.py::test_rule_equals_the_formula_on_the_jacobian",),
    ),
    Fault(
        "ignored_bias",
        "rules/evaluation.py",
        "sum_ = z if group.biased else everything",
        "sum_ = z",
        "a bias that is ignored chooses the branch of gamma",
        ("test_rules.py::test_rule_equals_the_formula_on_the_jacobian",),
    ),
    Fault(
        "pattern_of_scales",
        "rules/patterns.py",
        "pattern = tf.math.divide_no_nan(tf.ones_like(weights), weights)",
        "pattern = weights",
        "the weight of a normalisation instead of its pattern 1 / w",
        (
            "test_pattern_analyzers.py::"
            "test_folded_normalisation_and_its_rule_agree_where_activity_does_not_count",
        ),
    ),
    Fault(
        "largest_output",
        "reverse/network.py",
        "largest = tf.argmax(flat, axis=1, output_type=tf.int32)",
        "largest = tf.argmax(tf.abs(flat), axis=1, output_type=tf.int32)",
        "the output of the largest magnitude is explained",
        ("test_contract.py::test_every_name", "test_inputs_and_outputs.py"),
    ),
    Fault(
        "box_ends",
        "reverse/steps.py",
        "first, second = tf.minimum(first, second), tf.maximum(first, second)",
        "first, second = tf.maximum(first, second), tf.minimum(first, second)",
        "the ends of the box are exchanged behind a scaling",
        ("test_analyzers.py::test_box_bounds_pass_through_padding_and_rescaling",),
    ),
    Fault(
        "vanishing_start",
        "reverse/vanishing.py",
        "return node is not start and all(",
        "return all(",
        "relevance that is given at closed units is dropped",
        ("test_vanishing.py::test_relevance_given_at_zeros_is_not_lost",),
    ),
    Fault(
        "difference_sign",
        "reverse/differences.py",
        "return SignedParts(positive(difference), negative(difference))",
        "return SignedParts(positive(difference), -negative(difference))",
        "the sign of negative differences",
        ("test_deep_lift.py", "test_deep_lift_literals.py", "test_extrema.py"),
    ),
    Fault(
        "affine_parts",
        "rules/differences.py",
        "return (SignedParts(up * above + down * below, up * below + down * above),)",
        "return (SignedParts(factor * above, factor * below),)",
        "a negative factor does not exchange the parts",
        (
            "test_deep_lift.py",
            "test_deep_lift_literals.py",
            "test_deep_lift_regressions.py",
            "test_peers_deeplift.py",
        ),
    ),
    Fault(
        "index_order",
        "analyzers/arrays.py",
        "np.ravel_multi_index(tuple(parts), tuple(output_shape))",
        'np.ravel_multi_index(tuple(parts), tuple(output_shape), order="F")',
        "axes of the target in the wrong order",
        ("test_inputs_and_outputs.py::test_targets_of_outputs_of_rank_three",),
    ),
    Fault(
        "first_batch",
        "analyzers/reversed.py",
        "of_batches.append(self._sent(network, batch, relevance[place.positions], place))",
        "of_batches.append(self._sent(network, batch, relevance[: len(batch[0])], place))",
        "every batch gets the relevance of the first",
        (
            "test_propagation.py::test_one_forward_pass_serves_all_vectors",
            "test_graphs.py::test_batches_do_not_matter",
            "test_deep_lift.py::test_batches_and_vectors_do_not_matter",
        ),
    ),
    Fault(
        "one_order",
        "analyzers/shapley.py",
        "tf.stack([tf.constant(self.seed), number])",
        "tf.stack([tf.constant(self.seed), 0 * number])",
        "every cycle removes features in the same order",
        ("test_shapley.py::test_values_are_losses_in_the_same_orders",),
    ),
    Fault(
        "trapezoid",
        "analyzers/integrated_gradients.py",
        "    weights[[0, -1]] /= 2\n",
        "    weights /= weights.sum()\n",
        "the ends of the path count as much as its inside",
        (
            "test_analyzers.py::test_quadrature_is_exact_to_its_order",
            "test_analyzers.py::test_the_ends_of_trapezoids_count_half",
            "test_literals.py::test_captum_integrated_gradients",
        ),
    ),
    Fault(
        "stored_precision",
        "analyzers/persistence.py",
        "np.savez_compressed(stored, **arrays)",
        'np.savez_compressed(stored, **{k: v.astype("float32") for k, v in arrays.items()})',
        "arrays of options are stored in single precision",
        (
            "test_deep_lift_baselines.py::test_save_and_load",
            "test_pattern_analyzers.py::test_save_load_and_export",
        ),
    ),
    Fault(
        "spearman_middle",
        "metrics.py",
        "ranks.append(rank - (rank.size + 1) / 2)",
        "ranks.append(rank - rank.size / 2)",
        "ranks are not centred: they start with 1",
        ("test_metrics.py::test_spearman_is_that_of_scipy",),
    ),
    Fault(
        "turned_cosines",
        "audits/direction_counts.py",
        "negative.append(tf.math.logical_xor(apart > 1, turned))",
        "negative.append(apart > 1)",
        "vectors that were turned keep the sign of their cosine",
        ("test_cosine_convergence.py::test_counts_equal_brute_force",),
    ),
    Fault(
        "area_rule",
        "audits/pixel_flipping.py",
        "((curves[..., 1:, :] + curves[..., :-1, :]) / 2 * widths)",
        "(curves[..., :-1, :] * widths)",
        "left sums instead of trapezoids",
        ("test_pixel_flipping.py::test_areas_are_means_over_the_removed_pixels",),
    ),
    Fault(
        "weights_stay",
        "audits/random_weights.py",
        "for place in self._now - places:",
        "for place in self._now & places:",
        "stale weights: random ones are never set back",
        ("test_random_weights.py::test_a_copy_goes_to_and_fro",),
    ),
    Fault(
        "ssm_range",
        "audits/spectrum.py",
        'largest = math.sqrt(float(np.median(one["columns"].values)))',
        'largest = float(np.median(one["columns"].values))',
        "a missing root: SSM is compared with the number of outputs",
        ("test_report_verdicts.py::test_spectra_are_compared_among_methods", "test_report.py"),
    ),
    Fault(
        "kronecker_ranks",
        "koopman/operators.py",
        "logs.append(left.rank * right.log_volume + right.rank * left.log_volume)",
        "logs.append(left.rank * left.log_volume + right.rank * right.log_volume)",
        "the exponents of two volumes are exchanged",
        (
            "test_koopman_operators.py::"
            "test_sensitivities_of_blocks_of_different_sizes_are_those_of_the_jacobian",
        ),
    ),
    Fault(
        "trajectory_scale",
        "koopman/trajectories.py",
        "following = outputs @ composition.T / scale",
        "following = outputs @ composition.T",
        "only the first step of a trajectory is rescaled",
        ("test_koopman_linear.py", "test_koopman_operators.py"),
    ),
    Fault(
        "stale_blocks",
        "runs/blocks.py",
        "            self._check(_settings_in(noted), self.folder)\n",
        "",
        "stale blocks: those of other settings are taken",
        ("test_audit_blocks.py::test_other_settings_are_refused",),
    ),
    Fault(
        "one_check_is_enough",
        "report/verdict.py",
        "trust = TRUSTWORTHY if all(decided) else NOT_TRUSTWORTHY",
        "trust = TRUSTWORTHY if any(decided) else NOT_TRUSTWORTHY",
        "a method that fails one of several checks is trusted",
        ("test_report_verdicts.py::test_one_failed_test_is_enough_to_distrust",),
    ),
    Fault(
        "end_of_interval",
        "audits/judging.py",
        "values, measure, lambda middle, *_: INSENSITIVE if middle > threshold else SENSITIVE",
        "values, measure, lambda _, low, __: INSENSITIVE if low > threshold else SENSITIVE",
        "the lower end of the interval is judged, not the median",
        ("test_report_verdicts.py::test_words_follow_the_thresholds",),
    ),
    Fault(
        "largest_channel",
        "plotting/pictures.py",
        "largest = np.abs(relevance).argmax(axis=-1)",
        "largest = relevance.argmax(axis=-1)",
        "negative channels never count as the largest",
        ("test_plotting.py::test_reduce_channels",),
    ),
    Fault(
        "until",
        "selectors.py",
        "return self.number.get(call, selector.index + 1) <= selector.index",
        "return self.number.get(call, selector.index + 1) < selector.index",
        "one layer too few gets the rule",
        ("test_analyzers.py::test_until_gives_the_flat_rule_to_the_first_linear_layers",),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What the named tests said of one fault.

    Attributes:
        fault: The fault.
        caught: Whether one of them failed.
        test: The first that failed; empty if none did.
        message: The end of its report.
        whole_files: The named tests are not there, so all of their files were run.
        seconds: How long that took.
    """

    fault: Fault
    caught: bool
    test: str
    message: str
    whole_files: bool
    seconds: float

    def to_dict(self) -> dict[str, object]:
        """Returns what is written as JSON."""
        fault = self.fault
        return {
            "name": fault.name,
            "module": fault.module,
            "kind": fault.kind,
            "shows": fault.shows,
            "caught": self.caught,
            "test": self.test,
            "message": self.message,
            "whole_files": self.whole_files,
            "seconds": round(self.seconds, 1),
        }

    def __str__(self) -> str:
        """One line."""
        said = f"caught by {self.test}" if self.caught else "NOT caught"
        where = f" [{self.fault.shows}]" if self.fault.shows else ""
        return f"{self.fault.name} ({self.fault.module}){where}: {said} ({self.seconds:.0f} s)"


def copy(root: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Copies a checkout; with links a test that writes a file could change the checkout."""
    return shutil.copytree(root, folder, ignore=shutil.ignore_patterns(*LEFT_OUT))


def changed(text: str, fault: Fault) -> str:
    """Returns the text of a module with a fault.

    Raises:
        ValueError: If what it replaces is not there exactly once.
    """
    count = text.count(fault.old)
    if count != 1:
        raise ValueError(
            f"{fault.name}: {fault.module} holds {fault.old!r} {count} times; it has to be there "
            "exactly once."
        )
    return text.replace(fault.old, fault.new)


def located(folder: pathlib.Path, test: str) -> str:
    """Returns a file or test of pytest, its file with its folder.

    Raises:
        FileNotFoundError: If there is no such file, or more than one, below tests/.
    """
    name, *rest = test.split("::", 1)
    found = sorted((folder / "tests").rglob(name))
    if len(found) != 1:
        raise FileNotFoundError(f"There are {len(found)} files tests/**/{name}, one is needed.")
    return "::".join([str(found[0].relative_to(folder)), *rest])


def run_tests(folder: pathlib.Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs tests of a copy until the first one fails."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, *tests],
        cwd=folder,
        # Wide, so that pytest does not cut the messages of its summary.
        env={**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "250"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def attempt(folder: pathlib.Path, fault: Fault) -> Outcome:
    """Plants a fault in a copy, runs the tests that are expected to catch it, and takes it back.

    Args:
        folder: The copy.
        fault: The fault.

    Raises:
        ValueError: If the fault does not fit the copy.
        RuntimeError: If pytest could not run the tests, or one fails without the fault too.
    """
    module = folder / "tfexplain" / fault.module
    text = module.read_text(encoding="utf-8")
    # Tests move and merge: those that are gone stand for the files in which they were.
    tests = [located(folder, test) for test in fault.tests]
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    start = time.monotonic()
    module.write_text(changed(text, fault), encoding="utf-8")
    try:
        run = run_tests(folder, tests)
        whole_files = run.returncode in (NO_SUCH_TEST, NO_TESTS)
        if whole_files:
            run = run_tests(folder, files)
    finally:
        module.write_text(text, encoding="utf-8")
    if run.returncode not in (0, 1):
        raise RuntimeError(f"{fault.name}: pytest ended with {run.returncode}:\n{run.stdout}")
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - (.*))?$", run.stdout, re.MULTILINE)
    test, message = (failed[1], failed[2] or "") if failed else ("", "")
    if test and run_tests(folder, [test]).returncode != 0:
        raise RuntimeError(f"{fault.name}: {test} does not pass without the fault either.")
    seconds = time.monotonic() - start
    return Outcome(fault, run.returncode == 1, test, message, whole_files, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the exit status is 1 if a fault is not caught."""
    names = [fault.name for fault in FAULTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the checkout to copy")
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="a fault")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file for the results")
    options = parser.parse_args(arguments)
    wanted = [fault for fault in FAULTS if not options.only or fault.name in options.only]
    outcomes, unfit = [], 0
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = copy(options.root.resolve(), pathlib.Path(temporary) / "checkout")
        for fault in wanted:
            try:
                outcome = attempt(folder, fault)
            except (ValueError, OSError, RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{fault.name}: error: {error}", flush=True)
                unfit += 1
                continue
            outcomes.append(outcome)
            print(outcome, flush=True)
            if options.output:
                rows = [outcome.to_dict() for outcome in outcomes]
                options.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    caught = sum(outcome.caught for outcome in outcomes)
    print(f"{caught} of {len(wanted)} faults are caught, {unfit} could not be planted or run.")
    return int(caught < len(wanted))


if __name__ == "__main__":
    sys.exit(main())
