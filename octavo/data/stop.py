"""Stop strings, found in text that arrives in pieces.

The stop that counts is the first to be complete, reading character by character; of several complete at the same
character, the longest. This does not depend on where the pieces were cut: of "abcd" with the stops "abcd" and "bc",
only "a" is given out, whether it came whole or in four.

    stops = StopStrings(["\\nUser:"])
    for piece in pieces:
        text, stopped = stops.put(piece)
"""

from collections.abc import Sequence

from octavo.errors import UsageError


class StopStrings:
    """Passes text on until a stop string, holding back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises UsageError for an empty stop string."""
        if isinstance(stops, str):
            raise TypeError("stops is a sequence of strings, not a string")
        if not all(stops):
            raise UsageError("a stop string must not be empty")
        self._matchers = [_Matcher(stop) for stop in dict.fromkeys(stops)]
        self._held = ""
        self._stopped = False

    def put(self, text: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop string was met (it is not shown, nor is what follows)."""
        if self._stopped:
            return "", True
        if not self._matchers:
            return text, False
        pending = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            complete = [len(matcher.stop) for matcher in self._matchers if matcher.advance(char)]
            if complete:
                self._held, self._stopped = "", True
                return pending[: end - max(complete)], True
        kept = len(pending) - max((matcher.matched for matcher in self._matchers), default=0)
        self._held = pending[kept:]
        return pending[:kept], False

    def flush(self) -> str:
        """The text still held back, once no more will come: nothing after a stop."""
        held, self._held = self._held, ""
        for matcher in self._matchers:
            matcher.matched = 0
        return held


class _Matcher:
    """How much of the beginning of one stop string the text seen so far ends with (Knuth, Morris and Pratt)."""

    def __init__(self, stop: str) -> None:
        self.stop = stop
        self.matched = 0
        # _shorter[n]: the longest proper beginning of stop[:n] that is also its end
        self._shorter = [0, 0]
        for char in stop[1:]:
            matched = self._shorter[-1]
            while matched and stop[matched] != char:
                matched = self._shorter[matched]
            self._shorter.append(matched + (stop[matched] == char))

    def advance(self, char: str) -> bool:
        """Take one more character; True if it completes the stop string, after which the matcher is done."""
        while self.matched and self.stop[self.matched] != char:
            self.matched = self._shorter[self.matched]
        self.matched += self.stop[self.matched] == char
        return self.matched == len(self.stop)
