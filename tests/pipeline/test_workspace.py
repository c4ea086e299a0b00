"""The work folder: names that stay inside it, and the caches it holds."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from features.errors import CacheError, UsageError
from pipeline.workspace import Workspace


@pytest.mark.parametrize("name", ["clip_multimodal", "7", "a.b-c_D", "x" * 64, "run.building"])
def test_a_run_has_a_folder_of_its_name(name):
    assert Workspace(Path("work")).run(name) == Path("work/runs") / name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "a/b", "/etc", "a\\b", ".hidden", "-x", "_x", "a b", "a\n", "a\0", "a+b", "é", "x" * 65],
)
def test_a_name_that_is_no_plain_file_name_is_refused_and_shown(name):
    with pytest.raises(UsageError, match="a run's name is made of") as told:
        Workspace(Path("work")).run(name)
    assert str(told.value).endswith(f"not {name!r}")


@settings(deadline=None, derandomize=True, max_examples=50)
@given(st.text("aZ7._-/\\~:\n", max_size=6))
def test_no_name_leads_out_of_the_runs(name):
    runs = Workspace(Path("/work")).runs
    try:
        folder = Workspace(Path("/work")).run(name)
    except UsageError:
        folder = runs / "refused"
    assert folder.parent == runs == folder.resolve().parent
    assert folder.name in {name, "refused"}


def a_cache(work, tag, split="train_val", manifest="manifest.json"):
    folder = work.cache(tag, split)
    folder.mkdir(parents=True)
    (folder / manifest).touch()


def test_caches_are_found_whether_finished_or_not(tmp_path):
    work = Workspace(tmp_path)
    a_cache(work, "b")
    a_cache(work, "a", manifest="manifest.next.json")
    assert work.cache_tags() == ["a", "b"]


def test_a_folder_without_a_cache_of_the_training_videos_is_none(tmp_path):
    work = Workspace(tmp_path)
    assert work.cache_tags() == []
    a_cache(work, "test-only", split="test")
    a_cache(work, "shards-only", manifest="image-000000.0123456789abcdef.h5")
    (work.embeddings / "empty").mkdir()
    (work.embeddings / "file").touch()
    assert work.cache_tags() == []


def test_the_only_cache_is_taken(tmp_path):
    work = Workspace(tmp_path)
    a_cache(work, "tiny")
    a_cache(work, "other", split="test")
    assert work.only_cache() == "tiny"


def test_without_a_cache_the_first_command_is_named(tmp_path):
    with pytest.raises(CacheError, match="vp extract"):
        Workspace(tmp_path).only_cache()


def test_of_several_caches_the_user_chooses(tmp_path):
    work = Workspace(tmp_path)
    a_cache(work, "tiny")
    a_cache(work, "ViT-L-14", manifest="manifest.next.json")
    with pytest.raises(UsageError, match=r"choose with --model, one of ViT-L-14, tiny$"):
        work.only_cache()


def test_every_folder_of_a_cache_is_listed_the_training_videos_first(tmp_path):
    for name in ("b/train_val", "a/test", "a/train_val", ".hidden/test", "a/.trash"):
        (tmp_path / "embeddings" / name).mkdir(parents=True)
    (tmp_path / "embeddings" / "a" / "file").write_text("x")
    found = [path.relative_to(tmp_path / "embeddings").as_posix() for path in Workspace(tmp_path).cache_folders()]
    assert found == ["a/train_val", "a/test", "b/train_val"]
    assert Workspace(tmp_path / "elsewhere").cache_folders() == []
