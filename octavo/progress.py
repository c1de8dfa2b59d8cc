"""How long work reports where it is, without knowing who shows it."""

from typing import Protocol


class Progress(Protocol):
    """Called as work advances; the command line draws a bar from it."""

    def __call__(self, task: str, done: int, total: int) -> None:
        """`done` of `total` units of `task` are finished; the unit is the task's own (bytes, layers)."""
        ...


def silent(task: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""
