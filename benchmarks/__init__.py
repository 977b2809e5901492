"""Benchmarks of the operator and of the whole model: cases, peers, how it is measured, where results are kept."""
