"""Documents and files that somebody changed: strategies for hypothesis."""

import copy

from hypothesis import strategies as st

ODD_VALUES = (
    *(None, True, False, 0, -1, 1, 2**70, 10**400, 1.5, 1e308, float("nan"), float("inf")),
    *("", "x", "../../etc/passwd", "1e400", [], {}, [1], ["x"], {"a": 1}, [[[[]]]]),
)
ODD_BYTES = (b"\0", b"\xff", b'"', b",", b"\n", b"\r", b"[", b"{", b"nan", b"-", b"1e999", b"\xed\xa0\x80", b"\x1b[31m")


def _places(document, place=()):
    yield from [place] if place else []
    if isinstance(document, dict | list):
        for key in document if isinstance(document, dict) else range(len(document)):
            yield from _places(document[key], (*place, key))


@st.composite
def changed(draw, document):
    """A copy of a JSON document in which one to three values are gone, others, or elsewhere as well."""
    document = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(document))
        if not places:
            break
        *above, key = draw(st.sampled_from(places))
        holder = document
        for step in above:
            holder = holder[step]
        if draw(st.booleans()) and draw(st.booleans()):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(draw(st.sampled_from(ODD_VALUES)))
    return document


@st.composite
def damaged(draw, raw):
    """Bytes of which some are others, missing, or there twice."""
    raw = bytearray(raw)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(raw)))
        how = draw(st.sampled_from(("other", "insert", "cut out", "cut off", "repeat")))
        if how == "other":
            raw[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif how == "insert":
            raw[at:at] = draw(st.sampled_from(ODD_BYTES))
        elif how == "cut out":
            del raw[at : at + draw(st.integers(1, 8))]
        elif how == "cut off":
            del raw[at:]
        else:
            raw[at:at] = raw[: draw(st.integers(1, 40))]
    return bytes(raw)
