"""What `vp status` tells: true, complete, without a lock, and with the command that comes next."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cli
from features.config import DatasetConfig
from features.lock import writer_lock
from features.videos import read_videos
from pipeline.config import StatusConfig
from pipeline.status import status
from pipeline.tuning.finetuned import table_digest
from tests.command_line import vp


def facts(*arguments):
    result = vp("status", "--json", *arguments)
    return json.loads(result.stdout.strip().splitlines()[-1])


def in_kilobytes(folder):
    return f"{sum(path.stat().st_size for path in folder.iterdir()) / 1000:.1f} kB"


def test_a_healthy_work_folder_is_told_in_two_tables(job):
    score = json.loads((job.run / "metrics.json").read_text())["oof_msle"]
    result = vp("status")
    size = in_kilobytes(job.cache)
    assert result.stdout == (
        "work; the dataset dataset has train_val 22 videos\n"
        "\n"
        "cache           rows          vectors  precision  shards  on disk  state\n"
        f"fake/train_val    22  image 3, text 4       fp32     6/6  {size}  fresh\n"
        "\n"
        "run      head        modalities    folds  rows  OOF MSLE  state\n"
        f"lines  linear  image, text, age  3 kfold    22    {score:.4f}  whole\n"
    )
    assert result.exit_code == 0


def test_a_broken_work_folder_is_told_with_what_mends_it(job):
    job.shards("text")[1].unlink()
    (job.cache / "notes.txt").write_text("mine")
    (job.cache / "image-000000.0123456789abcdef.h5").write_bytes(bytes(2500))
    (job.run / "oof.csv").unlink()
    score = json.loads((job.run / "metrics.json").read_text())["oof_msle"]
    name, size = "text-000001.", in_kilobytes(job.cache)
    name = next(part["file"] for part in manifest(job)["shards"] if part["file"].startswith(name))
    job.world.rows[0][1] = "another title"
    job.world.write()
    result = vp("status")
    assert result.stdout == (
        "work; the dataset dataset has train_val 22 videos\n"
        "\n"
        "cache           rows          vectors  precision  shards  on disk    state\n"
        f"fake/train_val    22  image 3, text 4       fp32     5/6  {size}  damaged\n"
        "\n"
        "fake/train_val\n"
        f"  shards missing or unreadable: 1 ({name})\n"
        "  1 row with another text now ('id-000')\n"
        "  `vp extract --model PATH/TO/fake` mends this\n"
        "  leftovers of 2.5 kB (superseded shard 1): `vp prune` lists them\n"
        "  not written by vp: notes.txt\n"
        "\n"
        "run      head        modalities    folds  rows  OOF MSLE    state\n"
        f"lines  linear  image, text, age  3 kfold    22    {score:.4f}  damaged\n"
        "\n"
        "lines\n"
        "  files missing: 1 (oof.csv)\n"
        "  `vp train-heads --name lines --model fake --no-diagnostics --head linear --no-search` makes it again\n"
    )
    assert result.exit_code == 7
    assert "error: cannot be used as they are: cache fake/train_val, run lines" in result.stderr


def manifest(job):
    return json.loads((job.cache / "manifest.json").read_text())


def test_an_empty_work_folder_names_the_command_that_starts(job, tmp_path):
    result = vp("status", "--work", "elsewhere")
    assert result.stdout == "elsewhere holds no embeddings and no runs yet\n"
    assert "next: vp extract --work elsewhere" in result.stderr
    assert "next: vp demo" in vp("status", "--work", "elsewhere", "--data", "nowhere").stderr
    assert not Path("elsewhere").exists()


def test_nothing_is_written_and_no_lock_is_taken(job):
    before = {path: path.stat().st_mtime_ns for path in job.work.rglob("*")}
    with writer_lock(job.cache / ".part-1-of-1.lock"):
        held = facts()
    assert held["caches"][0]["writers"][0]["lock"] == ".part-1-of-1.lock"
    vp("status", "--hash")
    after = {path: path.stat().st_mtime_ns for path in job.work.rglob("*")}
    folder = {job.cache: 0}  # the holder of the lock wrote into it
    assert after | folder == before | folder


def test_without_a_dataset_caches_are_not_compared(job, told):
    config = StatusConfig(data=Path("nowhere"))
    outcome = status(config, told)
    assert outcome.facts["caches"][0]["state"] == "not compared"
    assert outcome.error is None
    assert "because it cannot be read: nowhere" in told.warnings[0]


def test_thumbnails_that_were_touched_are_told_apart_from_those_that_changed(job):
    job.world.paint("id-004", 99)
    assert facts()["caches"][0]["state"] == "touched"
    (cache,) = facts("--hash")["caches"]
    assert (cache["state"], cache["against_dataset"]["thumbnails"]) == ("stale", 1)


@pytest.mark.parametrize(
    ("edit", "difference"),
    [
        (lambda rows: rows.append(["id-new", "a new one", 5, 2020]), {"added": 1}),
        (lambda rows: rows.pop(), {"gone": 1, "touched": 5}),
        (lambda rows: rows.reverse(), {"moved": 22}),
    ],
)
def test_rows_that_came_went_or_moved_are_counted(job, edit, difference):
    edit(job.world.rows)
    job.world.write()
    (cache,) = facts()["caches"]
    assert cache["state"] == "stale"
    assert {name: n for name, n in cache["against_dataset"].items() if n} == difference


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "not readable"),
        ('{"format": "vp-cache", "schema": 2}', "upgrade vp"),
        ('{"format": "vp-cache", "schema": 1, "rows": "x"}', "not a whole manifest"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_told_and_the_rest_goes_on(job, text, told):
    (job.cache / "manifest.json").write_text(text)
    result = vp("status")
    assert result.exit_code == 7
    assert told in result.stdout
    assert "lines  linear" in result.stdout


def test_an_unfinished_cache_is_told_by_its_shards_and_is_no_error(job):
    (job.cache / "manifest.json").rename(job.cache / "manifest.next.json")
    job.shards("text")[0].unlink()
    result = vp("status")
    assert result.exit_code == 0
    assert "unfinished: 5 of 6 planned shards are there" in result.stdout
    assert "next: vp extract --model PATH/TO/fake" in result.stderr


def test_a_run_whose_cache_was_made_by_another_encoder_has_to_be_trained_again(job):
    document = manifest(job)
    document["semantic"]["weights"] = "others"
    (job.cache / "manifest.json").write_text(json.dumps(document))
    (run,) = facts()["runs"]
    assert run["state"] == "cache changed"
    assert "was trained on vectors of fake" in run["changes"][0]


def test_a_run_whose_cache_is_gone_needs_the_cache_first(job):
    shutil.rmtree(job.work / "embeddings")
    result = vp("status")
    assert "next: vp extract --model PATH/TO/fake\n" in result.stderr
    assert "  `vp extract --model PATH/TO/fake` makes its cache again\n" in result.stdout
    (job.run / "oof.csv").unlink()
    *_, extract, train = vp("status").stdout.splitlines()
    assert extract == "  `vp extract --model PATH/TO/fake` makes its cache again"
    assert train.startswith("  `vp train-heads --name lines --model fake")


def test_of_a_run_with_titles_apart_the_cache_is_made_with_titles_apart(job):
    record = json.loads((job.run / "run.json").read_text())
    record["sources"][1]["kind"] = "title"
    (job.run / "run.json").write_text(json.dumps(record))
    shutil.rmtree(job.work / "embeddings")
    assert "next: vp extract --model PATH/TO/fake --text separate\n" in vp("status").stderr


def test_a_fine_tuned_run_of_other_test_videos_has_to_be_tuned_again(job):
    test = job.world.data / "test.csv"
    test.write_text("id,title,year\nt-1,a title,2020\n")
    as_if_tuned(job.run, table_digest(read_videos(DatasetConfig(data=job.world.data), "test")))
    assert states() == ["whole"]
    assert vp("status").stderr.endswith("next: vp submit --run lines\n")
    test.write_text("id,title,year\nt-1,another title,2020\n")
    assert states() == ["stale"]
    result = vp("status")
    what = f"it has predicted other videos, titles or dates, not those of {test}"
    again = "vp finetune --name lines --init frozen --epochs 30 --batch-size 512 --lr 0.5"
    assert f"\nlines\n  {what}\n  `{again}" in result.stdout
    assert (result.exit_code, f"next: {again}" in result.stderr) == (0, True)
    verified = vp("verify", "--quiet")
    assert f"{job.run}: {what}\n" in verified.stdout
    assert (verified.exit_code, f"`{again}" in verified.stderr) == (7, True)
    as_if_tuned(job.run, None)
    assert "  it has predicted no test videos, not those of" in vp("status").stdout


def as_if_tuned(run, test_digest):
    """Let run.json say that it was fine-tuned, and predicted test videos of this digest."""
    record = json.loads((run / "run.json").read_text())
    record |= {
        "finetuned_from": {"run": "frozen", "config": {}, "frozen_modalities": [], "precision": "fp32"},
        "towers": [{"best": "a", "final": "a"}] * 3,
        "config": {**record["config"], "init": "frozen", "lr": 0.5},
        "test_digest": test_digest,
    }
    record = {name: part for name, part in record.items() if part is not None}
    (run / "run.json").write_text(json.dumps(record))


def states():
    return [run["state"] for run in facts()["runs"]]


def test_a_run_that_cannot_be_read_is_told(job):
    (job.run / "run.json").write_text("{")
    result = vp("status")
    assert result.exit_code == 7
    assert "is damaged" in result.stdout


def test_everything_is_in_the_json(job):
    (job.work / "runs" / ".other.building").mkdir()
    told = facts()
    assert told.keys() == {"work", "dataset", "caches", "runs", "unfinished", "abandoned"}
    (cache,), (run,) = told["caches"], told["runs"]
    assert (cache["rows"], cache["shards"], cache["precision"]) == (22, {"there": 6, "planned": 6}, "fp32")
    assert (run["head"], run["folds"], run["missing_files"]) == ("linear", 3, [])
    assert told["abandoned"] == ["work/runs/.other.building"]


def test_neither_torch_nor_transformers_is_loaded(job):
    code = (
        "import sys; from pipeline.config import StatusConfig; from pipeline.status import status\n"
        "from features.progress import Silent\n"
        "assert len(status(StatusConfig(), Silent()).facts['runs']) == 1\n"
        "print([name for name in ('torch', 'transformers', 'pandas', 'scipy') if name in sys.modules])"
    )
    source = str(Path(cli.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONPATH": source}
    )
    assert done.stdout.strip() == "[]"
