"""What a run keeps of its out-of-fold predictions, read back, and when two runs can be compared."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import CacheError
from pipeline.oof import NotComparableError, SavedOutOfFold, other_folds, read_oof, side_by_side
from pipeline.runs import building, open_run, seal

HEADER = "id,fold,log_views,log_pred_best,log_pred_final"


def saved(run, ids, fold_of, log_views, shift=0.0):
    views = np.array(log_views, dtype=np.float64)
    return SavedOutOfFold(
        run=run,
        ids=list(ids),
        fold_of=np.array(fold_of, dtype=np.int32),
        log_views=views,
        best=views + shift,
        final=views - shift,
        modalities=["age"],
        contributions=views[None] / 2,
    )


def write(folder, text):
    with building(folder) as aside:
        (aside / "oof.csv").write_text(text, encoding="utf-8", newline="")
        seal(aside, {})
    return open_run(folder)


def test_every_cell_is_read_as_it_was_written(tmp_path):
    text = f'{HEADER},contribution_image@ViT-B-32,contribution_age\nNA,1,0.1,2.5,3.5,-1.25,0.5\n"a,\n""b",-1,7.0,,,,\n'
    oof = read_oof(write(tmp_path / "run", text))
    assert (oof.run, oof.ids, oof.fold_of.tolist()) == ("run", ["NA", 'a,\n"b'], [1, -1])
    assert oof.log_views.tolist() == [0.1, 7.0]
    assert (oof.at("best")[0], oof.at("final")[0]) == (2.5, 3.5)
    assert np.isnan([oof.best[1], oof.final[1], *oof.contributions[:, 1]]).all()
    assert oof.validated.tolist() == [True, False]
    assert oof.contribution("image@ViT-B-32")[0] == -1.25
    assert oof.contribution("channel").tolist() == [0.0, 0.0]


def test_a_table_that_is_not_of_this_version_is_refused(tmp_path):
    with pytest.raises(
        CacheError, match=r"lacks the columns log_pred_best, log_pred_final.*run `vp train-heads --name run`"
    ):
        read_oof(write(tmp_path / "run", "id,fold,log_views\na,0,1.0\n"))


def test_a_table_that_was_edited_is_refused(tmp_path):
    run = write(tmp_path / "run", f"{HEADER}\na,0,1.0,1.0,1.0\n")
    (run.folder / "oof.csv").write_text(f"{HEADER}\na,0,1.0,1.5,1.0\n")
    with pytest.raises(CacheError, match="is not the file that the run was saved with"):
        read_oof(run)


@given(st.permutations(range(6)))
@settings(max_examples=30, deadline=None)
def test_rows_stand_side_by_side_whatever_their_order(order):
    ids, views, folds = list("abcdef"), np.arange(6.0), [0, 1, 2, 0, -1, 1]
    turned = saved("two", [ids[row] for row in order], [folds[row] for row in order], views[list(order)], 1.0)
    one, two = side_by_side([saved("one", ids, folds, views), turned])
    assert one.ids == two.ids == list("abcdf")
    np.testing.assert_array_equal(one.log_views, two.log_views)
    np.testing.assert_array_equal(two.best, one.best + 1)
    np.testing.assert_array_equal(two.contributions, one.contributions)
    assert not other_folds(one, two)


def test_rows_in_other_folds_are_counted():
    one, two = side_by_side([saved("one", "abc", [0, 1, 0], [1, 2, 3]), saved("two", "abc", [0, 0, 1], [1, 2, 3])])
    assert other_folds(one, two) == "2 of 3 rows are in another fold (first: b)"


def test_everything_that_differs_is_told_at_once():
    one, two = (
        saved("one", "abcx", [0, 1, 0, 1], [1, 2, 3, 4]),
        saved("two", "abcyz", [0, 1, -1, 0, 1], [1, 5, 3, 4, 4]),
    )
    with pytest.raises(NotComparableError) as told:
        side_by_side([one, two])
    assert str(told.value) == (
        "runs one and two cannot be compared: 1 videos are only in one (first: x); "
        "2 videos are only in two (first: y); 1 videos have other views (first: b); "
        "1 videos have a fold in one run and none in the other (first: c); "
        "train both on the same dataset, with the same --split, --folds and --target"
    )
