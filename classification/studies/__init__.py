"""Benchmarks, sweeps and analyses of trained classifiers."""
