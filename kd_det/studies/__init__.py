"""Benchmarks and studies: what the figures of this project are measured with."""
