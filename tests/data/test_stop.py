"""Stop strings: the same text is given out however it was cut, and nothing of a stop ever is."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.data.stop import StopStrings
from octavo.errors import UsageError

WORDS = st.text("ab", min_size=1, max_size=8)  # few letters: stops that repeat themselves


def feed(stops, pieces):
    """Everything given out, and whether a stop was met."""
    matcher, given_out = StopStrings(stops), []
    for piece in pieces:
        text, stopped = matcher.put(piece)
        given_out.append(text)
        if stopped:
            break
    else:
        stopped = False
    given_out.append(matcher.flush())
    return "".join(given_out), stopped


def by_definition(stops, text):
    """Text before the stop that is complete first, the longest of those complete at the same character."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


@given(st.lists(WORDS, max_size=4), st.lists(st.text("abc", max_size=9), max_size=5))
def test_any_cut_gives_the_text_up_to_the_first_stop(stops, pieces):
    text = "".join(pieces)
    assert feed(stops, pieces) == feed(stops, [text]) == feed(stops, text) == by_definition(stops, text)


def test_every_short_stop_in_every_short_text():
    words = ["".join(word) for length in range(1, 8) for word in itertools.product("ab", repeat=length)]
    for stop, text in itertools.product([word for word in words if len(word) <= 5], words):
        assert feed([stop], text) == by_definition([stop], text)


@given(st.lists(WORDS, min_size=1, max_size=3), st.text("ab", max_size=20))
def test_holds_back_no_more_than_it_must(stops, text):
    matcher = StopStrings(stops)
    shown, stopped = matcher.put(text)
    if not stopped:
        held = text[len(shown) :]
        starts = {stop[:n] for stop in stops for n in range(len(stop))}
        assert held == max((start for start in starts if text.endswith(start)), key=len)


@pytest.mark.parametrize(
    ("stops", "text", "shown"),
    [
        ([], "abc", "abc"),
        (["b"], "abc", "a"),
        (["abcd", "bc"], "abcd", "a"),  # bc is complete first, though abcd begins before it
        (["bc", "abc"], "xabcd", "x"),  # complete together: the longer
        (["aab"], "aaab", "a"),
        (["\n\n", "User:"], "yes\nUser: no", "yes\n"),
        (["好的"], "你好好的", "你好"),
        (["abc"], "ab", "ab"),
    ],
)
def test_by_hand(stops, text, shown):
    assert feed(stops, [text]) == feed(stops, text) == (shown, shown != text)


def test_pieces_come_as_early_as_possible():
    matcher = StopStrings(["\nUser:"])
    assert [matcher.put(piece) for piece in ("Hi", "\nUs", "ual", "\nUser", ":x")] == [
        ("Hi", False),
        ("", False),
        ("\nUsual", False),
        ("", False),
        ("", True),
    ]
    assert matcher.put("more") == ("", True)
    assert matcher.flush() == ""


def test_wrong_stops():
    with pytest.raises(UsageError, match="empty"):
        StopStrings(["a", ""])
    with pytest.raises(TypeError):
        StopStrings("abc")


def test_cost_does_not_depend_on_the_length_of_the_stop():
    stop = "a" * 100_000 + "b"
    text, stopped = feed([stop], ["a" * 10] * 15_000 + ["b"])
    assert stopped and text == "a" * 50_000
