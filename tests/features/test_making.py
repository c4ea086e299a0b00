"""Missing shards get made, in real processes too: dead workers, poisonous rows, other machines, shared work."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from features.cache import make_cache
from features.errors import CacheError, LockedError
from features.lock import Part, part_lock
from features.making import Timing
from features.progress import Silent
from features.store import EmbeddingStore
from features.supervise import Supervisor
from tests.features.spawned import cut_corner, shard_setup

ROOT = Path(__file__).parents[2]


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self):
        self.done, self.bad, self.notes, self.warnings, self.devices = 0, 0, [], [], set()

    def advance(self, units, *, bad=0, bottleneck="", device=""):
        self.done += units
        self.bad += bad
        self.devices.add(device)

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


def make(world, folder, devices=("cpu",), *, progress=None, part=None, recipe=None, **encoder):
    told = progress or Told()
    with Supervisor(shard_setup(**encoder), devices, patience_seconds=60.0, warn=told.warn) as workers:
        options = {"part": part} if part else {}
        summary = make_cache(folder, world.table(), recipe or world.recipe(), workers, told, **options)
    return summary, told


def names(folder):
    return sorted(path.name for path in folder.glob("*.h5"))


def test_shards_are_the_same_however_many_processes_make_them(cache_world, tmp_path):
    alone, told = make(cache_world, tmp_path / "one")
    _, both = make(cache_world, tmp_path / "two", ("cpu", "cpu"))
    assert names(tmp_path / "one") == names(tmp_path / "two")
    assert told.done == both.done == 44
    assert alone.timing.vectors == {"cpu": 44}
    assert json.loads((tmp_path / "one" / "timing.json").read_text())["vectors"] == {"cpu": 44}


def test_they_are_the_same_as_those_that_are_made_without_a_process(cache_world, fake_encoder, tmp_path):
    make(cache_world, tmp_path / "processes")
    cache_world.make(fake_encoder(), folder=tmp_path / "here", cut=cut_corner)
    assert names(tmp_path / "processes") == names(tmp_path / "here")


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_the_one_picture_that_kills_workers_is_cornered_and_marked(cache_world, tmp_path, devices):
    undisturbed, _ = make(cache_world, tmp_path / "undisturbed")
    summary, told = make(cache_world, tmp_path / "poisoned", devices, grey=10 + 7 * 13)
    assert [(bad.row, bad.kind, bad.status) for bad in summary.bad_rows] == [(13, "image", "worker_crash")]
    assert (told.done, told.bad) == (44, 1)
    assert any("SIGSEGV" in text for text in told.warnings)
    assert told.warnings[-1] == "train_val.csv: encoding the image of id id-013 kills its worker"
    good, poisoned = (EmbeddingStore.open(tmp_path / name).read("image") for name in ("undisturbed", "poisoned"))
    others = np.arange(22) != 13
    assert np.array_equal(good.vectors[others], poisoned.vectors[others])
    assert np.array_equal(good.source_digest, poisoned.source_digest)
    assert not poisoned.vectors[13].any()
    changed = set(names(tmp_path / "undisturbed")) ^ set(names(tmp_path / "poisoned"))
    assert {name[:12] for name in changed} == {"image-000001"}
    assert undisturbed.shards_written == summary.shards_written == 6


def test_a_text_that_kills_workers_is_marked_too_and_later_runs_leave_it_so(cache_world, tmp_path):
    cache_world.rows[21][1] = "a poisonous title"
    cache_world.write()
    summary, told = make(cache_world, tmp_path / "cache", word="poison")
    assert [(bad.row, bad.kind, bad.status) for bad in summary.bad_rows] == [(21, "text", "worker_crash")]
    again, _ = make(cache_world, tmp_path / "cache")
    assert (again.shards_written, again.bad_rows) == (0, summary.bad_rows)
    cache_world.rows[21][1] = "a harmless title"
    cache_world.write()
    mended, _ = make(cache_world, tmp_path / "cache")
    assert (mended.shards_written, mended.bad_rows) == (1, [])
    assert told.done == 44


@pytest.mark.parametrize(
    ("environment", "note"),
    [
        ({"device": "test"}, ""),
        ({"device": "test", "numpy": "9"}, ""),
        ({"device": "another"}, "device: 'another' here, 'test' there"),
        ({"device": "test", "torch": "9"}, "torch: '9' here, '' there"),
    ],
)
def test_in_another_environment_some_vectors_are_made_again_before_more_are_added(
    cache_world, tmp_path, environment, note
):
    folder = tmp_path / "cache"
    make(cache_world, folder)
    before = names(folder)
    (folder / before[0]).unlink()
    (folder / before[4]).unlink()
    summary, told = make(cache_world, folder, recipe=cache_world.recipe(environment=environment))
    assert (names(folder), summary.shards_written) == (before, 2)
    assert [text.partition(";")[0] for text in told.notes] == ([f"{BEGUN} ({note})"] * 2 if note else [])
    assert all("lowest cosine 1.000000" in text for text in told.notes)
    stored = EmbeddingStore.open(folder).plan.environment
    assert stored["device"] == ("test; another" if environment["device"] == "another" else "test")
    (folder / before[0]).unlink()
    _, told = make(cache_world, folder, recipe=cache_world.recipe(environment=environment))
    assert told.notes == []  # it is known now


BEGUN = "the cache was begun in another environment"


def test_vectors_are_compared_where_there_are_some(cache_world, tmp_path):
    """The first rows have no thumbnail: those behind them tell, and a cache without any vector has nothing to tell."""
    folder = tmp_path / "cache"
    recipe = cache_world.recipe(dims={"image": 3})
    elsewhere = cache_world.recipe(dims={"image": 3}, environment={"device": "another"})
    for row in range(10):
        (cache_world.data / "train_val" / f"id-{row:03d}.jpg").unlink()
    make(cache_world, folder, recipe=recipe)
    (folder / names(folder)[2]).unlink()
    with pytest.raises(CacheError, match="4 stored image vectors were made again: lowest cosine 0"):
        make(cache_world, folder, recipe=elsewhere, shift=300.0)
    for name in names(folder)[1:]:
        (folder / name).unlink()
    summary, told = make(cache_world, folder, recipe=elsewhere, shift=300.0)
    assert (summary.shards_kept, summary.shards_written, told.notes) == (1, 2, [])


def test_where_vectors_come_out_otherwise_nothing_is_added(cache_world, tmp_path):
    folder = tmp_path / "cache"
    make(cache_world, folder)
    before = names(folder)
    (folder / before[0]).unlink()
    with pytest.raises(CacheError, match=r"another environment \(device: 'another' here.*lowest cosine 0\.\d+\. Go on"):
        make(cache_world, folder, recipe=cache_world.recipe(environment={"device": "another"}), shift=300.0)
    assert names(folder) == before[1:]


# Parts


def test_two_parts_make_the_whole_and_the_last_one_publishes_it(cache_world, tmp_path):
    make(cache_world, tmp_path / "whole")
    folder = tmp_path / "shared"
    first, _ = make(cache_world, folder, part=Part(1, 2))
    assert (first.shards_written, first.missing) == (4, 2)
    with pytest.raises(CacheError, match=r"incomplete \(4 of 6 shards\)"):
        EmbeddingStore.open(folder)
    second, _ = make(cache_world, folder, part=Part(2, 2))
    assert (second.shards_written, second.missing) == (2, 0)
    assert names(folder) == names(tmp_path / "whole")
    assert EmbeddingStore.open(folder).plan.is_complete
    assert not (folder / "manifest.next.json").exists()


def test_a_part_leaves_the_damaged_shards_of_another_to_that(cache_world, tmp_path):
    folder = tmp_path / "shared"
    make(cache_world, folder)
    before = names(folder)
    for name in before[:2]:
        (folder / name).write_bytes(b"damaged")
    make(cache_world, folder, part=Part(1, 2))
    assert [path.name for path in (folder / "quarantine").iterdir()] == [before[0]]
    make(cache_world, folder, part=Part(2, 2))
    assert sorted(path.name for path in (folder / "quarantine").iterdir()) == before[:2]
    assert names(folder) == before


def test_shards_that_were_made_in_two_folders_can_be_put_together(cache_world, tmp_path):
    make(cache_world, tmp_path / "whole")
    for number in (1, 2):
        make(cache_world, tmp_path / f"machine-{number}", part=Part(number, 2))
    for path in (tmp_path / "machine-2").glob("*.h5"):
        shutil.copy(path, tmp_path / "machine-1")
    merged, told = make(cache_world, tmp_path / "machine-1")
    assert (merged.shards_written, merged.shards_kept, told.done) == (0, 6, 0)
    assert names(tmp_path / "machine-1") == names(tmp_path / "whole")


SHARED = """
import sys
from pathlib import Path
from features.cache import make_cache, Recipe
from features.config import DatasetConfig
from features.lock import Part
from features.progress import Silent
from features.supervise import Supervisor
from features.videos import read_videos
from tests.features.spawned import shard_setup

