"""Groups: what LRP rules of contributions c_ij = x_i w_ij have in common.

These rules differ only in how they weight positive and negative contributions. Each is a table of
groups g, and one formula serves them all:

    c_gij = a_g c_ij^+ + n_g c_ij^-                     contributions, weighted by their sign
    z_gj = sum_i c_gij + a'_g b_j^+ + n'_g b_j^-        their sum, with the bias
    s_gj = weight_g R_j / (z_gj + stabilizer)           0 for 0/0, and where a gate is closed
    R_i = sum_g sum_j c_gij s_gj

The bias keeps (a'_g b_j^+ + n'_g b_j^-) s_gj and the stabilizer its own product with s_gj.
Relevance R_j (1 - sum of weight_g over the groups that have shares at j) reaches nobody.
`evaluation` computes the same in another order.
"""

from __future__ import annotations

from dataclasses import dataclass

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

    @property
    def biased(self) -> bool:
        """Whether the bias takes part."""
        return bool(self.bias_positive or self.bias_negative)

    @property
    def splits_bias(self) -> bool:
        """Whether the bias has the factors of a contribution."""
        return (self.bias_positive, self.bias_negative) == (self.positive, self.negative)


def mirrored(group: Group) -> Group:
    """Returns the row that does to opposite contributions what a row does to these."""
    gates = {"positive": "negative", "negative": "positive", None: None}
    return Group(
        group.negative,
        group.positive,
        group.bias_negative,
        group.bias_positive,
        group.weight,
        gates[group.gate],
    )


def with_bias(bias: str, group: Group) -> Group:
    """Returns the group with the bias treated as the option says."""
    factors = {
        "split": (group.positive, group.negative),
        "ignore": (0.0, 0.0),
        "full": (max(group.positive, group.negative),) * 2,
    }[bias]
    return Group(group.positive, group.negative, *factors, group.weight, group.gate)
