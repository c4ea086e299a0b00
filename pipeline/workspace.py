"""Every path that vp writes, in one place. No absolute path is stored, so a work folder can be moved."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from features.errors import CacheError, UsageError
from features.listing import is_there, listed
from features.plan import MANIFEST, NEXT_MANIFEST

MAX_JOINED_NAMES = 150
"""Characters; a file name may have 255 bytes, and more follows the names."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def is_run_name(name: str) -> bool:
    """Whether a run may be called so."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Workspace:
    """The work folder, which is made when something is written to it.

    Raises
    ------
    UsageError
        What is there is no folder, or the system does not tell what it is.
    """

    root: Path

    def __post_init__(self) -> None:
        try:
            is_other = self.root.exists() and not self.root.is_dir()
        except OSError as error:
            raise UsageError(
                f"--work must be a folder that can be read, however {self.root}: {error.strerror}"
            ) from error
        if is_other:
            raise UsageError(f"--work must be a folder or not be there yet, however {self.root} is none")

    @property
    def models(self) -> Path:
        """Encoders that vp builds itself."""
        return self.root / "models"

    @property
    def embeddings(self) -> Path:
        """All caches, one folder per encoder."""
        return self.root / "embeddings"

    @property
    def runs(self) -> Path:
        """All runs, one folder each."""
        return self.root / "runs"

    def cache(self, tag: str, split: str) -> Path:
        """The cache of one encoder over one split."""
        return self.embeddings / tag / split

    def run(self, name: str) -> Path:
        """The folder of one run."""
        if not is_run_name(name):
            raise UsageError(
                "a run's name is made of letters, digits, '.', '_' and '-', up to 64, and begins with a letter or a "
                f"digit, not {name!r}"
            )
        return self.runs / name

    def submission(self, runs: Sequence[str], method: str) -> Path:
        """The submission made from one run or several, whose names are joined by '+' while a file name can hold them.

        >>> Workspace(Path("work")).submission(["a", "b"], "mean").name
        'a+b_ensemble_mean.csv'
        """
        name = "+".join(runs)
        if len(name) > MAX_JOINED_NAMES:
            name = f"{runs[0]}+{len(runs) - 1}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
        return self.root / "submissions" / f"{name}_ensemble_{method}.csv"

    def has_cache(self, tag: str, split: str) -> bool:
        """Whether the cache of one split is finished."""
        return is_there(self.cache(tag, split) / MANIFEST)

    def cache_tags(self) -> list[str]:
        """The encoders that have a cache of the training videos, finished or not."""
        tags = listed(self.embeddings)
        return [tag.name for tag in tags if any(is_there(tag / "train_val" / name) for name in _MANIFESTS)]

    def cache_folders(self) -> list[Path]:
        """Every folder that may hold a cache: one per encoder and split, in whatever state."""
        shown = [path for tag in _shown(self.embeddings) for path in _shown(tag) if path.is_dir()]
        return sorted(shown, key=lambda path: (path.parent.name, path.name != "train_val", path.name))

    def only_cache(self) -> str:
        """The one encoder there is a cache of."""
        tags = self.cache_tags()
        if not tags:
            raise CacheError(f"no embeddings in {self.embeddings}: run `vp extract` first")
        if len(tags) > 1:
            raise UsageError(f"several caches in {self.embeddings}: choose with --model, one of {', '.join(tags)}")
        return tags[0]


_MANIFESTS = (MANIFEST, NEXT_MANIFEST)


def _shown(folder: Path) -> list[Path]:
    """What lies in a folder and is not hidden."""
    return [path for path in listed(folder) if not path.name.startswith(".")]
