"""The plan of a cache: which rows go into which shard, and everything that determines their vectors.

A plan is made from the dataset and the encoder alone. How many processes or devices carry it out is no part of it, so
any number of them can finish what others began, and the shards come out the same.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from features import durable
from features.errors import CacheError

FORMAT = "vp-cache"
SCHEMA = 1
MANIFEST = "manifest.json"
NEXT_MANIFEST = "manifest.next.json"
"""The plan while its shards are being made; it becomes `manifest.json` once they are all there."""
TIMING = "timing.json"
QUARANTINE = "quarantine"
"""Where the time of the last extraction went; the folder for shards that were found damaged."""

DECIDE_LAST_BITS = ("device", "compile", "torch", "transformers", "tokenizers", "pillow")
"""Fields of the environment that may change a vector a little."""
_AND = "; "


@dataclass(frozen=True)
class PlannedShard:
    """Rows `start` to `stop` (exclusive) of one kind of vector.

    `key` identifies the shard: the encoder, the ids in their order, the batch size and, for texts, the texts.
    `stamps` is a digest of the sizes and times of the thumbnails when the plan was made: if it still holds, they need
    not be read again to know that they have not changed. `file` names the shard in a finished cache.
    """

    kind: str
    index: int
    start: int
    stop: int
    key: str
    stamps: str = ""
    file: str = ""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.stop - self.start


@dataclass(frozen=True)
class CachePlan:
    """The plan of all embeddings of one split by one encoder; `manifest.json` is this, written down.

    semantic
        Everything that determines the vectors (weights, preprocessing, text policy, precision): other values are
        another cache.
    environment
        Versions and device: other values may change the last bits of a vector. Several values of one field are joined
        by semicolons.
    dims
        Kind of vector (one of `features.kinds.KINDS`) -> its dimension.
    superseded
        Files in the folder that look valid but were made from thumbnails that have changed since.
    """

    semantic: Mapping[str, Any]
    environment: Mapping[str, str]
    split: str
    rows: int
    rows_per_shard: int
    batch_size: int
    dims: Mapping[str, int]
    shards: tuple[PlannedShard, ...]
    superseded: tuple[str, ...] = ()
    created_utc: str = ""

    @property
    def encoder(self) -> str:
        """Identifies what makes the vectors (hex): equal only if every semantic field is."""
        return digest(self.semantic)

    @property
    def identity(self) -> str:
        """Equal for plans that give equal shards (hex)."""
        return digest([shard.key for shard in self.shards])

    @property
    def is_complete(self) -> bool:
        """Whether every shard has its file named."""
        return all(shard.file for shard in self.shards)

    def of_kind(self, kind: str) -> list[PlannedShard]:
        """The shards of one kind, in row order."""
        return [shard for shard in self.shards if shard.kind == kind]

    def with_files(self, files: Mapping[tuple[str, int], str]) -> "CachePlan":
        """The same plan with a file name for each (kind, index): a manifest that can be published."""
        named = tuple(replace(shard, file=files[shard.kind, shard.index]) for shard in self.shards)
        return replace(self, shards=named)


def shard_ranges(rows: int, rows_per_shard: int) -> Iterator[tuple[int, int, int]]:
    """Cut rows into shards: (index, start, stop).

    >>> list(shard_ranges(5, 2))
    [(0, 0, 2), (1, 2, 4), (2, 4, 5)]
    """
    for index, start in enumerate(range(0, rows, rows_per_shard)):
        yield index, start, min(start + rows_per_shard, rows)


def shard_key(encoder: str, kind: str, batch_size: int, ids: Sequence[str], texts: bytes = b"") -> str:
    """The identity of one shard (hex): `texts` are the digests of its rows' texts, if it holds texts."""
    return digest([encoder, kind, batch_size, list(ids), texts.hex()])


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Every field in which two mappings differ, with both values.

    >>> differences({"dtype": "fp32", "size": {"w": 1}}, {"dtype": "bf16", "size": {"w": 1}})
    ["dtype: 'fp32' here, 'bf16' there"]
    """
    found: list[str] = []
    for name in sorted({*ours, *theirs}):
        mine, other = ours.get(name), theirs.get(name)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            found += differences(mine, other, f"{prefix}{name}.")
        elif (name in ours) != (name in theirs) or digest(mine) != digest(other):
            found.append(f"{prefix}{name}: {mine!r} here, {other!r} there")
    return found


def merged_environment(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, str]:
    """The environment of shards that were made in two: a field holds every value that it had.

    >>> merged_environment({"torch": "2.13"}, {"torch": "2.12; 2.11", "device": "CPU"})
    {'torch': '2.12; 2.11; 2.13', 'device': 'CPU'}
    """
    merged = dict(theirs)
    for name, value in ours.items():
        values = merged[name].split(_AND) if name in merged else []
        merged[name] = several([*values, *value.split(_AND)])
    return merged


def unknown_environment(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Fields in which we differ from all that made `theirs`, of those that may change the last bits of a vector.

    >>> unknown_environment({"torch": "2.14", "numpy": "3"}, {"torch": "2.12; 2.13", "numpy": "2"})
    ["torch: '2.14' here, '2.12; 2.13' there"]
    """
    names = [name for name in DECIDE_LAST_BITS if not _values(ours, name) <= _values(theirs, name)]
    return [f"{name}: {ours.get(name, '')!r} here, {theirs.get(name, '')!r} there" for name in names]


