"""Guess the next tokens by what followed the same last tokens before, in the prompt or the answer.

Prompt look-up decoding (Saxena 2023; Yang et al. 2023, "Inference with Reference"). A guess costs rows in a step and
never changes an answer: the sampler chooses every token from the logits after the one before it, and the first that
is not as guessed ends the guess. It pays where answers quote: edits, summaries, tool calls.
"""

MATCHED = 3  # tokens that must be the same
_REMEMBERED = 16_384  # last tokens of a prompt that are searched: an index of a million would take a second
_LONGEST_PAUSE = 64  # steps without a guess, after many in a row that were wrong at once


class Lookup:
    """One answer's guesses."""

    def __init__(self, most: int) -> None:
        """most: tokens guessed at once, at most."""
        self._most, self._length = most, min(most, 4)
        self._places: dict[tuple[int, ...], int] = {}  # MATCHED tokens: where what follows them begins
        self._indexed = 0
        self._failures = self._pause = 0

    def guess(self, ids: list[int], guessed: int, right: int) -> list[int]:
        """What may follow `ids`, often nothing.

        guessed, right: how many tokens were guessed last time, and how many of them came. Longer guesses follow where
        all were right, none for a while where none was.
        """
        if guessed:
            self._length = min(2 * self._length, self._most) if right == guessed else max(1, right)
            self._failures = 0 if right else self._failures + 1
            self._pause = 0 if right else min(2**self._failures, _LONGEST_PAUSE)
        for end in range(max(self._indexed, MATCHED, len(ids) - _REMEMBERED), len(ids)):
            self._places[tuple(ids[end - MATCHED : end])] = end
        self._indexed = max(self._indexed, len(ids))
        if self._pause:
            self._pause -= 1
            return []
        place = self._places.get(tuple(ids[-MATCHED:]), len(ids))
        guess = ids[place : place + self._length]
        while guess and len(guess) < self._length:  # what followed ends here: it goes on as it repeats itself
            guess.append(guess[len(guess) - (len(ids) - place)])
        return guess
