"""What tests and benchmarks share: seeded inputs, a float64 oracle, and the errors that a result may have.

operands = Case("ragged", m=7, n=5, tokens_a=(7, 2), tokens_b=(1, 5)).operands()
assert_accurate(run(operands, backend="triton"), operands)
"""

from .accuracy import BUDGET, allowed, assert_accurate, error, errors
from .cases import Case, Operands
from .oracle import pair_by_pair, run

__all__ = ["BUDGET", "Case", "Operands", "allowed", "assert_accurate", "error", "errors", "pair_by_pair", "run"]
