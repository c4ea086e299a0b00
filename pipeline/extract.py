"""`vp extract`: dataset -> cache of embeddings, one folder per encoder and split."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

from features.cache import Recipe, make_cache
from features.embed import Encoder
from features.encoders import EncoderConfig, cache_tag, resolve_encoder
from features.errors import UsageError
from features.families import load_encoder
from features.kinds import IMAGE, SEPARATE, TEXT, tower_of, towers_of
from features.plan import MANIFEST, NEXT_MANIFEST, CachePlan, read_plan, several
from features.preprocess import cut_thumbnail
from features.progress import Progress
from features.shard_worker import Made, ShardJob, ShardSetup
from features.supervise import Supervisor
from features.texts import joined
from pipeline.config import ExtractConfig
from pipeline.dataset import TRAIN, Dataset, read_dataset
from pipeline.devices import auto_precision, choose_devices, cores, device_name
from pipeline.extracted import outcome, tell_bad_rows
from pipeline.int8_gate import INT8, int8_record
from pipeline.outcome import Outcome
from pipeline.parts import choose_part, own_devices
from pipeline.workspace import Workspace

CPU_BATCH, GPU_BATCH = 32, 256
CPU_ROWS_PER_SHARD, GPU_ROWS_PER_SHARD = 256, 4096
"""Between seconds and half a minute of work: at most this is lost when a process is killed."""

WORTH_A_BAR_BYTES = 1_000_000

CORES_PER_FEED_THREAD = 16
"""On a CPU: one thread decodes as fast as so many cores encode with the smallest of the usual encoders."""
MAX_FEED_THREADS = 32
GPU_BATCHES_IN_FLIGHT = 2


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
    devices = _devices(config)
    chosen = choose_part(config.shard_index, config.num_shards, os.environ)
    if chosen.told:
        progress.note(chosen.told)
    tag = cache_tag(config.model)
    folders = {videos.split: workspace.cache(tag, videos.split) for videos in dataset.tables}
    earlier = next(filter(None, map(_earlier_plan, folders.values())), None)
    encoder = _resolve(config, workspace, earlier, progress)
    kinds = _readable(config, encoder, kinds, progress)
    recipe = _recipe(config, encoder, {kind: encoder.dim[tower_of(kind)] for kind in kinds}, earlier, devices)
    if recipe.semantic["precision"] == INT8:
        measured = int8_record(
            encoder, towers_of(kinds), dataset.train, device=devices[0], earlier=earlier, progress=progress
        )
        recipe = replace(recipe, environment={**recipe.environment, **measured})
    summaries = {}
    with _workers(config, encoder, recipe, devices, progress) as workers:
        for videos in dataset.tables:
            summaries[videos.split] = make_cache(
                folders[videos.split],
                videos,
                recipe,
                workers,
                progress,
                part=chosen.part,
                wait_seconds=config.wait_lock,
            )
    seconds = time.monotonic() - start
    for videos in dataset.tables:
        tell_bad_rows(videos, summaries[videos.split], progress)
    return outcome(config, encoder.tag, dataset.tables, summaries, chosen=chosen, seconds=seconds)


def _devices(config: ExtractConfig) -> list[str]:
    """One name for each process."""
    devices = choose_devices(config.device, config.gpus)
    if config.num_shards != ExtractConfig.num_shards and config.shard_index is None and not config.gpus:
        devices = own_devices(devices, os.environ)
    if config.workers is None:
        return devices
    if devices != ["cpu"]:
        raise UsageError("--workers is for the CPU; on GPUs there is one process for each (add --device cpu)")
    return devices * config.workers


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
    there = dataset.encodable(separate=config.text == "separate")
    if not config.modalities:
        if IMAGE not in there:
            progress.note(f"no thumbnails ({dataset.train.path.parent / TRAIN}/ is not there): text only")
        return there
    possible = (IMAGE, *SEPARATE) if config.text == "separate" else (IMAGE, TEXT)
    unknown = [name for name in config.modalities if name not in possible]
    if unknown:
        raise UsageError(
            f"--modalities of an encoder are {', '.join(possible)} with --text {config.text}, not {', '.join(unknown)}"
        )
    missing = [name for name in config.modalities if name not in there]
    if missing:
        raise UsageError(f"the dataset in {config.data} has no {', '.join(missing)}; it has {', '.join(there)}")
    return [name for name in there if name in config.modalities]


def _readable(config: ExtractConfig, encoder: EncoderConfig, kinds: Sequence[str], progress: Progress) -> list[str]:
    """Leave out what the encoder does not read, and say so; refuse it if it was asked for."""
    left_out = [kind for kind in kinds if tower_of(kind) not in encoder.dim]
    readable = [kind for kind in kinds if tower_of(kind) in encoder.dim]
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
    dims: Mapping[str, int],
    earlier: CachePlan | None,
    devices: Sequence[str],
) -> Recipe:
    """Options that are left to vp follow the cache, if there is one, so that any machine can go on with it."""
    on_cpu = devices[0] == "cpu"
    precision = str(config.precision)
    if precision == "auto":
        precision = earlier.semantic["precision"] if earlier else auto_precision(devices)
    return Recipe(
        semantic={**encoder.semantic(), "precision": precision, "stored_as": "float16"},
        environment=_environment(encoder, devices) | ({"compile": "image tower"} if config.compile else {}),
        dims=dims,
        batch_size=config.batch_size or (earlier.batch_size if earlier else CPU_BATCH if on_cpu else GPU_BATCH),
        rows_per_shard=earlier.rows_per_shard if earlier else CPU_ROWS_PER_SHARD if on_cpu else GPU_ROWS_PER_SHARD,
    )


def _workers(
    config: ExtractConfig, encoder: EncoderConfig, recipe: Recipe, devices: Sequence[str], progress: Progress
) -> Supervisor[ShardJob, Made]:
    """One process per device; the cores are shared out so that no thread waits for another's core."""
    on_cpu = devices[0] == "cpu"
    cores_each = max(1, cores() // len(devices))
    feed_threads = 1 + cores_each // CORES_PER_FEED_THREAD if on_cpu else max(1, cores_each - 1)
    setup = ShardSetup(
        load_encoder=partial(_load_encoder, encoder, str(recipe.semantic["precision"]), config.compile),
        cut=partial(cut_thumbnail, preprocess=encoder.preprocess),
        read_prompt=encoder.text.prompt if encoder.text else joined,
        batch_size=recipe.batch_size,
        in_flight=1 if on_cpu else GPU_BATCHES_IN_FLIGHT,
        feed_threads=config.num_workers or min(feed_threads, MAX_FEED_THREADS),
        compute_threads=cores_each if on_cpu else 1,
    )
    return Supervisor(setup, devices, patience_seconds=config.worker_timeout, warn=progress.warn)


def _load_encoder(encoder: EncoderConfig, precision: str, compiled: bool, tower: str, device: str) -> Encoder:
    """Load one tower; called in the processes that encode."""
    return load_encoder(encoder, [tower], device, precision, compiled=compiled)


def _environment(encoder: EncoderConfig, devices: Sequence[str]) -> dict[str, str]:
    """Where the encoder came from, and what may change the last bits of a vector but not what it means."""
    packages = ("torch", "transformers", "tokenizers", "pillow", "h5py", "numpy")
    origin = {
        "source": encoder.source,
        "revision": encoder.revision or "",
        "device": several(map(device_name, devices)),
    }
    return origin | {name: version(name) for name in ("vp", *packages)}
