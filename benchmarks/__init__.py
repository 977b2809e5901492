"""Benchmarks of the operator: cases, the peers they are compared with, how it is measured, where results are kept."""
