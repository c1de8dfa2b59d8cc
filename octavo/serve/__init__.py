"""The OpenAI-compatible server on this machine's own address, and its chat page."""
