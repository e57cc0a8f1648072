"""Token bytes become whole characters, cut where the first stop string is complete, however they are split."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgepd_daemon.engine.text import TextStream

SETTINGS = settings(derandomize=True, deadline=None, max_examples=400)


def cut(text: str, stops: Sequence[str]) -> str:
    """The text as a reader would cut it who sees one character after the other."""
    for end in range(len(text) + 1):
        complete = [s for s in stops if text[:end].endswith(s)]
        if complete:
            return text[: end - max(map(len, complete))]
    return text


def split(data: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in zip(edges, edges[1:], strict=False)]


def streamed(pieces: Sequence[bytes], stops: Sequence[str]) -> list[str]:
    stream = TextStream(stops)
    return [*(stream.feed(piece) for piece in pieces), stream.finish()]


@SETTINGS
@given(
    st.text(alphabet="abü€😀", max_size=30),
    st.lists(st.text(alphabet="abü€😀", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(0, 200), max_size=20),
)
def test_any_split_gives_the_text_up_to_the_first_stop_string(text: str, stops: list[str], cuts: list[int]) -> None:
    pieces = streamed(split(text.encode(), cuts), stops)
    assert "".join(pieces) == cut(text, stops)
    assert not any("\ufffd" in piece for piece in pieces)  # half a character would be decoded to this


@SETTINGS
@given(st.binary(max_size=40), st.lists(st.integers(0, 200), max_size=20))
def test_any_split_of_any_bytes_gives_what_decoding_at_once_gives(data: bytes, cuts: list[int]) -> None:
    assert "".join(streamed(split(data, cuts), [])) == data.decode("utf-8", errors="replace")


@SETTINGS
@given(
    st.text(alphabet="ab", max_size=12),
    st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_what_was_shown_is_never_taken_back_and_never_held_without_need(text: str, stops: list[str]) -> None:
    stream = TextStream(stops)
    shown = ""
    for n, letter in enumerate(text, 1):
        shown += stream.feed(letter.encode())
        if stream.stopped:
            break
        held = text[len(shown) : n]
        assert shown + held == text[:n]
        assert not held or any(s.startswith(held) for s in stops)
    assert shown + stream.finish() == cut(text, stops)


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        ([b"Hello", b" END", b" more"], ["END"], ["Hello", " ", "", ""]),
        ([b"aE", b"N", b"x"], ["END"], ["a", "", "ENx", ""]),
        ([b"aE", b"N"], ["END"], ["a", "", "EN"]),
        ([b"\xf0\x9f", b"\x98\x80"], [], ["", "\U0001f600", ""]),
        ([b"a\xf0\x9f"], [], ["a", "\ufffd"]),
        ([b"abcd"], ["abcd", "c"], ["ab", ""]),  # "c" is complete before "abcd" is
        ([b"abc", b"d"], ["abcd", "c"], ["ab", "", ""]),
        ([b"one\ntwo"], ["\n", "e\n"], ["on", ""]),  # both complete at once: the one that began first
        ([b"a"], [""], ["a", ""]),
    ],
)
def test_pieces(pieces: list[bytes], stops: list[str], expected: list[str]) -> None:
    assert streamed(pieces, stops) == expected
