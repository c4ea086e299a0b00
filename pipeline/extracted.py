"""What `vp extract` says when it has ended."""

from collections import Counter
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

from features.cache import BadRow, CacheSummary
from features.errors import TooManyBadRowsError
from features.progress import Progress
from features.videos import VideoTable
from pipeline.config import ExtractConfig
from pipeline.outcome import Outcome, table
from pipeline.parts import ChosenPart
from pipeline.settings import repeated_flags

BAD_ROWS_SHOWN = 5
WORTH_TELLING_SECONDS = 0.1


def tell_bad_rows(videos: VideoTable, summary: CacheSummary, progress: Progress) -> None:
    """Name the first rows that have no usable thumbnail or text, and count the rest."""
    if not summary.bad_rows:
        return
    counts = Counter(bad.status for bad in summary.bad_rows)
    told = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    progress.warn(
        f"{videos.split}: {len(summary.bad_rows)} of {summary.rows} rows have a bad thumbnail or text ({told})"
    )
    for bad in _named(videos, summary.bad_rows[:BAD_ROWS_SHOWN]):
        progress.note(f"  {videos.path.name} line {bad['line']}: id {bad['id']}, {bad['kind']} {bad['status']}")
    if (more := len(summary.bad_rows) - BAD_ROWS_SHOWN) > 0:
        progress.note(f"  and {more} more: the same command with --json names them all")


def _named(videos: VideoTable, bad_rows: Sequence[BadRow]) -> list[dict[str, Any]]:
    return [
        {"line": int(videos.line[bad.row]), "id": videos.ids[bad.row], "kind": bad.kind, "status": bad.status}
        for bad in bad_rows
    ]


def outcome(
    config: ExtractConfig,
    tag: str,
    tables: Sequence[VideoTable],
    summaries: Mapping[str, CacheSummary],
    *,
    chosen: ChosenPart,
    seconds: float,
) -> Outcome:
    """Sum up the caches of all splits; too many bad rows are an error, although everything is kept."""
    every = list(summaries.values())
    rows, bad = sum(summary.rows for summary in every), sum(len(summary.bad_rows) for summary in every)
    missing = sum(summary.missing for summary in every)
    rate = _videos_per_second(every)
    facts = {
        "encoder": tag,
        "rows": rows,
        "bad": bad,
        "rows_per_second": round(rate, 2),
        "shards_written": sum(summary.shards_written for summary in every),
        "shards_kept": sum(summary.shards_kept for summary in every),
        "shards_missing": missing,
        "part": f"{chosen.part.number}/{chosen.part.of}",
        "seconds": round(seconds, 3),
        "splits": {videos.split: _facts(videos, summaries[videos.split]) for videos in tables},
    }
    error = None
    made = sum(_rows_made(summary) for summary in every)
    if bad > config.max_bad * made:
        error = TooManyBadRowsError(
            f"{bad} of {made} rows have a bad thumbnail or text, more than --max-bad {config.max_bad:g} allows. "
            "All vectors are kept: mend the files and run the same command again, or raise --max-bad"
        )
    speed = f" ({rate:.1f}/s once the encoder was loaded)" if rate else ""
    lines = [*table(_counts(summaries)), *_waited(summaries)]
    lines.append(f"{tag}: {rows} videos in {seconds:.1f} s{speed} -> {config.work / 'embeddings' / tag}")
    if missing:
        lines.append(f"{chosen.told or 'this part'} is done; {missing} shards of other parts are missing")
    return Outcome(lines, facts, "" if missing else f"vp train-heads{repeated_flags(config)}", error)


def _rows_made(summary: CacheSummary) -> int:
    """Rows that have been looked at so far: all of them, unless other parts are missing."""
    return max((sum(counts.values()) for counts in summary.statuses.values()), default=0)


def _videos_per_second(every: Sequence[CacheSummary]) -> float:
    """The rate at which videos got all their vectors, once encoders were loaded."""
    seconds = sum(summary.timing.busy_seconds for summary in every)
    steady = sum(summary.timing.steady for summary in every)
    return steady / seconds / len(every[0].statuses) if steady > 0 and seconds > 0 else 0.0


def _counts(summaries: Mapping[str, CacheSummary]) -> list[list[object]]:
    kinds = next(iter(summaries.values())).statuses
    rows: list[list[object]] = [["split", "rows", "bad", *kinds, "shards written", "shards kept", "vectors copied"]]
    for split, summary in summaries.items():
        ok = [summary.statuses[kind].get("ok", 0) for kind in kinds]
        kept_or_made = [summary.shards_written, summary.shards_kept, summary.vectors_copied]
        rows.append([split, summary.rows, len(summary.bad_rows), *ok, *kept_or_made])
    return rows


def _waited(summaries: Mapping[str, CacheSummary]) -> list[str]:
    """Where the workers waited, all of them together."""
    waited: dict[str, float] = {}
    for summary in summaries.values():
        for part, seconds in summary.timing.waited.seconds.items():
            waited[part] = waited.get(part, 0.0) + seconds
    most_first = sorted(waited.items(), key=itemgetter(1), reverse=True)
    told = ", ".join(f"{part} {seconds:.1f}" for part, seconds in most_first if seconds >= WORTH_TELLING_SECONDS)
    return [f"seconds that workers waited for: {told}"] if told else []


def _facts(videos: VideoTable, summary: CacheSummary) -> dict[str, Any]:
    return {
        "rows": summary.rows,
        "statuses": {kind: dict(counts) for kind, counts in summary.statuses.items()},
        "texts": dict(summary.notes),
        "vectors_encoded": summary.vectors_encoded,
        "vectors_copied": summary.vectors_copied,
        "timing": summary.timing.to_dict(),
        "bad_rows": _named(videos, summary.bad_rows),
    }
