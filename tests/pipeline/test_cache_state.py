"""The state of a cache in one word, and the facts behind it."""

import json

import pytest

from features.plan import MANIFEST, NEXT_MANIFEST
from features.progress import Silent
from pipeline.cache_state import cache_state
from pipeline.config import StatusConfig


def spoil(job, how):
    if how == "damaged":
        job.shards("image")[0].unlink()
    elif how == "without a manifest":
        (job.cache / MANIFEST).unlink()
    elif how == "unfinished":
        (job.cache / MANIFEST).rename(job.cache / NEXT_MANIFEST)
    elif how == "touched":
        job.world.paint("id-000", 50)
    elif how == "stale":
        job.world.rows.pop()
        job.world.write()


@pytest.mark.parametrize(
    ("how", "word", "is_readable"),
    [
        ("", "fresh", True),
        ("damaged", "damaged", False),
        ("without a manifest", "damaged", False),
        ("unfinished", "unfinished", True),
        ("touched", "touched", True),
        ("stale", "stale", True),
    ],
)
def test_the_word_tells_what_is_wrong_most(job, how, word, is_readable):
    spoil(job, how)
    found = cache_state(StatusConfig(), job.cache, job.world.table(), Silent())
    assert (found.word, found.is_readable) == (word, is_readable)
    assert json.loads(json.dumps(found.facts))["state"] == word


def test_without_a_table_nothing_is_compared(job):
    found = cache_state(StatusConfig(), job.cache, None, Silent())
    assert (found.word, found.facts["against_dataset"]) == ("not compared", None)


def test_the_facts_count_what_is_not_ok(job):
    found = cache_state(StatusConfig(), job.cache, None, Silent())
    assert found.bad == {"image": {}, "text": {}}
    assert found.facts["statuses"] == {"image": {"ok": 22}, "text": {"ok": 22}}
