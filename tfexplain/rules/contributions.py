"""LRP rules that share relevance in proportion to contributions c_ij = x_i w_ij.

The sum of these is z_j - b_j. Each rule is a table of groups (see `groups` for the formula that
makes relevance of a table, and `evaluation` for the order in which it is computed), on linear
layers, on affine normalisations and on sums of tensors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import tensorflow as tf

from tfexplain.checks import choice, real
from tfexplain.numerics import Stabilizer, Tensor, expand
from tfexplain.operations import Additive, Operation
from tfexplain.rules.base import Absorbed, RecordedCall, Rule, total
from tfexplain.rules.evaluation import denominators, pulled
from tfexplain.rules.groups import BIAS, Group, mirrored, with_bias


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

    def is_sign_blind(self) -> bool:
        """Tells whether the table is its own mirror image."""
        return {mirrored(group) for group in self.groups} == set(self.groups)

    def propagate(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Returns R_i = sum_g sum_j c_gij s_gj with s_gj = weight_g R_j / (z_gj + stabilizer)."""
        sums = denominators(self.groups, self.stabilizer, call)
        shares = [z.share(relevance[0]) for z in sums]
        return pulled(call, [z.group for z in sums], shares)

    def absorbed(self, call: RecordedCall, relevance: tuple[Tensor, ...]) -> Absorbed:
        """Bias and stabilizer take their part of each denominator.

        Where the weights of the groups that have shares do not add up to 1, the rest reaches
        nobody: at 0/0, at closed gates, and all of it where a contrast subtracts two groups.
        """
        bias = stabilizer = handed_out = 0
        for z in denominators(self.groups, self.stabilizer, call):
            share = z.share(relevance[0])
            bias += total(expand(tf.broadcast_to(z.bias, tf.shape(z.value))) * share)
            stabilizer += total(expand(z.stabilized - z.value) * share)
            handed_out += z.handed_out
        return Absorbed(bias, stabilizer, total(relevance[0] * expand(1 - handed_out)))


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
        object.__setattr__(self, "bias", choice("bias", self.bias, BIAS))
        checked = Stabilizer(self.epsilon, self.relative)
        object.__setattr__(self, "epsilon", checked.epsilon)
        object.__setattr__(self, "relative", checked.relative)

    @property
    def compares_elements(self) -> bool:
        """A relative epsilon is a deviation over a sample."""
        return self.relative

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
        object.__setattr__(self, "bias", choice("bias", self.bias, BIAS))
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
        object.__setattr__(self, "bias", choice("bias", self.bias, BIAS))
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
