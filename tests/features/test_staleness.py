"""How far a cache is from its dataset: by id, never by position, and exact where contents are compared."""

import os
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features import staleness as staleness_module
from features.inspection import inspect
from features.progress import Silent
from features.staleness import compare
from features.status import Status


@pytest.fixture
def whole(cache_world, fake_encoder):
    cache_world.make(fake_encoder())
    return cache_world


def staleness(world, *, contents=False):
    found = inspect(world.folder)
    return compare(found.plan, found.shards, world.table(), Silent(), contents=contents)


def counts(world, **options):
    return {name: count for name, count in staleness(world, **options).counts.items() if count}


@pytest.mark.parametrize("contents", [False, True])
def test_a_cache_of_the_dataset_as_it_is_is_fresh(whole, contents):
    found = staleness(whole, contents=contents)
    assert found.is_fresh
    assert found.told == []


def test_a_fresh_cache_is_known_without_its_shards(whole):
    assert compare(inspect(whole.folder).plan, {}, whole.table(), Silent()).is_fresh


def test_a_row_that_was_appended_is_added(whole):
    whole.rows.append(["id-new", "a new one", 5, 2020])
    whole.write()
    found = staleness(whole)
    assert {name: n for name, n in found.counts.items() if n} == {"added": 1}
    assert found.told == ["1 row of the dataset not in the cache ('id-new')"]


def test_a_row_that_was_removed_is_gone_and_those_behind_it_have_moved(whole):
    del whole.rows[3]
    whole.write()
    found = staleness(whole, contents=True)
    assert {name: n for name, n in found.counts.items() if n} == {"gone": 1, "moved": 18}
    assert found.gone.first == ["id-003"]


def test_a_title_that_changed_counts_once_however_many_vectors_are_made_of_texts(cache_world, fake_encoder):
    cache_world.make(fake_encoder(), dims={"image": 3, "title": 4, "description": 4})
    assert staleness(cache_world).is_fresh
    cache_world.rows[2][1] = "another title"
    cache_world.write()
    assert counts(cache_world) == {"texts": 1}


def test_rows_in_another_order_have_moved_and_nothing_else(whole):
    whole.rows.reverse()
    whole.write()
    assert counts(whole) == {"moved": 22}
    assert counts(whole, contents=True) == {"moved": 22}


def test_a_text_that_changed_is_found_by_its_row(whole):
    whole.rows[9][1] = "another title"
    whole.write()
    found = staleness(whole)
    assert (found.counts["texts"], found.texts.first) == (1, ["id-009"])
    assert {name for name, n in found.counts.items() if n} == {"texts"}


def test_a_thumbnail_that_changed_touches_its_shard_and_is_found_by_its_content(whole):
    whole.paint("id-009", 77)
    assert counts(whole) == {"touched": 8}
    assert staleness(whole).is_only_touched
    found = staleness(whole, contents=True)
    assert (found.counts["thumbnails"], found.thumbnails.first) == (1, ["id-009"])


def test_a_thumbnail_that_was_only_written_again_is_no_change_of_content(whole):
    os.utime(whole.data / "train_val" / "id-009.jpg", (1, 1))
    assert counts(whole) == {"touched": 8}
    assert counts(whole, contents=True) == {}


def test_a_thumbnail_that_vanished_is_another_content(whole):
    (whole.data / "train_val" / "id-000.jpg").unlink()
    assert counts(whole, contents=True) == {"thumbnails": 1}


def test_a_thumbnail_of_a_row_that_moved_is_still_compared(whole):
    whole.rows.reverse()
    whole.write()
    whole.paint("id-009", 77)
    assert counts(whole, contents=True) == {"moved": 22, "thumbnails": 1}


def test_a_fifo_in_place_of_a_thumbnail_does_not_block(whole):
    path = whole.data / "train_val" / "id-000.jpg"
    path.unlink()
    os.mkfifo(path)
    assert counts(whole, contents=True) == {"thumbnails": 1}


def test_what_an_unreadable_shard_holds_is_unknown_and_not_news(whole):
    for path in whole.folder.glob("*-000001.*.h5"):
        path.unlink()
    del whole.rows[0]
    whole.write()
    assert counts(whole) == {"gone": 1, "moved": 13, "unknown": 8, "touched": 7}


def test_a_shard_of_one_kind_tells_the_rows_of_the_other(whole):
    next(whole.folder.glob("image-000001.*.h5")).unlink()
    del whole.rows[0]
    whole.write()
    assert counts(whole, contents=True) == {"gone": 1, "moved": 21}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(order=st.lists(st.integers(0, 29), unique=True, min_size=1), retitled=st.sets(st.integers(0, 21)))
def test_any_edit_of_the_table_is_counted_as_a_slow_comparison_counts_it(whole, tmp_path, order, retitled):
    before = [list(row) for row in whole.rows]
    known = {row[0]: row for row in before}
    rows = []
    for number in order:
        if number < len(before):
            id_, title, *rest = before[number]
            rows.append([id_, title + " again" if number in retitled else title, *rest])
        else:
            rows.append([f"new-{number}", "a new one", 1, 2020])
    whole.rows = rows
    whole.write()
    found = staleness(whole).counts
    whole.rows = before
    ids = [row[0] for row in rows]
    assert found["added"] == sum(id_ not in known for id_ in ids)
    assert found["gone"] == sum(id_ not in ids for id_ in known)
    assert found["moved"] == sum(id_ in known and before.index(known[id_]) != at for at, id_ in enumerate(ids))
    assert found["texts"] == sum(row[0] in known and known[row[0]][1] != row[1] for row in rows)
    assert found["unknown"] == 0


def test_a_thumbnail_that_cannot_be_read_any_more_may_be_as_it_was(whole, monkeypatch):
    """As one whose permissions were taken away; the cache was made when it could be read."""
    unreadable = whole.table().thumbnail(9)
    real = staleness_module.read_source
    monkeypatch.setattr(
        staleness_module, "read_source", lambda source: Status.UNREADABLE if source == unreadable else real(source)
    )
    found = staleness(whole, contents=True)
    assert (found.counts["thumbnails"], found.counts["unreadable"], found.told) == (0, 1, [])
    assert found.unreadable_told == "1 row whose thumbnail cannot be read any more ('id-009')"


def test_a_dataset_without_its_thumbnails_is_told(whole):
    shutil.rmtree(whole.data / "train_val")
    assert counts(whole, contents=True) == {"thumbnails": 22}
