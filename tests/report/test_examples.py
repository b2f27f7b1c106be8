"""Texts with their entities marked."""

from hypothesis import given
from hypothesis import strategies as st

from dtrain.report.examples import Piece, bracketed, marked, pieces

TYPES = ["X", "Y"]


@st.composite
def texts(draw):
    """A text and entities that do not overlap, some of which touch."""
    text = draw(st.text(max_size=20))
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6, unique=True)))
    pairs = draw(st.permutations(list(zip(cuts, cuts[1:], strict=False))))
    return text, [[*pair, draw(st.sampled_from(TYPES))] for pair in pairs if draw(st.booleans())]


@given(texts())
def test_pieces_are_the_text_on_one_line(drawn):
    text, spans = drawn
    cut = pieces(text, spans, TYPES)
    joined = "".join(piece.text for piece in cut)
    assert len(joined) == len(text) and len(f"{joined}.".splitlines()) == 1
    assert all(a == b or b == "⏎" for a, b in zip(text, joined, strict=True))
    place, entities = 0, []
    for piece in cut:
        if piece.type is not None:
            entities.append([place, place + len(piece.text), piece.type])
            assert TYPES[piece.color] == piece.type
        place += len(piece.text)
    assert entities == sorted(spans)
    assert len(bracketed(text, spans)) == len(text) + sum(len(f"[|{kind}]") for *_, kind in spans)


def test_what_one_side_has_alone_is_told():
    example = {"text": "ab", "gold": [[0, 1, "X"], [1, 2, "Y"]], "predicted": [[0, 1, "X"], [1, 2, "X"]]}
    found = marked(example, TYPES)
    assert found["gold"] == [Piece("a", "X", 0, True), Piece("b", "Y", 1, False)]
    assert found["predicted"] == [Piece("a", "X", 0, True), Piece("b", "X", 0, False)]
