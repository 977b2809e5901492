"""What this package is to PyTorch, and what it ships. On the Hub both are others: see scripts/hub_kernel.py."""

NAMESPACE = "coalign"  # of the operators: torch.ops.coalign
BACKENDS = ("triton", "native", "reference")  # fastest first