if __name__ == "__main__":
    data, folder, number = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    recipe = Recipe({"weights": "w", "precision": "fp32"}, {"device": "test"}, {"image": 3, "text": 4}, 4, 8)
    with Supervisor(shard_setup(), ["cpu"], patience_seconds=60.0, warn=print) as workers:
        table = read_videos(DatasetConfig(data=data), "train_val")
        make_cache(folder, table, recipe, workers, Silent(), part=Part(number, 2))
"""


def test_two_processes_that_share_a_folder_make_one_cache_together(cache_world, tmp_path):
    make(cache_world, tmp_path / "whole")
    script, folder = tmp_path / "part.py", tmp_path / "shared"
    script.write_text(SHARED)
    commands = [[sys.executable, str(script), str(cache_world.data), str(folder), str(number)] for number in (1, 2)]
    environment = os.environ | {"PYTHONPATH": "."}
    processes = [subprocess.Popen(command, cwd=ROOT, env=environment) for command in commands]
    assert [process.wait(100) for process in processes] == [0, 0]
    assert names(folder) == names(tmp_path / "whole")
    assert EmbeddingStore.open(folder).plan.is_complete
    assert not list(folder.glob(".tmp-*"))


def test_the_same_part_or_the_whole_cannot_be_made_beside_a_part(cache_world, tmp_path):
    with part_lock(tmp_path / "cache", Part(1, 2)):
        for part in (Part(1, 2), Part(1, 1), Part(3, 4)):
            with pytest.raises(LockedError, match=f"process {os.getpid()} on "):
                make(cache_world, tmp_path / "cache", part=part)
        assert make(cache_world, tmp_path / "cache", part=Part(2, 2))[0].shards_written == 2


# Random moments


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_with_its_workers_at_random_moments_it_ends_in_the_undisturbed_cache(cache_world, tmp_path, kills):
    make(cache_world, tmp_path / "whole")
    script, folder = tmp_path / "part.py", tmp_path / "cache"
    script.write_text(SHARED.replace('["cpu"]', '["cpu", "cpu"]').replace("Part(number, 2)", "Part(1, 1)"))
    command = [sys.executable, str(script), str(cache_world.data), str(folder), "1"]
    environment = os.environ | {"PYTHONPATH": "."}
    rng = np.random.default_rng(1)
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True)
        time.sleep(rng.uniform(0.3, 2.5))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    assert names(folder) == names(tmp_path / "whole")
    assert not list(folder.glob(".tmp-*"))


# Timing


def test_the_bottleneck_is_told_in_words_and_reading_apart_from_decoding():
    timing = Timing()
    timing.waited.add({"decode": 3.0, "encode": 2.0, "load": 99.0})
    timing.feed.add({"read": 1.0, "decode": 5.0})
    assert timing.bottleneck == "decoding thumbnails"
    timing.feed.add({"read": 9.0})
    assert timing.bottleneck == "reading thumbnails"
    timing.waited.add({"encode": 2.0})
    assert timing.bottleneck == "the encoder"


def test_a_rate_is_told_once_there_is_something_to_measure():
    assert Timing().vectors_per_second == 0.0
    assert Timing(busy_seconds=2.0, steady=50).vectors_per_second == 25.0
