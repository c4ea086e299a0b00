"""How much memory there is, and whether the vectors of a cache fit into it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from features.errors import UsageError
from pipeline.config import TrainHeadsConfig
from pipeline.inputs import WORDS, Source, open_stores
from pipeline.workspace import Workspace

MEMORY_SHARE = 0.4
"""Vectors that take more of the available memory are read shard by shard: training and the diagnostics copy them."""

BYTES_PER_NUMBER = 4
"""Vectors are float16 on disk and float32 in memory."""

_GIB = 2**30
_LIMITS = (
    ("", "memory.max", "memory.current", "inactive_file"),  # cgroup v2
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # cgroup v1
)
"""Folder below /sys/fs/cgroup, the files of limit and usage, and what of the usage the kernel gives back."""


def training_streams(
    config: TrainHeadsConfig, workspace: Workspace, sources: Sequence[Source], splits: Sequence[str]
) -> bool:
    """Whether the heads are fitted from the shards: if so asked, or if the vectors of all splits would not fit.

    Raises
    ------
    UsageError
        They should be, but the head or a modality needs every row in memory.
    CacheError
        A cache is missing or unfinished.
    """
    needed, available = needed_bytes(workspace, sources, splits), available_bytes()
    streams = _streams(config.stream, needed, available)
    remedies = [] if config.head == "linear" else [f"--head {config.head} cannot: use --head linear"]
    remedies += ["--near-duplicates cannot: leave it out"] if config.near_duplicates else []
    remedies += [
        f"{source.modality} cannot: leave them out of --modalities" for source in sources if source.kind == WORDS
    ]
    if streams and remedies:
        raise UsageError(f"{_reason(config.stream, needed, available)}, but {'; '.join(remedies)}")
    return streams


def submission_streams(wanted: bool | None, workspace: Workspace, sources: Sequence[Source], split: str) -> bool:
    """Whether members predict from the shards; every kind of head can."""
    return _streams(wanted, needed_bytes(workspace, sources, [split]), available_bytes())


def needed_bytes(workspace: Workspace, sources: Sequence[Source], splits: Sequence[str]) -> int:
    """What the vectors of the splits take in memory; raises CacheError for a cache that is missing or unfinished."""
    stores = [open_stores(workspace, sources, split) for split in splits]
    plans = [(split[source.tag].plan, source.kind) for split in stores for source in sources if source.tag]
    return BYTES_PER_NUMBER * sum(plan.rows * plan.dims[kind] for plan, kind in plans)


def _streams(wanted: bool | None, needed: int, available: int | None) -> bool:
    """What was asked for; else whether the vectors take too much of the memory, if that is known."""
    if wanted is not None:
        return wanted
    return available is not None and needed > MEMORY_SHARE * available


def _reason(wanted: bool | None, needed: int, available: int | None) -> str:
    if wanted or available is None:
        return "--stream reads the vectors shard by shard"
    return (
        f"the vectors take {needed / _GIB:.1f} GiB in memory, more than {MEMORY_SHARE:.0%} of the "
        f"{available / _GIB:.1f} GiB that are available, so they are to be read shard by shard (--no-stream: in memory)"
    )


def available_bytes(root: Path = Path("/")) -> int | None:
    """What this process can still take: what the kernel estimates, and no more than any cgroup above it leaves.

    None where the system does not tell (no Linux).
    """
    return min((*_from_kernel(root), *_from_cgroups(root)), default=None)


def _from_kernel(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _from_cgroups(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for mount, limit, usage, reclaimable in _LIMITS:
            if controllers.split(",") != [mount]:
                continue
            top = root / "sys/fs/cgroup" / mount
            own = top / path.lstrip("/")
            for folder in (own, *own.parents):
                if folder.is_relative_to(top):
                    yield from _left(folder, limit, usage, reclaimable)


def _left(folder: Path, limit: str, usage: str, reclaimable: str) -> Iterator[int]:
    """The limit less what is used for good; nothing where there is no limit."""
    most, used = _lines(folder / limit), _lines(folder / usage)
    if most and used and most[0].isdecimal():
        free = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == reclaimable]
        yield max(int(most[0]) - int(used[0]) + sum(free), 0)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeError):  # another system, or not ours to read
        return []
