"""`vp extract`: dataset -> cache of embeddings, one folder per encoder and split."""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from features.cache import CacheSummary, Recipe, make_cache
from features.embed import Encoder
from features.encoders import EncoderConfig, cache_tag, resolve_encoder
from features.errors import TooManyBadRowsError, UsageError
from features.plan import MANIFEST, NEXT_MANIFEST, CachePlan, read_plan
from features.preprocess import read_thumbnail
from features.progress import Progress
from features.texts import joined
from features.videos import VideoTable
from pipeline.config import ExtractConfig
from pipeline.dataset import TRAIN, Dataset, read_dataset
from pipeline.devices import auto_precision, choose_device, device_name
from pipeline.int8_gate import int8_record
from pipeline.outcome import Outcome, table
from pipeline.settings import repeated_flags
from pipeline.workspace import Workspace

CPU_BATCH, GPU_BATCH = 32, 256
CPU_ROWS_PER_SHARD, GPU_ROWS_PER_SHARD = 256, 1024
"""Between seconds and half a minute of work: at most this is lost when a process is killed."""

BAD_ROWS_SHOWN = 5

WORTH_A_BAR_BYTES = 1_000_000


def extract(config: ExtractConfig, progress: Progress) -> Outcome:
    """Encode every thumbnail and text that is not in the cache yet.

    Raises
    ------
    UsageError, DataError, StorageError, LockedError, CacheError
        See `pipeline.errors` for what each means and its exit code.
    """
    start = time.monotonic()
    workspace = Workspace(config.work)
    dataset = read_dataset(config, progress)
    kinds = _kinds(config, dataset, progress)
    if len(config.gpus) > 1:
        progress.warn(f"this version encodes on one GPU: {config.gpus[0]} of {', '.join(map(str, config.gpus))}")
    tag = cache_tag(config.model)
    earlier = {videos.split: _earlier_plan(workspace.cache(tag, videos.split)) for videos in dataset.tables}
    encoder = _resolve(config, workspace, next(filter(None, earlier.values()), None), progress)
    kinds = _readable(config, encoder, kinds, progress)
    device = choose_device(config.device, config.gpus)
    measured = int8_record(
        encoder,
        kinds,
        dataset.train,
        precision=config.precision,
        device=device,
        earlier=earlier.values(),
        progress=progress,
    )
    summaries = {}
    for videos in dataset.tables:
        recipe = _recipe(config, encoder, kinds, earlier[videos.split], measured)
        folder = workspace.cache(tag, videos.split)
        summaries[videos.split] = make_cache(folder, videos, recipe, progress, wait_seconds=config.wait_lock)
    seconds = time.monotonic() - start
    for videos in dataset.tables:
        _tell_bad_rows(videos, summaries[videos.split], progress)
    return _outcome(config, encoder, summaries, seconds)


def _earlier_plan(folder: Path) -> CachePlan | None:
    return read_plan(folder / MANIFEST) or read_plan(folder / NEXT_MANIFEST)


def _resolve(
    config: ExtractConfig, workspace: Workspace, earlier: CachePlan | None, progress: Progress
) -> EncoderConfig:
    """The encoder, at the commit that the cache was begun with, whatever the hub offers today."""
    told, announced = 0, 0

    def on_progress(done_bytes: int, total_bytes: int) -> None:
        nonlocal told, announced
        if total_bytes < WORTH_A_BAR_BYTES:  # the small files come first, and the total is not known before
            return
        if total_bytes != announced:
            told, announced = 0, total_bytes
            progress.begin(f"downloading {config.model}", total_bytes, "bytes")
        progress.advance(done_bytes - told)
        told = done_bytes

    encoder = resolve_encoder(
        config.model,
        workspace.models,
        allow_bin_weights=config.allow_bin_weights,
        expected_revision=(earlier.environment.get("revision") or None) if earlier else None,
        on_progress=on_progress,
    )
    progress.end()
    for notice in encoder.notices:
        progress.note(notice)
    return encoder


def _kinds(config: ExtractConfig, dataset: Dataset, progress: Progress) -> list[str]:
    """What to encode: what was asked for, or what the dataset has."""
    there = dataset.encodable
    if not config.modalities:
        if "image" not in there:
            progress.note(f"no thumbnails ({dataset.train.path.parent / TRAIN}/ is not there): text only")
        return there
    unknown = [name for name in config.modalities if name not in {"image", "text"}]
    if unknown:
        raise UsageError(f"--modalities of an encoder are image and text, not {', '.join(unknown)}")
    missing = [name for name in config.modalities if name not in there]
    if missing:
        raise UsageError(f"the dataset in {config.data} has no {', '.join(missing)}; it has {', '.join(there)}")
    return [name for name in there if name in config.modalities]


def _readable(config: ExtractConfig, encoder: EncoderConfig, kinds: Sequence[str], progress: Progress) -> list[str]:
    """Leave out what the encoder does not read, and say so; refuse it if it was asked for."""
    left_out = [kind for kind in kinds if kind not in encoder.dim]
    readable = [kind for kind in kinds if kind in encoder.dim]
    if left_out and (config.modalities or not readable):
        raise UsageError(
            f"{encoder.tag} makes vectors of {' and '.join(encoder.dim)}, not of {' and '.join(left_out)}: choose "
            "another --model or other --modalities"
        )
    if left_out:
        progress.note(f"{encoder.tag} makes vectors of {' and '.join(readable)} only: no {' and '.join(left_out)}")
    return readable


