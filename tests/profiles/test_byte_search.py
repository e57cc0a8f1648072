from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgepd_profiles import byte_search
from edgepd_profiles.byte_search import Matcher, around, pieces, search_files, spellings

SECRET = b"the blue heron nests here"


def test_a_short_text_is_one_piece_and_a_long_one_is_several() -> None:
    assert pieces("  the blue heron nests here\n") == [SECRET]
    long = "".join(f"{n:04d}" for n in range(300))
    found = pieces(long)
    assert len(found) == byte_search.WINDOWS
    assert [len(piece) for piece in found] == [byte_search.WINDOW] * byte_search.WINDOWS
    assert found[0] == long[:60].encode()
    assert found[-1] == long[-60:].encode()


@pytest.mark.parametrize("text", ["", "short", "eleven byte", "-" * 40, "abcd" * 80])
def test_what_may_stand_anywhere_by_chance_is_no_piece(text: str) -> None:
    assert pieces(text) == []


def test_windows_are_cut_between_characters() -> None:
    text = "äöüß€日本語" * 40
    for piece in pieces(text):
        assert piece.decode() in text
        assert len(piece) > byte_search.WINDOW - 8


def test_the_piece_around_a_match() -> None:
    text = "a" * 500 + " the blue heron nests here " + "b" * 500
    start = text.index("heron")
    assert around(text, start, start + 5) == [b"a" * 17 + b" the blue heron nests here " + b"b" * 15]
    assert around("heron", 0, 5) == []


def test_a_piece_has_the_spellings_of_json() -> None:
    assert spellings('say "grüß"\n'.encode()) == {
        'say "grüß"\n'.encode(),
        b'say \\"gr\xc3\xbc\xc3\x9f\\"\\n',
        b'say \\"gr\\u00fc\\u00df\\"\\n',
    }


@pytest.mark.parametrize("offset", range(17))
def test_a_piece_is_found_at_every_offset(offset: int) -> None:
    matcher = Matcher([SECRET, b"something else altogether"])
    assert matcher.found_in(b"\0" * offset + SECRET) == {SECRET}
    assert matcher.found_in(b"\0" * offset + SECRET[:-1] + b"?") == set()


def test_pieces_that_begin_alike_are_told_apart() -> None:
    wanted = {f"Name the animal {n:04d} of the zoo".encode() for n in range(300)}
    content = b"..." + b"Name the animal 0123 of the zoo" + b"..."
    matcher = Matcher(wanted)
    assert matcher.found_in(content) == {b"Name the animal 0123 of the zoo"}
    assert max(len(spelled) for spelled in matcher._spelled.values()) < 30  # else each would be tried at each beginning


texts = st.text(min_size=1, max_size=80)


@given(st.lists(texts, max_size=5), texts, texts, st.sampled_from(["plain", "json", "ascii"]))
def test_found_is_what_a_plain_search_finds(others: list[str], text: str, before: str, how: str) -> None:
    if how == "plain":
        content = (before + text).encode()
    else:
        content = json.dumps(before + text, ensure_ascii=how == "ascii").encode()
    wanted = {piece for each in [*others, text] for piece in pieces(each)}
    expected = {piece for piece in wanted if any(spelling in content for spelling in spellings(piece))}
    assert Matcher(wanted).found_in(content) == expected
    assert set(pieces(text)) <= expected


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_search, "CHUNK", 64)


def test_files_are_searched_across_the_ends_of_chunks(tmp_path: Path, small_chunks: None) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for n in range(0, 130, 7):
        (tmp_path / "deep" / "er" / f"{n:03d}").write_bytes(b"." * n + SECRET + b"." * 100)
    (tmp_path / "none").write_bytes(b"the blue heron nests elsewhere" * 10)
    result = search_files(tmp_path, [SECRET])
    assert [(path.name, count) for path, count in result.found] == [(f"{n:03d}", 1) for n in range(0, 130, 7)]
    assert result.pieces == {SECRET}
    assert result.files == 20
    assert result.total_bytes == sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())


def test_what_is_skipped_linked_or_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").write_bytes(SECRET)
    (tmp_path / "skipped").write_bytes(SECRET)
    (tmp_path / "read").write_bytes(b"..." + SECRET + b"!" + SECRET)
    (tmp_path / "link").symlink_to(tmp_path / "skipped")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    result = search_files(tmp_path, [SECRET], skip=[tmp_path / "models", tmp_path / "skipped"])
    assert result.found == [(tmp_path / "read", 1)]
    assert (result.files, result.unreadable) == (1, [])


def test_a_directory_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert search_files(tmp_path / "nothing", [SECRET]).files == 0


def test_without_pieces_files_are_counted_and_nothing_is_found(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(SECRET)
    result = search_files(tmp_path, [])
    assert (result.files, result.total_bytes, result.found) == (1, 25, [])
