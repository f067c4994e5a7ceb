import pytest

pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st

from edge_perception.errors import DecodingError
from edge_perception.vlm.text_stream import TextStream


def decode_bytes(tokens) -> str:
    """A tokenizer whose tokens are bytes: characters span tokens wherever they can."""
    return bytes(tokens).decode("utf-8", errors="replace")


def pieces_of(text: str, stop: tuple[str, ...] = ()) -> list[str]:
    stream = TextStream(decode_bytes, stop)
    pieces = [stream.push(token) for token in text.encode()]
    return [piece for piece in [*pieces, stream.finish()] if piece]


def cut(text: str, stop: tuple[str, ...]) -> str:
    """The text before the stop string that is the first to be complete."""
    for end in range(len(text) + 1):
        starts = [text[:end].find(word) for word in stop if word in text[:end]]
        if starts:
            return text[: min(starts)]
    return text


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=4), max_size=3))
def test_pieces_make_the_text_up_to_the_first_stop_string(text: str, stop: list[str]) -> None:
    text = text.replace("�", "")
    assert "".join(pieces_of(text, tuple(stop))) == cut(text, tuple(stop))


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
def test_stop_strings_that_overlap_themselves_are_found(text: str, stop: list[str]) -> None:
    assert "".join(pieces_of(text, tuple(stop))) == cut(text, tuple(stop))


def test_character_of_several_tokens_comes_whole() -> None:
    assert pieces_of("a€😀b") == ["a", "€", "😀", "b"]


def test_text_that_may_become_a_stop_string_is_held_back() -> None:
    stream = TextStream(decode_bytes, ("</s>",))
    given_out = [stream.push(token) for token in b"x</b</s>y"]
    assert given_out == ["x", "", "", "</b", "", "", "", "", ""]
    assert stream.stopped
    assert stream.finish() == ""


def test_bytes_that_never_become_a_character_are_told_at_the_end() -> None:
    stream = TextStream(decode_bytes)
    assert stream.push(0xE2) == ""
    assert stream.finish() == "�"


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(DecodingError, match="not empty"):
        TextStream(decode_bytes, ("",))


def test_pieces_of_any_size_end_at_the_same_stop_string() -> None:
    stream = TextStream("".join, ("b", "aba"))  # type: ignore[arg-type]
    assert stream.push("aba") == "a"  # type: ignore[arg-type]