def _recipe(
    config: ExtractConfig,
    encoder: EncoderConfig,
    kinds: Sequence[str],
    earlier: CachePlan | None,
    measured: Mapping[str, str],
) -> Recipe:
    """Options that are left to vp follow the cache, if there is one, so that any machine can go on with it."""
    device = choose_device(config.device, config.gpus)
    on_cpu = device == "cpu"
    precision = str(config.precision)
    if precision == "auto":
        precision = earlier.semantic["precision"] if earlier else auto_precision(device)
    batch_size = config.batch_size or (earlier.batch_size if earlier else CPU_BATCH if on_cpu else GPU_BATCH)
    rows_per_shard = earlier.rows_per_shard if earlier else CPU_ROWS_PER_SHARD if on_cpu else GPU_ROWS_PER_SHARD
    return Recipe(
        semantic={**encoder.semantic(), "precision": precision, "stored_as": "float16"},
        environment={**_environment(encoder, device), **measured},
        dims={kind: encoder.dim[kind] for kind in kinds},
        batch_size=batch_size,
        rows_per_shard=rows_per_shard,
        num_workers=config.num_workers or 1,
        load_encoder=_loader(encoder, device, precision),
        read_thumbnail=partial(read_thumbnail, preprocess=encoder.preprocess),
        read_prompt=partial(joined, characters=encoder.text.characters) if encoder.text else joined,
    )


def _loader(encoder: EncoderConfig, device: str, precision: str) -> Callable[[Sequence[str]], Encoder]:
    def load(kinds: Sequence[str]) -> Encoder:
        from features.families import load_encoder  # noqa: PLC0415 - torch and transformers, only if needed

        return load_encoder(encoder, kinds, device, precision)

    return load


def _environment(encoder: EncoderConfig, device: str) -> dict[str, str]:
    """Where the encoder came from, and what may change the last bits of a vector but not what it means."""
    packages = ("torch", "transformers", "tokenizers", "pillow", "h5py", "numpy")
    origin = {"source": encoder.source, "revision": encoder.revision or "", "device": device_name(device)}
    return origin | {name: version(name) for name in ("vp", *packages)}


def _tell_bad_rows(videos: VideoTable, summary: CacheSummary, progress: Progress) -> None:
    if not summary.bad_rows:
        return
    counts = Counter(bad.status for bad in summary.bad_rows)
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    progress.warn(
        f"{videos.split}: {len(summary.bad_rows)} of {summary.rows} rows have a bad thumbnail or text ({told})"
    )
    for bad in summary.bad_rows[:BAD_ROWS_SHOWN]:
        line = int(videos.line[bad.row])
        progress.note(f"  {videos.path.name} line {line}: id {videos.ids[bad.row]}, {bad.kind} {bad.status}")


def _outcome(
    config: ExtractConfig, encoder: EncoderConfig, summaries: Mapping[str, CacheSummary], seconds: float
) -> Outcome:
    rows = sum(summary.rows for summary in summaries.values())
    bad = sum(len(summary.bad_rows) for summary in summaries.values())
    encoded = sum(summary.vectors_encoded for summary in summaries.values())
    written = sum(summary.shards_written for summary in summaries.values())
    kept = sum(summary.shards_kept for summary in summaries.values())
    kinds = next(iter(summaries.values())).statuses
    rate = encoded / len(kinds) / max(sum(_busy(summary) for summary in summaries.values()), 1e-9)
    lines: list[list[object]] = [["split", "rows", "bad", *kinds, "shards written", "shards kept", "vectors copied"]]
    for split, summary in summaries.items():
        ok = [summary.statuses[kind].get("ok", 0) for kind in kinds]
        kept_or_made = [summary.shards_written, summary.shards_kept, summary.vectors_copied]
        lines.append([split, summary.rows, len(summary.bad_rows), *ok, *kept_or_made])
    facts = {
        "encoder": encoder.tag,
        "rows": rows,
        "bad": bad,
        "rows_per_second": round(rate, 2) if encoded else 0.0,
        "shards_written": written,
        "shards_kept": kept,
        "seconds": round(seconds, 3),
        "splits": {split: _facts(summary) for split, summary in summaries.items()},
    }
    error = None
    if bad > config.max_bad * rows:
        error = TooManyBadRowsError(
            f"{bad} of {rows} rows have a bad thumbnail or text, more than --max-bad {config.max_bad:g} allows. "
            "All vectors are kept: mend the files and run the same command again, or raise --max-bad"
        )
    speed = f", {rate:.1f} videos/s" if encoded else ""
    done = f"{encoder.tag}: {rows} videos in {seconds:.1f} s{speed} -> {config.work / 'embeddings' / encoder.tag}"
    return Outcome([*table(lines), done], facts, f"vp train-heads{repeated_flags(config)}", error)


def _facts(summary: CacheSummary) -> dict[str, Any]:
    return {
        "rows": summary.rows,
        "statuses": {kind: dict(counts) for kind, counts in summary.statuses.items()},
        "texts": dict(summary.notes),
        "vectors_encoded": summary.vectors_encoded,
        "vectors_copied": summary.vectors_copied,
        "seconds": {part: round(seconds, 3) for part, seconds in summary.seconds.items()},
    }


def _busy(summary: CacheSummary) -> float:
    """Seconds from the first row to the last, without loading the encoder."""
    return sum((seconds for part, seconds in summary.seconds.items() if part != "load"), start=0.0)
