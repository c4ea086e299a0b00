"""Predictions that stand for tuned towers: read back as written, refused where they are of something else."""

from dataclasses import replace

import numpy as np
import pytest

from features import durable
from features.config import DatasetConfig
from features.errors import CacheError
from features.videos import read_videos
from pipeline.drawn_dataset import draw_dataset
from pipeline.runs import open_run, seal
from pipeline.tuning.finetuned import TEST_PREDICTIONS, predictions_table, stored_predictions, table_digest, towers_of


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("drawn") / "dataset"
    draw_dataset(root, n_train=48, n_test=6)
    return read_videos(DatasetConfig(data=root), "test")


def columns(fold, n_rows):
    return {
        "log_pred_best": np.arange(n_rows) + fold,
        "log_pred_final": np.arange(n_rows) + fold + 0.5,
        "contribution_image": np.full(n_rows, 1.0 + fold),
        "contribution_age": np.linspace(-1, 1, n_rows),
    }


def run_with(folder, videos, table, **changes):
    durable.publish(folder / TEST_PREDICTIONS, table.to_csv(index=False))
    towers = [{"best": "a", "final": "b"}, {"best": "c", "final": "c"}]
    facts = {"folds": {"n": 2}, "modalities": ["image", "age"], "finetuned_from": {}, "towers": towers}
    seal(folder, {**facts, "test_digest": table_digest(videos), **changes})
    return open_run(folder)


def whole(videos):
    return predictions_table(videos.ids, [columns(fold, len(videos)) for fold in range(2)])


def test_what_was_written_is_read_back_fold_by_fold(tmp_path, videos):
    stored = stored_predictions(run_with(tmp_path / "run", videos, whole(videos)), videos, "final")
    assert stored.log_views.tolist() == [[0.5, 1.5, 2.5, 3.5, 4.5, 5.5], [1.5, 2.5, 3.5, 4.5, 5.5, 6.5]]
    assert stored.effects == [pytest.approx({"image": 1.0, "age": 0.0}), pytest.approx({"image": 2.0, "age": 0.0})]


def test_another_run_has_neither_predictions_nor_towers(tmp_path, videos):
    seal(tmp_path / "run", {"folds": {"n": 2}})
    run = open_run(tmp_path / "run")
    assert stored_predictions(run, videos, "best") is None
    assert towers_of(run, 0, "best") == ""


def test_each_moment_names_its_towers_and_two_may_share_them(tmp_path, videos):
    run = run_with(tmp_path / "run", videos, whole(videos))
    assert [towers_of(run, fold, moment) for fold in range(2) for moment in ("best", "final")] == ["a", "b", "c", "c"]


@pytest.mark.parametrize("changed", ["ids", "text_digest", "year", "published", "channel"])
def test_predictions_of_other_videos_are_refused(tmp_path, videos, changed):
    run = run_with(tmp_path / "run", videos, whole(videos))
    now = getattr(videos, changed)
    other = replace(videos, **{changed: now[::-1] if isinstance(now, list) else now[::-1].copy()})
    with pytest.raises(CacheError, match="has predicted other videos, titles or dates: run `vp finetune` again"):
        stored_predictions(run, other, "best")


def test_a_run_without_test_videos_says_so(tmp_path, videos):
    run = run_with(tmp_path / "run", videos, whole(videos), test_digest=None)
    with pytest.raises(CacheError, match="has predicted no test videos"):
        stored_predictions(run, videos, "best")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda table: table.drop(columns="log_pred_best"), "log_pred_best"),
        (lambda table: table.iloc[1:], "its videos are others"),
        (lambda table: table.assign(log_pred_best=np.inf), "not finite"),
        (lambda table: table.assign(contribution_age="x"), "convert"),
    ],
)
def test_a_table_that_was_changed_with_its_digest_is_damaged(tmp_path, videos, spoil, said):
    run = run_with(tmp_path / "run", videos, spoil(whole(videos)))
    with pytest.raises(CacheError, match=f"is damaged .*{said}.*: run `vp finetune` again"):
        stored_predictions(run, videos, "best")
