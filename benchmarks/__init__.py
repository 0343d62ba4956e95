"""Benchmarks anyone can run: `python -m benchmarks.<name>`."""
