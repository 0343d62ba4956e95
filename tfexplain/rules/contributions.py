"""LRP rules that share relevance in proportion to contributions c_ij = x_i w_ij.

They differ only in how positive and negative contributions are weighted, so each is a table of
groups: R_i = sum_g weight_g sum_j (a_g c_ij^+ + n_g c_ij^-) / z_gj R_j with
z_gj = sum_i (a_g c_ij^+ + n_g c_ij^-) + a'_g b_j^+ + n'_g b_j^-. One piece of code runs them all,
on linear layers, on affine normalisations and on sums of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import tensorflow as tf

from tfexplain.checks import choice, real
from tfexplain.numerics import Stabilizer, Tensor, expand, negative, positive, rounding
from tfexplain.operations import Additive, Operation
from tfexplain.rules.base import Absorbed, RecordedCall, Rule, total

BIAS = ("split", "ignore", "full")


@dataclass(frozen=True)
class Group:
    """One row of a rule's table.

    Args:
        positive: Factor a_g of positive contributions.
        negative: Factor n_g of negative contributions.
        bias_positive: Factor of the positive part of the bias in the denominator.
        bias_negative: Factor of the negative part of the bias.
        weight: Factor of the whole share.
        gate: Only for outputs z_j >= 0 ("positive"), only for z_j < 0 ("negative"), or all.
    """

    positive: float
    negative: float
    bias_positive: float = 0.0
    bias_negative: float = 0.0
    weight: float = 1.0
    gate: str | None = None


def with_bias(bias: str, group: Group) -> Group:
    """Returns the group with the bias treated as the option says."""
    factors = {
        "split": (group.positive, group.negative),
        "ignore": (0.0, 0.0),
        "full": (max(group.positive, group.negative),) * 2,
    }[bias]
    return Group(group.positive, group.negative, *factors, group.weight, group.gate)


@dataclass(frozen=True)
class ContributionRule(Rule, abstract=True):
    """Base of the rules that are tables of groups; subclasses define `groups`."""

    handled: ClassVar[tuple[type[Operation], ...]] = (Additive,)

    @property
    def groups(self) -> tuple[Group, ...]:
        """The table."""
        raise NotImplementedError

    @property
    def stabilizer(self) -> Stabilizer:
        """What is added to denominators."""
        return Stabilizer()

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns the share of each input."""
        operation, given = call.operation, (call.inputs, call.nonnegative)
        parts = _parts(self, call)
        shares = [part.share(relevance[0]) for part in parts]
        if len(parts) == 1:
            group = parts[0].group
            return operation.pull_weighted(*given, shares[0], group.positive, group.negative)
        to_positive = to_negative = None
        for part, share in zip(parts, shares, strict=True):
            above, below = part.group.positive, part.group.negative
            scaled = {f: share if f == 1 else f * share for f in {above, below} if f}
            if above:
                to_positive = _add(to_positive, scaled[above])
            if below:
                to_negative = _add(to_negative, scaled[below])
        return operation.pull_contributions(*given, to_positive, to_negative)

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...], kept: Tensor) -> Absorbed:
        """The bias and the stabilizer take their part of each denominator; 0 / 0 is lost."""
        bias = stabilizer = handed_out = lost = 0
        for part in _parts(self, call):
            arriving, share = part.arriving(relevance[0]), part.share(relevance[0])
            shape = tf.shape(part.denominator)
            bias += total(expand(tf.broadcast_to(part.bias, shape)) * share)
            stabilizer += total(expand(part.stabilized - part.denominator) * share)
            zero = expand(tf.equal(part.inverse, 0))
            lost += total(tf.where(zero, arriving, tf.zeros((), arriving.dtype)))
            handed_out += total(arriving)
        # A contrast of two groups hands out less than arrives.
        return Absorbed(bias, stabilizer, lost + total(relevance[0]) - handed_out)


