"""Inference: the runner interface, the runners behind it, sampling and generation."""
