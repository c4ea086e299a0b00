"""How much memory there is, as the files of a system that was made up say it; and what follows from that."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from features.errors import UsageError
from pipeline import memory
from pipeline.config import TrainHeadsConfig
from pipeline.inputs import Source
from pipeline.memory import available_bytes, needed_bytes, submission_streams, training_streams
from pipeline.workspace import Workspace

GIB = 2**30
WORKSPACE = Workspace(Path("work"))
SOURCES = [Source("image", "image", "big"), Source("text", "text", "big"), Source("age", "age")]


def made_up(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def kernel(kib):
    return f"MemTotal:       99999999 kB\nMemFree:            1024 kB\nMemAvailable:   {kib} kB\n"


def test_without_a_limit_it_is_what_the_kernel_estimates(tmp_path):
    root = made_up(tmp_path, proc__meminfo=kernel(4096), proc__self__cgroup="0::/\n")
    made_up(root, **{"sys__fs__cgroup__memory.max": "max\n", "sys__fs__cgroup__memory.current": "5\n"})
    assert available_bytes(root) == 4096 * 1024


@pytest.mark.parametrize("own", ["/", "/a", "/a/b", "/never/mounted/here"])
def test_the_narrowest_limit_above_the_process_counts_and_files_that_were_read_count_as_free(tmp_path, own):
    root = made_up(tmp_path, proc__meminfo=kernel(GIB // 1024), proc__self__cgroup=f"0::{own}\n")
    files = {"memory.max": "1000\n", "memory.current": "700\n", "memory.stat": "anon 600\ninactive_file 90\n"}
    made_up(root, **{f"sys__fs__cgroup__{name}": text for name, text in files.items()})
    made_up(root, **{"sys__fs__cgroup__a__memory.max": "400\n", "sys__fs__cgroup__a__memory.current": "150\n"})
    assert available_bytes(root) == (250 if own.startswith("/a") else 390)


def test_limits_of_the_first_version_of_cgroups_count_as_well(tmp_path):
    root = made_up(tmp_path, proc__meminfo=kernel(GIB // 1024), proc__self__cgroup="4:cpu:/x\n3:memory:/x\n0::/\n")
    files = {"limit_in_bytes": "5000\n", "usage_in_bytes": "1000\n", "stat": "inactive_file 1\ntotal_inactive_file 7\n"}
    made_up(root, **{f"sys__fs__cgroup__memory__x__memory.{name}": text for name, text in files.items()})
    assert available_bytes(root) == 4007


def test_more_used_than_allowed_leaves_nothing(tmp_path):
    root = made_up(tmp_path, proc__self__cgroup="0::/\n")
    made_up(root, **{"sys__fs__cgroup__memory.max": "10\n", "sys__fs__cgroup__memory.current": "11\n"})
    assert available_bytes(root) == 0


def test_a_system_that_does_not_tell_is_no_reason_to_stream(tmp_path, monkeypatch):
    assert available_bytes(tmp_path) is None
    there(monkeypatch, needed=10**15, available=None)
    assert not submission_streams(None, Workspace(tmp_path), SOURCES, "test")


def there(monkeypatch, needed, available):
    monkeypatch.setattr(memory, "needed_bytes", lambda *_: needed)
    monkeypatch.setattr(memory, "available_bytes", lambda: available)


def streams(**options):
    sources = [*SOURCES, *([Source("words", "words")] if options.pop("words", False) else [])]
    return training_streams(TrainHeadsConfig(**options), WORKSPACE, sources, ["train_val"])


def test_vectors_of_all_splits_count_as_float32(monkeypatch):
    plans = {"train_val": 100, "test": 10}
    stores = {
        split: {"big": SimpleNamespace(plan=SimpleNamespace(rows=rows, dims={"image": 8, "text": 4}))}
        for split, rows in plans.items()
    }
    monkeypatch.setattr(memory, "open_stores", lambda _workspace, _sources, split: stores[split])
    assert needed_bytes(WORKSPACE, SOURCES, ["train_val", "test"]) == 110 * 12 * 4
    assert needed_bytes(WORKSPACE, SOURCES[2:], ["train_val"]) == 0


def test_they_stay_on_disk_if_they_take_more_than_their_share_of_the_memory(monkeypatch):
    there(monkeypatch, needed=4 * GIB, available=10 * GIB)
    assert not streams(head="linear")
    assert streams(head="linear", stream=True)
    there(monkeypatch, needed=4 * GIB + 1, available=10 * GIB)
    assert streams(head="linear")
    assert not streams(head="linear", stream=False)
    assert submission_streams(None, WORKSPACE, SOURCES, "test")


def test_a_head_that_needs_them_in_memory_says_how_much_that_is_and_which_does_not(monkeypatch):
    there(monkeypatch, needed=5 * GIB, available=10 * GIB)
    with pytest.raises(UsageError) as refused:
        streams(head="mlp")
    assert str(refused.value) == (
        "the vectors take 5.0 GiB in memory, more than 40% of the 10.0 GiB that are available, so they are to be read "
        "shard by shard (--no-stream: in memory), but --head mlp cannot: use --head linear"
    )
    assert not streams(head="mlp", stream=False)


def test_so_does_a_modality(monkeypatch):
    there(monkeypatch, needed=0, available=10 * GIB)
    with pytest.raises(UsageError) as refused:
        streams(head="hybrid", words=True, stream=True)
    assert str(refused.value) == (
        "--stream reads the vectors shard by shard, but --head hybrid cannot: use --head linear; words cannot: leave "
        "them out of --modalities"
    )
