"""Experiments of "When Explanations Lie" (Sixt, Granz, Landgraf 2020)."""