@dataclass(frozen=True)
class _Part:
    """One group at one call: by what relevance is divided there.

    Attributes:
        group: The group.
        bias: Its part of the bias, which broadcasts against the output.
        denominator: z_g, (batch, *output_shape).
        stabilized: The same with what the rule adds.
        open: Where the group counts; None for everywhere.
    """

    group: Group
    bias: Tensor
    denominator: Tensor
    stabilized: Tensor
    open: Tensor | None

    @property
    def inverse(self) -> Tensor:
        """1 / denominator, once for all vectors; 0 where it is 0, or too small to have one."""
        inverse = tf.math.divide_no_nan(tf.ones((), self.stabilized.dtype), self.stabilized)
        return tf.where(tf.math.is_finite(inverse), inverse, tf.zeros_like(inverse))

    def share(self, relevance: Tensor) -> Tensor:
        """Returns weight / denominator times relevance, (batch, num_vectors, *output_shape)."""
        factor = self.inverse
        if self.group.weight != 1:
            factor = self.group.weight * factor
        if self.open is not None:
            factor = tf.where(self.open, factor, tf.zeros_like(factor))
        return relevance * expand(factor)

    def arriving(self, relevance: Tensor) -> Tensor:
        """Returns the relevance that the group shares."""
        arriving = self.group.weight * relevance
        if self.open is None:
            return arriving
        return tf.where(expand(self.open), arriving, tf.zeros((), arriving.dtype))


def _parts(rule: ContributionRule, call: RecordedCall) -> list[_Part]:
    """Returns the groups of a rule that count at a call, with their denominators."""
    operation, (z,) = call.operation, call.outputs
    bias = operation.bias(call.inputs)
    # What the contributions add up to is known from the forward pass.
    everything = z if bias is None else z - bias
    given = call.inputs, call.nonnegative
    groups = _counting(rule.groups, call, bias is not None)
    above = below = None
    if len(groups) > 1 and any(group.positive != group.negative for group in groups):
        above = operation.weighted_sum(*given, 1, 0)
        if any(group.negative for group in groups):
            offset = tf.zeros((), z.dtype) if bias is None else bias
            below = _remainder(everything, above, offset)
    found = []
    for group in groups:
        biased = tf.zeros((), z.dtype)
        if bias is not None:
            biased = group.bias_positive * positive(bias) + group.bias_negative * negative(bias)
        if group.positive == group.negative:
            whole = group.bias_positive == group.bias_negative == group.positive == 1
            denominator = z if whole else group.positive * everything + biased
        elif above is None:
            denominator = operation.weighted_sum(*given, group.positive, group.negative) + biased
        else:
            denominator = group.positive * above + biased
            if group.negative:
                denominator += group.negative * below
        open_ = None
        if group.gate:
            # Where the bias is ignored, it does not choose the branch either.
            sum_ = z if _biased(group) else everything
            open_ = sum_ >= 0 if group.gate == "positive" else sum_ < 0
        found.append(_Part(group, biased, denominator, rule.stabilizer(denominator), open_))
    return found


def _counting(groups: Sequence[Group], call: RecordedCall, bias: bool) -> list[Group]:
    """Leaves out groups for negative outputs, at which nothing arrives in front of a ReLU."""
    decided = call.vanishing and not (bias and any(not _biased(group) for group in groups))
    if not decided:
        return list(groups)
    kept = [replace(group, gate=None) for group in groups if group.gate != "negative"]
    return kept or list(groups)


def _biased(group: Group) -> bool:
    return bool(group.bias_positive or group.bias_negative)


