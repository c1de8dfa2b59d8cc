"""Functions on tensors, without modules or state. A plain reference stands beside every fast path."""