def several(values: Iterable[str]) -> str:
    """Different values of one field of an environment, as one.

    >>> several(["A100", "H100", "A100"])
    'A100; H100'
    """
    return _AND.join(dict.fromkeys(values))


def _values(environment: Mapping[str, str], name: str) -> set[str]:
    return set(environment.get(name, "").split(_AND))


def write_plan(path: Path, plan: CachePlan) -> None:
    """Publish a plan as JSON."""
    document = {"format": FORMAT, "schema": SCHEMA} | vars(plan)
    document["shards"] = [vars(shard) for shard in plan.shards]
    durable.publish(path, json.dumps(document, indent=1) + "\n")


def read_plan(path: Path) -> CachePlan | None:
    """The plan in a file, or None if there is no such file.

    Raises
    ------
    CacheError
        The file is damaged, or was written by another version of vp.
    """
    try:
        if not path.is_file() and path.exists():  # a FIFO would wait for a writer, a device may have no end
            raise CacheError(f"{path} is no file: {_REBUILD}")
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise CacheError(f"{path} is not readable as a manifest ({error}): {_REBUILD}") from error
    return _parsed(document, path)


_REBUILD = "move its folder away and run `vp extract` again"


def _parsed(document: Any, path: Path) -> CachePlan:
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise CacheError(f"{path} is not a manifest of vp: {_REBUILD}")
    schema = document.get("schema")
    if schema != SCHEMA:
        advice = "upgrade vp" if isinstance(schema, int) and schema > SCHEMA else _REBUILD
        raise CacheError(f"{path} has schema {schema!r}, this vp reads schema {SCHEMA}: {advice}")
    try:
        fields = {name: value for name, value in document.items() if name not in {"format", "schema"}}
        fields["shards"] = tuple(PlannedShard(**shard) for shard in fields["shards"])
        fields["superseded"] = tuple(fields["superseded"])
        plan = CachePlan(**fields)
        _check_types(plan, document)
        _check(plan)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise CacheError(f"{path} is not a whole manifest ({error}): {_REBUILD}") from error
    return plan


def _check_types(plan: CachePlan, document: Mapping[str, Any]) -> None:
    """Refuse what a reader would trip over later."""
    texts = [plan.split, plan.created_utc, *plan.superseded]
    texts += [text for shard in plan.shards for text in (shard.kind, shard.key, shard.stamps, shard.file)]
    numbers = [plan.rows, plan.rows_per_shard, plan.batch_size]
    right = {
        "semantic and environment": isinstance(plan.semantic, dict) and isinstance(plan.environment, dict),
        "rows, rows_per_shard and batch_size": all(type(number) is int and number > 0 for number in numbers),
        "names": isinstance(document["superseded"], list) and all(isinstance(text, str) for text in texts),
    }
    right["environment"] = right["semantic and environment"] and all(
        isinstance(text, str) for text in plan.environment.values()
    )
    right["files"] = right["names"] and not any("/" in shard.file for shard in plan.shards)  # none is read elsewhere
    wrong = [what for what, holds in right.items() if not holds]
    if wrong:
        raise ValueError(f"of the wrong type: {', '.join(wrong)}")


def _check(plan: CachePlan) -> None:
    """Refuse a plan whose shards do not cover its rows exactly."""
    if not plan.dims or not all(type(dim) is int and dim > 0 for dim in plan.dims.values()):
        raise ValueError(f"dims are {plan.dims}")
    counts = Counter(shard.kind for shard in plan.shards)
    per_kind = -(-plan.rows // plan.rows_per_shard)  # counted first: a false number of rows may be astronomical
    for kind in plan.dims:
        ranges = shard_ranges(plan.rows, plan.rows_per_shard) if counts[kind] == per_kind else ()
        if [(shard.index, shard.start, shard.stop) for shard in plan.of_kind(kind)] != list(ranges):
            raise ValueError(f"the {kind} shards do not cover rows 0 to {plan.rows}")
    if counts.keys() != plan.dims.keys():
        raise ValueError(f"shards of kinds other than {sorted(plan.dims)}")


def digest(value: Any) -> str:
    """SHA-256 (hex) of a JSON-able value in its canonical form."""
    canonical = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()
