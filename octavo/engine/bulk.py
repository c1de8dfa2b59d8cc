"""Many requests at once: a few more under way than can run, the results in order."""

import queue
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol, TypeVar

from octavo.engine.answer import Completion, FinishReason, Piece
from octavo.progress import Progress, progress_bar

T = TypeVar("T")
Done = Callable[[Any], None]  # gets a result, or the exception that came instead


class Cancellable(Protocol):
    """A request under way."""

    def cancel(self) -> None:
        """End it; harmless when it is over."""
        ...


def run_all(
    count: int, start: Callable[[int, Done], Cancellable], ahead: int, task: str, progress: Progress | None
) -> list[Any]:
    """The results of `count` requests, at most `ahead` of them under way: thousands take no memory before their turn.

    `start` hands number i in and sees to it that `done` gets its result. Raises the first exception that comes instead
    of one; however it ends, nothing is left running. progress None: a bar, where there is more than one.
    """
    if progress is None:
        with progress_bar() as drawn:
            return _run_all(count, start, ahead, task, drawn if count > 1 else None)
    return _run_all(count, start, ahead, task, progress)


def _run_all(
    count: int, start: Callable[[int, Done], Cancellable], ahead: int, task: str, progress: Progress | None
) -> list[Any]:
    arrived: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    results: dict[int, Any] = {}
    under_way: dict[int, Cancellable] = {}
    upcoming = iter(range(count))

    def done_with(index: int) -> Done:
        return lambda result: arrived.put((index, result))

    try:
        while len(results) < count:
            for index in islice(upcoming, ahead - len(under_way)):
                under_way[index] = start(index, done_with(index))
            index, result = arrived.get()
            if isinstance(result, Exception):
                raise result  # still among those under way: its other answers are
            del under_way[index]
            results[index] = result
            if progress:
                progress(task, len(results), count)
    finally:
        for request in under_way.values():
            request.cancel()
    return [results[index] for index in range(count)]


class Gathered:
    """Puts the pieces of a request's n answers together; `done` gets a list of pieces for each, or the first error."""

    def __init__(self, n: int, done: Done) -> None:
        self._pieces: list[list[Piece]] = [[] for _ in range(n)]
        self._left, self._done = n, done

    def put(self, piece: Piece | Exception) -> None:
        """One more piece."""
        if self._left <= 0:  # an error has ended the request, and more of its answers come to their end
            return
        if isinstance(piece, Exception):
            self._left = 0
            self._done(piece)
            return
        self._pieces[piece.index].append(piece)
        self._left -= piece.finish_reason is not None
        if not self._left:
            self._done(self._pieces)


def completion(pieces: list[Piece], prompt_tokens: int, cached_tokens: int) -> Completion:
    """An answer's pieces as a whole."""
    reason: FinishReason | None = pieces[-1].finish_reason
    assert reason is not None
    logprobs = tuple(piece.logprob for piece in pieces if piece.logprob is not None)
    return Completion(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(piece.token_id for piece in pieces),
        prompt_tokens=prompt_tokens,
        finish_reason=reason,
        cached_tokens=cached_tokens,
        index=pieces[0].index,
        logprobs=logprobs or None,
        prompt_logprobs=pieces[0].prompt_logprobs,
    )