def _add(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first + second


def _remainder(everything: Tensor, above: Tensor, bias: Tensor) -> Tensor:
    """Returns the sum of negative contributions, z - b - z+, without another pass.

    Rounding can leave a remainder where there is none. What is within a few units of rounding of
    the positive sum and the bias counts as zero, so that no relevance is divided by noise.
    """
    below = everything - above
    noise = rounding(below.dtype) * (above + tf.abs(bias))
    return tf.where(-below > noise, below, tf.zeros((), below.dtype))


@dataclass(frozen=True)
class Epsilon(ContributionRule):
    """Shares in proportion to contributions, damped by epsilon; epsilon 0 is the z rule.

    R_i = sum_j x_i w_ij / (z_j + epsilon sign(z_j)) R_j with z_j = sum_i x_i w_ij + b_j
    ([bach2015pixel]; LRP-0 and LRP-epsilon of [montavon2019layer]).

    Args:
        epsilon: Float >= 0 in the unit of z. With 0, a share of z = 0 is 0.
        relative: Measure epsilon in standard deviations of z over a sample's outputs.
        bias: "split" or "full" (both: the bias counts in z) or "ignore".

    Raises:
        ValueError: For a negative epsilon or an unknown treatment of the bias.
    """

    epsilon: float = 1e-7
    relative: bool = False
    bias: str = "split"

    def __post_init__(self) -> None:
        """Checks the values."""
        choice("bias", self.bias, BIAS)
        checked = Stabilizer(self.epsilon, self.relative)
        object.__setattr__(self, "epsilon", checked.epsilon)
        object.__setattr__(self, "relative", checked.relative)

    @property
    def groups(self) -> tuple[Group, ...]:
        """All contributions alike."""
        return (with_bias(self.bias, Group(1, 1)),)

    @property
    def stabilizer(self) -> Stabilizer:
        """Epsilon with the sign of z."""
        return Stabilizer(self.epsilon, self.relative)


@dataclass(frozen=True)
class Gamma(ContributionRule):
    """Favours contributions with the sign of the output by the factor 1 + gamma.

    R_i = sum_j (c_ij + gamma c_ij^s) / (sum_i (c_ij + gamma c_ij^s) + b_j + gamma b_j^s) R_j, with
    s the sign of z_j: LRP-gamma of [montavon2019layer], generalised to signed inputs
    as in [andeol2021learning].

    Args:
        gamma: Float >= 0.
        bias: "split" (amplified like a contribution), "full" (amplified whatever its sign) or
            "ignore".

    Raises:
        ValueError: For a negative gamma or an unknown treatment of the bias.
    """

    gamma: float = 0.25
    bias: str = "split"

    def __post_init__(self) -> None:
        """Checks the values."""
        choice("bias", self.bias, BIAS)
        object.__setattr__(self, "gamma", real("gamma", self.gamma, 0))

    @property
    def groups(self) -> tuple[Group, ...]:
        """One row for each sign of the output."""
        more = 1.0 + self.gamma
        return (
            with_bias(self.bias, Group(more, 1.0, gate="positive")),
            with_bias(self.bias, Group(1.0, more, gate="negative")),
        )


@dataclass(frozen=True)
class AlphaBeta(ContributionRule):
    """Shares alpha times over positive and -beta times over negative contributions.

    R_i = sum_j (alpha c_ij^+ / (sum c^+ + b^+) - beta c_ij^- / (sum c^- + b^-)) R_j
    ([bach2015pixel]; Eq. 5 of [sixt2020when] for alpha 1, beta 0).

    Args:
        alpha: Float >= 1.
        beta: Float; alpha - 1 if not given. alpha - beta must be 1.
        bias: "split", "ignore", or "full" (the whole bias in both denominators).

    Raises:
        ValueError: If alpha - beta is not 1, or for an unknown treatment of the bias.
    """

    alpha: float
    beta: float | None = None
    bias: str = "split"

    def __post_init__(self) -> None:
        """Checks the values."""
        choice("bias", self.bias, BIAS)
        alpha = real("alpha", self.alpha, -math.inf)
        beta = alpha - 1 if self.beta is None else real("beta", self.beta, -math.inf)
        object.__setattr__(self, "alpha", alpha)
        object.__setattr__(self, "beta", beta)
        if not (alpha >= 1 and abs(alpha - beta - 1) < 1e-6):
            raise ValueError(
                "alpha must be >= 1 and alpha - beta must be 1, so that relevance is conserved; "
                f"received alpha={alpha:g}, beta={beta:g}."
            )

    @property
    def groups(self) -> tuple[Group, ...]:
        """Positive and negative contributions apart."""
        rows = [with_bias(self.bias, Group(1, 0, weight=self.alpha))]
        if self.beta:
            rows.append(with_bias(self.bias, Group(0, 1, weight=-self.beta)))
        return tuple(rows)


@dataclass(frozen=True)
class ZPlus(ContributionRule):
    """Shares in proportion to positive contributions, without the bias (z+ rule).

    R_i = sum_j c_ij^+ / sum_i c_ij^+ R_j ([montavon2017explaining] for x >= 0).
    """

    @property
    def groups(self) -> tuple[Group, ...]:
        """Positive contributions only."""
        return (Group(1, 0),)


@dataclass(frozen=True)
class ContrastiveZPlus(ContributionRule):
    """The last layer of contrastive excitation backpropagation: z+ minus z+ of -W.

    R = (Z+ - N+) m_k (Eq. 16 of [sixt2020when]; [zhang2018top]).
    """

    @property
    def groups(self) -> tuple[Group, ...]:
        """Positive contributions minus negative ones, both normalised."""
        return (Group(1, 0), Group(0, 1, weight=-1.0))
