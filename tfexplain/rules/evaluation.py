"""How the formula of `groups` is evaluated: in fewer passes than it has sums.

Every pass through a kernel is expensive, every division by a denominator too. So

* Where relevance arrives at outputs z_j > 0 only, positive contributions are not summed:
  sum_i c_ij^+ + b_j^+ = z_j - (sum_i c_ij^- + b_j^-). This is at least as large as |z_j| and as the
  negative sum, so that nothing cancels. Elsewhere both are summed: the difference of z and the
  larger sum would leave the smaller one with the rounding of the larger. Where each group counts at
  outputs of one sign only and has the larger sum by the larger factor, as with gamma, it has that
  rounding anyway: then the difference will do.
* Where a_g = n_g, the sum of contributions is z_j - b_j, known from the forward pass.
* Groups for negative outputs are left out where no relevance arrives at such outputs, and with
  them the gates of the others. This is exact: they would share zeros.
* For several relevance vectors 1 / z_gj is computed once per sample and multiplied with all of
  them. Against a division this costs one more rounding. What has no finite inverse, because it is
  smaller than what CPUs take for 0, has no shares there.
* Shares that meet the same contributions are added first, so that at most two passes go back, one
  for positive and one for negative contributions; a single group takes one if inputs are >= 0.
  This costs one rounding per group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import tensorflow as tf

from tfexplain.compilation import is_one_vector
from tfexplain.numerics import (
    Stabilizer,
    Tensor,
    expand,
    negative,
    only_where,
    positive,
    weighted,
)
from tfexplain.rules.base import RecordedCall
from tfexplain.rules.groups import Group


@dataclass(frozen=True, eq=False)
class Denominator:
    """One group at one call: by what relevance is divided there.

    Attributes:
        group: The group.
        bias: Its part of the bias, which broadcasts against the output.
        value: z_g, (batch, *output_shape).
        stabilized: The same with what the rule adds.
        open: Where the group counts; None for everywhere.
    """

    group: Group
    bias: Tensor
    value: Tensor
    stabilized: Tensor
    open: Tensor | None

    @property
    def inverse(self) -> Tensor:
        """1 / denominator, once for all vectors; 0 where it is 0, or too small to have one."""
        inverse = tf.math.divide_no_nan(tf.ones((), self.stabilized.dtype), self.stabilized)
        return tf.where(tf.math.is_finite(inverse), inverse, tf.zeros_like(inverse))

    def share(self, relevance: Tensor) -> Tensor:
        """Returns s_g = weight / denominator times relevance, (batch, num_vectors, *shape)."""
        if is_one_vector(relevance):
            # A division takes as long as an inverse, and saves the rest.
            share = tf.math.divide_no_nan(relevance, expand(self.stabilized))
            if self.group.weight != 1:
                share = self.group.weight * share
            if self.open is not None:
                share = only_where(self.open, share)
            return share
        factor = self.inverse
        if self.group.weight != 1:
            factor = self.group.weight * factor
        if self.open is not None:
            factor = tf.where(self.open, factor, tf.zeros_like(factor))
        return relevance * expand(factor)

    @property
    def handed_out(self) -> Tensor:
        """The weight of the group where it has shares, else 0; (batch, *output_shape)."""
        shares = tf.not_equal(self.inverse, 0)
        if self.open is not None:
            shares &= self.open
        return self.group.weight * tf.cast(shares, self.value.dtype)


def denominators(
    groups: Sequence[Group], stabilizer: Stabilizer, call: RecordedCall
) -> list[Denominator]:
    """Returns the groups that count at a call, with their denominators."""
    operation, (z,) = call.operation, call.outputs
    bias = operation.bias(call.inputs)
    given = call.inputs, call.nonnegative
    above_zero = _above_zero(groups, call, bias is not None)
    if above_zero:
        groups = _counting(groups)
    # What the contributions add up to is known from the forward pass.
    everything = z if bias is None else z - bias
    # Where every group splits the bias, it belongs to both sums from the start.
    split = bias is not None and all(group.splits_bias for group in groups)
    above: Tensor | None = None
    # Made where a group has a factor of it.
    below: Any = None
    if len(groups) > 1 and any(group.positive != group.negative for group in groups):
        whole = z if split else everything
        by_sign = whole is z and all(map(_has_larger_sum, groups))
        if above_zero or not by_sign:
            below = operation.weighted_sum(*given, 0, 1)
            if split:
                below += negative(bias)
        if above_zero:
            above = whole - below
        else:
            above = operation.weighted_sum(*given, 1, 0)
            if split:
                above += positive(bias)
        if below is None:
            below = whole - above
    sums = []
    for group in groups:
        biased = None
        if bias is not None and group.biased:
            biased = weighted(bias, group.bias_positive, group.bias_negative)
        if group.positive == group.negative:
            whole = group.bias_positive == group.bias_negative == group.positive == 1
            value = z if whole else _total(_times(group.positive, everything), biased)
        elif above is None:
            value = _total(operation.weighted_sum(*given, group.positive, group.negative), biased)
        else:
            terms = _times(group.positive, above), _times(group.negative, below)
            value = _total(*terms, None if split else biased)
        if value is None:
            value = tf.zeros_like(z)
        open_ = None
        if group.gate:
            # Where the bias is ignored, it does not choose the branch either.
            sum_ = z if group.biased else everything
            open_ = sum_ >= 0 if group.gate == "positive" else sum_ < 0
        # Relevance that is 0 needs no sign.
        is_above = above_zero and group.positive == group.negative
        kept = tf.zeros((), z.dtype) if biased is None else biased
        sums.append(Denominator(group, kept, value, stabilizer(value, is_above), open_))
    return sums


def _has_larger_sum(group: Group) -> bool:
    """Tells whether a group counts where its larger factor meets the larger sum alone."""
    if group.gate == "positive":
        return abs(group.positive) >= abs(group.negative)
    return group.gate == "negative" and abs(group.negative) >= abs(group.positive)


def _times(factor: float, tensor: Tensor) -> Tensor | None:
    """Returns a product; None for 0, so that no pass is made of it."""
    return tensor if factor == 1 else factor * tensor if factor else None


def _total(*terms: Tensor | None) -> Any:
    """Returns the sum of what there is; None if that is nothing."""
    first, *others = [term for term in terms if term is not None] or [None]
    for other in others:
        first = first + other
    return first


def pulled(
    call: RecordedCall, groups: Sequence[Group], shares: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Returns sum_g sum_j c_gij s_gj for each input.

    Args:
        call: The call.
        groups: The groups that count.
        shares: s_g of each, (batch, num_vectors, *output_shape).
    """
    operation, given = call.operation, (call.inputs, call.nonnegative)
    if len(groups) == 1:
        return operation.pull_weighted(*given, shares[0], groups[0].positive, groups[0].negative)
    to_positive = to_negative = None
    for group, share in zip(groups, shares, strict=True):
        above, below = group.positive, group.negative
        # The same object for both signs where the factors are equal: that saves a pass.
        scaled = {f: share if f == 1 else f * share for f in {above, below} if f}
        if above:
            to_positive = _total(to_positive, scaled[above])
        if below:
            to_negative = _total(to_negative, scaled[below])
    return operation.pull_contributions(*given, to_positive, to_negative)


def _above_zero(groups: Sequence[Group], call: RecordedCall, biased: bool) -> bool:
    """Tells whether relevance arrives only where what all groups sum together is > 0."""
    return call.vanishing and not (biased and any(not group.biased for group in groups))


def _counting(groups: Sequence[Group]) -> list[Group]:
    """Leaves out groups for negative outputs, at which nothing arrives in front of a ReLU."""
    kept = [replace(group, gate=None) for group in groups if group.gate != "negative"]
    return kept or list(groups)
