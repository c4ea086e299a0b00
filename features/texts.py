"""Title and description in, the one text an encoder reads out: cleaned, joined and cut in a fixed order."""

import html
import re
import unicodedata
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

MAX_CHARACTERS = 2_000
"""Where a text is cut before it is tokenised: far beyond any encoder's limit, so only time and memory depend on it."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Prompt(NamedTuple):
    """A text as the tokenizer gets it; `repaired` if it held characters that no encoder and no file can take."""

    text: str
    repaired: bool


@dataclass(frozen=True, kw_only=True)
class TextPolicy:
    """What stands between a video's words and its tokens; part of what identifies a vector."""

    max_tokens: int  # with the start and the end token
    mode: Literal["joined"] = "joined"
    characters: int = MAX_CHARACTERS

    def to_dict(self) -> dict[str, Any]:
        """Everything that decides the tokens of a text, ready for JSON.

        >>> TextPolicy(max_tokens=77).to_dict()["max_tokens"]
        77
        """
        return asdict(self) | {
            "html_unescape": 1,
            "surrogates": "U+FFFD",
            "nul": "removed",
            "unicode": "NFC",
            "truncation": "keep the end token",
        }


def joined(title: str, description: str) -> Prompt:
    r"""One text of a video: title, one space, description.

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
    return Prompt(_repaired(raw).strip()[:MAX_CHARACTERS].rstrip(), repaired)


def cleaned(text: str) -> str:
    r"""One text, unescaped and repaired as `joined` does it, whole.

    >>> cleaned("Tom &amp; Jerry\x00")
    'Tom & Jerry'
    """
    return _repaired(html.unescape(text))


def _repaired(raw: str) -> str:
    return unicodedata.normalize("NFC", _LONE_SURROGATE.sub("\ufffd", raw).replace("\0", ""))
