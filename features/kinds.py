"""Kinds of vector: which part of a video each is made from, and by which tower of an encoder."""

from collections.abc import Iterable

IMAGE, TEXT = "image", "text"
"""The two towers, and the kinds of vector that they make unless texts are kept separate."""

SEPARATE = ("title", "description")
"""Kinds that the tower of texts makes as well, each from one part of a text alone."""

KINDS = (IMAGE, TEXT, *SEPARATE)


def tower_of(kind: str) -> str:
    """The tower that makes a kind of vector.

    >>> tower_of("image"), tower_of("text"), tower_of("description")
    ('image', 'text', 'text')
    """
    return IMAGE if kind == IMAGE else TEXT


def towers_of(kinds: Iterable[str]) -> list[str]:
    """Every tower that some kinds need, once.

    >>> towers_of(["image", "title", "description"])
    ['image', 'text']
    """
    return list(dict.fromkeys(map(tower_of, kinds)))
