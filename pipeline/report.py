"""`vp report`: a run -> one page that a client can read, and the same numbers as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features import durable
from features.errors import CacheError, UsageError
from features.progress import Progress
from heads.targets import Target
from pipeline.config import ReportConfig
from pipeline.outcome import Outcome, table
from pipeline.outputs import check_companion, check_output
from pipeline.reporting.caches import find_caches
from pipeline.reporting.cases import extremes
from pipeline.reporting.numbers import numbers_of
from pipeline.reporting.page import page
from pipeline.reporting.pictures import pictures_of
from pipeline.reporting.sources import Notices, find_videos, read_run_files
from pipeline.reporting.words import NBSP, Words
from pipeline.run_record import open_whole_run
from pipeline.runs import Run, only_run, open_run
from pipeline.workspace import Workspace

FORMAT = "vp-report"
SCHEMA = 1
PAGE = "report.html"


def report(config: ReportConfig, progress: Progress) -> Outcome:
    """Write the page and its numbers into the run's folder, or to `--out` and beside it.

    What a run's dataset and caches no longer give is left out, told and said on the page.

    Raises
    ------
    UsageError, CacheError, StorageError
        There are several runs, or none; a file of the run is missing or changed; the page cannot be written.
    """
    workspace = Workspace(config.work)
    run = open_whole_run(workspace.run(config.run or only_run(workspace.runs)))
    path = _page_path(config, run)
    files, notices = read_run_files(run), Notices(progress)
    videos = find_videos(config, files, notices)
    caches = find_caches(workspace, files, notices)
    cases = extremes(files, videos, caches, notices)
    pictures = pictures_of(cases, videos, notices)
    numbers = {"format": FORMAT, "schema": SCHEMA, **numbers_of(files, videos)}
    numbers |= {"extremes": cases, "caches": [dict(cache.facts) for cache in caches], "notices": notices.texts}
    html = page(numbers, pictures)
    _check_unchanged(run)
    durable.remove_leftovers(path.parent)
    durable.publish(path, html)
    durable.publish(path.with_suffix(".json"), json.dumps(numbers, indent=1) + "\n")
    return _outcome(path, numbers, html)


def _page_path(config: ReportConfig, run: Run) -> Path:
    default = run.folder / PAGE
    path = config.out or default
    if path.suffix == ".json" or path.is_dir():
        raise UsageError(f"--out takes the file of the page, such as report.html, however: {path}")
    if path != default:
        for written in (path, path.with_suffix(".json")):
            check_output(written, config, Workspace(config.work))
        check_companion(path.with_suffix(".json"), FORMAT)
    return path


def _check_unchanged(run: Run) -> None:
    """The run may have been trained again meanwhile: a page of the old one must not stand beside the new one."""
    if open_run(run.folder).record != run.record:
        raise CacheError(f"run {run.name} was trained again while its report was made: run `vp report` again")


def _outcome(path: Path, numbers: Mapping[str, Any], html: str) -> Outcome:
    score, words = numbers["score"], Words(Target(numbers["run"]["target"]))
    final = score["final"]
    lines = [["typical error, out of fold", words.typical(final["rmse"])]]
    lines.append(["the same for a constant", words.typical(score["constant"]["rmse"])])
    if words.is_count:
        lines.append(["within a factor of 2", f"{100 * final['share_within_factor_2']:.0f} %"])
    lines.append(["rank correlation", f"{final['spearman']:.2f}"])
    facts = {"run": numbers["run"]["name"], "path": str(path), "json": str(path.with_suffix(".json"))}
    facts |= {"bytes": len(html.encode()), "score": score, "notices": numbers["notices"]}
    lines = [[name, told.replace(NBSP, " ")] for name, told in lines]
    return Outcome([*table(lines), "", f"{numbers['run']['name']}: report in {path}"], facts)
