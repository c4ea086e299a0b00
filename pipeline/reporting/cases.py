"""Single videos: those that a run misjudges most, why, and which training videos look or read like them."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int64

from features.errors import DataError
from features.texts import without_surrogates
from features.videos import VideoText
from pipeline.reporting.caches import Cache
from pipeline.reporting.neighbours import nearest
from pipeline.reporting.sources import Notices, RunFiles, Videos

SHOWN_EACH_WAY = 5
WITH_NEIGHBOURS = 2
NEIGHBOURS = 3


def extremes(
    files: RunFiles, videos: Videos | None, caches: Sequence[Cache], notices: Notices
) -> dict[str, list[dict[str, Any]]]:
    """The largest over- and under-predictions of best, worst first; the first of each with their neighbours.

    `video` is a row of `oof.csv`; contributions and errors are in log units.
    """
    over, under = misjudged(files)
    texts = _Texts(videos, notices)
    cases = {
        way: [_case(files, videos, texts, video) for video in rows] for way, rows in (("over", over), ("under", under))
    }
    asked = np.array([*over[:WITH_NEIGHBOURS], *under[:WITH_NEIGHBOURS]], dtype=np.int64)
    found = dict(zip(asked.tolist(), _neighbours(files, videos, caches, texts, asked), strict=True))
    for case in (case for way in cases.values() for case in way):
        case["neighbours"] = found.get(case["video"], {})
    return cases


def misjudged(files: RunFiles) -> tuple[list[int], list[int]]:
    """Rows that the best predictions put farthest above, and farthest below, their truth."""
    errors = np.where(files.oof.validated, files.oof.best - files.oof.log_views, 0.0)
    order = np.argsort(errors, kind="stable")
    over = [int(row) for row in order[::-1][:SHOWN_EACH_WAY] if errors[row] > 0]
    return over, [int(row) for row in order[:SHOWN_EACH_WAY] if errors[row] < 0]


class _Texts:
    """Titles, read row by row; a dataset that changes meanwhile is told once."""

    def __init__(self, videos: Videos | None, notices: Notices) -> None:
        self._videos, self._notices, self._told = videos, notices, False

    def title(self, video: int) -> str:
        text: VideoText | None = None
        try:
            text = None if self._videos is None else self._videos.text(video)
        except DataError as error:
            if not self._told:
                self._notices("Titles could not be read: the dataset has changed meanwhile.", error)
            self._told = True
        return "" if text is None else without_surrogates(text.title)


def _case(files: RunFiles, videos: Videos | None, texts: _Texts, video: int) -> dict[str, Any]:
    oof = files.oof
    contributions = dict(zip(oof.modalities, oof.contributions[:, video].tolist(), strict=True))
    return _video(files, videos, texts, video) | {
        "fold": int(oof.fold_of[video]),
        "log_pred": float(oof.best[video]),
        "error": float(oof.best[video] - oof.log_views[video]),
        "baseline": float(oof.best[video] - oof.contributions[:, video].sum()),
        "contributions": contributions,
    }


def _video(files: RunFiles, videos: Videos | None, texts: _Texts, video: int) -> dict[str, Any]:
    known = videos is not None and videos.row_of[video] >= 0
    return {
        "video": video,
        "id": files.oof.ids[video],
        "title": texts.title(video),
        "channel": videos.table.channel[videos.row_of[video]] if videos is not None and known else "",
        "published": videos.published(video) if videos is not None else "",
        "log_views": float(files.oof.log_views[video]),
    }


def _neighbours(
    files: RunFiles,
    videos: Videos | None,
    caches: Sequence[Cache],
    texts: _Texts,
    asked: Int64[np.ndarray, " query"],
) -> Iterable[dict[str, list[dict[str, Any]]]]:
    """For each video asked for: modality -> its nearest training videos."""
    answers: list[dict[str, list[dict[str, Any]]]] = [{} for _ in asked]
    by_tag = {cache.tag: cache for cache in caches}
    for source in files.sources:
        cache = by_tag.get(source.tag)
        if cache is None or not len(asked):
            continue
        found = nearest(cache, source.kind, files.plan, asked, NEIGHBOURS)
        for answer, neighbours in zip(answers, found, strict=True):
            if neighbours:
                answer[source.modality] = [
                    _video(files, videos, texts, other) | {"cosine": cosine} for other, cosine in neighbours
                ]
    return answers
