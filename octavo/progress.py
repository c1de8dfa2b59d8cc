"""How long work reports where it is, without knowing who shows it; and a bar that does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import TaskID


class Progress(Protocol):
    """Called as work advances; the command line draws a bar from it."""

    def __call__(self, task: str, done: int, total: int) -> None:
        """`done` of `total` units of `task` are finished; the unit is the task's own (bytes, layers)."""
        ...


def silent(task: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


@contextmanager
def progress_bar(per_second: float = 10) -> Iterator[Progress]:
    """A bar on standard error for as long as the block runs, drawn `per_second` times a second; one task at a time,
    named by its work."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description:<18}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"),
               TimeElapsedColumn(), TimeRemainingColumn())  # fmt: skip
    tasks: dict[str, TaskID] = {}
    bar = RichProgress(*columns, console=Console(stderr=True), refresh_per_second=per_second)

    def show(task: str, done: int, total: int) -> None:
        if task not in tasks:
            bar.start()  # not before: a bar that had nothing to show would leave an empty line in a log
            tasks[task] = bar.add_task(task, total=total)
        bar.update(tasks[task], completed=done, total=total)

    try:
        yield show
    finally:
        if tasks:
            bar.stop()
