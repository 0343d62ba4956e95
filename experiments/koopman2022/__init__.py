"""Experiments of "Credit Assignment for Trained Neural Networks" (Liang et al. 2022)."""
