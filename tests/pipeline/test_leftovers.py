"""What may be removed is decided before a lock is taken, and the locks cover all of it."""

from pipeline.config import PruneConfig
from pipeline.leftovers import scope_of
from pipeline.workspace import Workspace


def scope(job, **options):
    return scope_of(PruneConfig(**options), Workspace(job.work))


def test_the_locks_are_those_of_every_part_and_every_run_that_changes(job):
    (job.cache / ".part-2-of-3.lock").touch()
    (job.work / "runs" / ".other.building").mkdir()
    names = {lock.relative_to(job.work).as_posix() for lock in scope(job).locks}
    cache = "embeddings/fake/train_val"
    assert names == {f"{cache}/.part-1-of-1.lock", f"{cache}/.part-2-of-3.lock", "runs/.other.lock"}
    assert [lock.name for lock in scope(job, run=("lines",)).locks] == [".lines.lock"]


def test_what_comes_after_the_scope_was_decided_is_not_in_it(job):
    before = scope(job)
    (job.work / "runs" / ".other.building").mkdir()
    assert before.find().items == []
    assert [item.why for item in scope(job).find().items] == ["abandoned run"]


def test_a_manifest_goes_first_and_a_lock_last(job):
    whys = [item.why for item in scope(job, cache=("fake",)).find().items]
    assert (whys[0], whys[-1]) == ("manifest", "lock")


def test_run_json_goes_first(job):
    assert scope(job, run=("lines",)).find().items[0].path == job.run / "run.json"
