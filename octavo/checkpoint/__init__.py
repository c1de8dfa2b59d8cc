"""Checkpoints in and out: names, safetensors folders, GGUF, the hub, upcycling and its proof."""
