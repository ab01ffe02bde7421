"""Text as it is shown: whole characters, and stop strings found across any token boundary."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from m1runtime.text import TextStream

BYTES = [bytes([b]) for b in range(256)]
letters = st.text("ab<é😀", max_size=30)


@given(
    text=letters, stops=st.lists(st.text("ab<é", min_size=1, max_size=4), max_size=3), cuts=st.sets(st.integers(1, 60))
)
def test_stops_and_characters_at_any_split(text: str, stops: list[str], cuts: set[int]) -> None:
    raw = text.encode()
    edges = [0, *sorted(cut for cut in cuts if cut < len(raw)), len(raw)]
    tokens = [raw[a:b] for a, b in pairwise(edges)]
    stream = TextStream(tokens, stops)
    shown: list[str] = []
    for token in range(len(tokens)):
        shown.append(stream.push(token))
        if stream.stopped:
            break
    shown.append(stream.finish())
    first = min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))
    assert "".join(shown) == stream.text == text[:first]
    assert not any("�" in piece for piece in shown)


@given(raw=st.binary(max_size=40))
def test_bytes_that_are_no_text_become_the_replacement_character(raw: bytes) -> None:
    stream = TextStream(BYTES)
    for byte in raw:
        stream.push(byte)
    stream.finish()
    assert stream.text == raw.decode("utf-8", "replace")
