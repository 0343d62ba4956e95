"""Reproductions of papers, one package each: `python -m experiments.<paper>.<experiment>`."""
