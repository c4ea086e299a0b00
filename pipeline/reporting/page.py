"""Numbers, charts and pictures become one HTML page that needs nothing else and runs nothing."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from heads.targets import Target
from pipeline.reporting import words as plain_words
from pipeline.reporting.charts import bar_share, charts
from pipeline.reporting.pictures import is_image
from pipeline.reporting.svg import SERIES
from pipeline.reporting.words import Words

TEMPLATE = "report.html.j2"

SERIES_OF = {"image": 0, "text": 1, "age": 2, "channel": 3, "words": 4, "title": 5, "description": 6}
"""The colour of each kind of modality; kinds that occur twice, and unknown ones, take what is left."""

NAMES = {
    "image": "thumbnail",
    "text": "title and description",
    "age": "age",
    "channel": "channel",
    "words": "words",
    "title": "title",
    "description": "description",
    "joint": "what they do together",
}


def page(numbers: Mapping[str, Any], pictures: Mapping[int, str]) -> str:
    """The whole page; every text from outside is escaped by the template engine, and charts hold none."""
    words = Words(Target(numbers["run"]["target"]))
    told = {**numbers, "colours": colours(list(numbers["modalities"]))}
    template = _environment(words).get_template(TEMPLATE)
    return template.render(**told, words=words, charts=charts(told, words), pictures=pictures) + "\n"


def colours(modalities: Sequence[str]) -> dict[str, int]:
    """A series for each modality, the same in every report as far as possible.

    >>> colours(["image", "age", "image@ViT-B-32"])
    {'image': 0, 'age': 2, 'image@ViT-B-32': 7}
    """
    kinds = [modality.partition("@")[0] for modality in modalities]
    first_of = dict(reversed(list(zip(kinds, modalities, strict=True))))
    known = {modality: SERIES_OF[kind] for kind, modality in first_of.items() if kind in SERIES_OF}
    spare = (index for index in reversed(range(SERIES)) if index not in known.values())
    return {modality: known[modality] if modality in known else next(spare, 0) for modality in modalities}


def modality_name(modality: str) -> str:
    """A modality in a client's words.

    >>> modality_name("image@ViT-L-14"), modality_name("likes")
    ('thumbnail (ViT-L-14)', 'likes')
    """
    kind, _, tag = modality.partition("@")
    name = NAMES.get(kind, kind)
    return f"{name} ({tag})" if tag else name


@lru_cache(maxsize=2)
def _environment(words: Words) -> Environment:
    environment = Environment(
        loader=PackageLoader("pipeline.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    names = ("plain_text", "count", "percent", "decimal", "said", "flat", "tables")
    environment.filters |= {name: getattr(plain_words, name) for name in names}
    spoken = ("views", "effect", "miss", "typical", "times", "measure")
    environment.filters |= {name: getattr(words, name) for name in spoken}
    environment.filters |= {"modality": modality_name}
    environment.globals |= {"bar": bar_share, "between_ages": plain_words.between_ages, "is_image": is_image}
    return environment
