"""Title and description in, the one text an encoder reads out: cleaned, joined and cut in a fixed order."""

import html
import re
import string
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

MAX_CHARACTERS = 2_000
"""Where a text is cut before it is tokenised: far beyond the limit of CLIP and SigLIP, so only time and memory depend
on it. An encoder that reads longer texts has a limit of its own in its `TextPolicy`."""

Letters = Literal["as written", "lower-case", "lower-case, no punctuation"]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Prompt(NamedTuple):
    """A text as the tokenizer gets it; `repaired` if it held characters that no encoder and no file can take."""

    text: str
    repaired: bool


@dataclass(frozen=True, kw_only=True)
class TextPolicy:
    """What stands between a video's words and its vector; part of what identifies the vector.

    mode
        What the vector of kind `text` is made from; `title` and `description` are each read alone, in the same way.
    letters
        What becomes of capitals and punctuation before the tokenizer sees them.
    padding
        "trimmed" if padding may be left away, else on which side of the text it fills up `max_tokens`.
    pooling
        How the vectors of the tokens become one, if the checkpoint leaves it to its files.
    prefix
        What an encoder was trained to see before every text.
    """

    max_tokens: int  # with the start and the end token
    mode: Literal["joined"] = "joined"
    characters: int = MAX_CHARACTERS
    letters: Letters = "as written"
    padding: Literal["trimmed", "left", "right"] = "trimmed"
    pooling: Literal["", "mean", "cls", "max", "last"] = ""
    prefix: str = ""

    def prompt(self, title: str, description: str) -> "Prompt":
        """What an encoder reads of a video."""
        return joined(title, description, self.characters)

    def prepared(self, text: str) -> str:
        """The text as the tokenizer gets it.

        >>> TextPolicy(max_tokens=64, letters="lower-case, no punctuation").prepared("What?!  A CAKE...")
        'what a cake'
        """
        if self.letters != "as written":
            text = text.lower()
        if self.letters == "lower-case, no punctuation":
            text = " ".join(text.translate(_NO_PUNCTUATION).split())
        return self.prefix + text

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides the tokens of a text, ready for JSON.

        >>> TextPolicy(max_tokens=77).to_dict()["max_tokens"]
        77
        """
        ours = {name: value for name, value in asdict(self).items() if value != _OF_SOME_FAMILIES.get(name)}
        return ours | {
            "html_unescape": 1,
            "surrogates": "U+FFFD",
            "nul": "removed",
            "unicode": "NFC",
            "truncation": "keep the end token",
        }


# Left out of the record where an encoder has no use for them, so that what CLIP's vectors are known by never changes.
_OF_SOME_FAMILIES = {"letters": "as written", "padding": "trimmed", "pooling": "", "prefix": ""}


def joined(title: str, description: str, characters: int = MAX_CHARACTERS) -> Prompt:
    r"""One text of a video: title, one space, description; cut at `characters`.

    HTML entities are unescaped, because titles from YouTube's API arrive escaped and `&amp;` would cost tokens;
    surrogates become U+FFFD and NULs go, because UTF-8, CSV and HDF5 cannot hold them. An empty text means that the
    video has neither title nor description.

    >>> joined("Tom &amp; Jerry", "Best of")
    Prompt(text='Tom & Jerry Best of', repaired=False)
    >>> joined(" a\x00b ", "")
    Prompt(text='ab', repaired=True)
    """
    raw = f"{html.unescape(title)} {html.unescape(description)}"
    repaired = _LONE_SURROGATE.search(raw) is not None or "\0" in raw
    return Prompt(_repaired(raw).strip()[:characters].rstrip(), repaired)


def cleaned(text: str) -> str:
    r"""One text, unescaped and repaired as `joined` does it, whole.

    >>> cleaned("Tom &amp; Jerry\x00")
    'Tom & Jerry'
    """
    return _repaired(html.unescape(text))


def without_surrogates(text: str) -> str:
    r"""Halves of surrogate pairs, which UTF-8 cannot hold, become U+FFFD.

    >>> without_surrogates("Caf\u00e9 \ud83d")
    'Caf\xe9 \ufffd'
    """
    return _LONE_SURROGATE.sub("\ufffd", text)


def _repaired(raw: str) -> str:
    return unicodedata.normalize("NFC", without_surrogates(raw).replace("\0", ""))
