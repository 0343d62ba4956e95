"""Experiments of "Uncovering the Structure of Explanation Quality with Spectral Analysis"."""
