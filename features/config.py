"""Options of the dataset; each default is written here and nowhere else.

The text in `Annotated` is what `vp COMMAND --help` shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """Where the videos are and how strictly their tables are read."""

    data: Annotated[Path, "folder that holds train_val.csv, test.csv and the thumbnails"] = Path("dataset")
    sep: Annotated[str, "field delimiter of the CSV files"] = ","
    encoding: Annotated[str, "text encoding of the CSV files"] = "utf-8"
    on_duplicate: Annotated[Literal["error", "first"], "an id that occurs twice with the same label"] = "error"
    on_bad_label: Annotated[Literal["error", "drop"], "a training row whose views are not a valid number"] = "error"
    forbid_overlap: Annotated[bool, "refuse ids that are both in train_val.csv and test.csv"] = False
    columns: Annotated[Mapping[str, str], "vp.toml only: our column name = the dataset's"] = field(default_factory=dict)
