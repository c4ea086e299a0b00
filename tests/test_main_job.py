"""The main job through the command line, as a user types it: extract, train-heads, submit, score."""

import contextlib
import csv
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold
from typer.testing import CliRunner

import cli
from features import durable
from features.errors import CacheError
from features.lock import writer_lock
from heads.folds import from_table
from pipeline.checkpoint import read_checkpoint
from pipeline.drawn_dataset import draw_dataset
from pipeline.members import given_weights
from pipeline.runs import open_run
from tests.command_line import copy_to_work_in, last_json, vp
from tests.workers_here import workers_here

RUN = Path("work/runs/clip_multimodal")
SMALL = ("--epochs", "2", "--hidden-dim", "8", "--batch-size", "8", "--quiet")
QUICK = ("--head", "mlp", "--no-diagnostics", *SMALL)
CODE = "from cli import app; app()"


@pytest.fixture(scope="session")
def extracted(tmp_path_factory):
    """A folder with a drawn dataset and its finished cache."""
    root = tmp_path_factory.mktemp("job")
    draw_dataset(root / "dataset", n_train=30, n_test=8)
    with contextlib.chdir(root):
        result = vp("extract", "--model", "tiny", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    (root / "extract.json").write_text(json.dumps(last_json(result)))
    return root


@pytest.fixture
def job(extracted, tmp_path, monkeypatch):
    """A copy of it, to work in."""
    return copy_to_work_in(extracted, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def trained_there(extracted, tmp_path_factory):
    """Another copy, with a run on it; what the training told is in `trained.json`."""
    root = tmp_path_factory.mktemp("trained") / "job"
    shutil.copytree(extracted, root)
    with contextlib.chdir(root):
        result = vp("train-heads", "--folds", "3", *QUICK, "--json")
    assert result.exit_code == 0, result.output
    (root / "trained.json").write_text(json.dumps(last_json(result)))
    return root


@pytest.fixture
def trained(trained_there, tmp_path, monkeypatch):
    """A copy of that to work in; returns what the training told."""
    copy_to_work_in(trained_there, tmp_path, monkeypatch)
    return json.loads(Path("trained.json").read_text())


def submission(method="mean", name="clip_multimodal"):
    return pd.read_csv(f"work/submissions/{name}_ensemble_{method}.csv", dtype={"ID": str})


def test_extract_says_what_it_did(extracted):
    facts = json.loads((extracted / "extract.json").read_text())
    assert facts.keys() >= {"rows", "bad", "rows_per_second", "shards_written", "shards_kept"}
    assert (facts["rows"], facts["bad"], facts["shards_written"]) == (38, 0, 4)


def test_a_complete_cache_is_left_as_it_is(job):
    facts = last_json(vp("extract", "--model", "tiny", "--json"))
    assert (facts["shards_written"], facts["shards_kept"]) == (0, 4)


def test_train_heads_says_what_it_did(trained):
    keys = {"run", "oof_msle", "oof_msle_constant", "fold_msle", "weights", "seconds"}
    assert trained.keys() >= keys
    assert list(trained["weights"]) == ["image", "text", "age"]
    assert sum(trained["weights"].values()) == pytest.approx(1)


def test_the_folds_are_those_of_scikit_learn(trained):
    folds = pd.read_csv(RUN / "folds.csv", dtype={"id": str})
    expected = np.empty(30, int)
    for fold, (_, rows) in enumerate(KFold(3, shuffle=True, random_state=42).split(expected)):
        expected[rows] = fold
    assert folds["fold"].tolist() == expected.tolist()


def test_out_of_fold_predictions_are_the_baseline_plus_what_each_modality_added(trained):
    oof = pd.read_csv(RUN / "oof.csv", dtype={"id": str})
    run = open_run(RUN)
    for fold, rows in oof.groupby("fold"):
        baseline = run.checkpoint(fold, "best").heads.baseline
        added = rows.filter(like="contribution_").sum(axis=1)
        np.testing.assert_allclose(rows["log_pred_best"], baseline + added, rtol=1e-6)
    assert np.mean((oof["log_pred_best"] - oof["log_views"]) ** 2) == pytest.approx(trained["oof_msle"])
    assert np.mean((oof["log_pred_final"] - oof["log_views"]) ** 2) == pytest.approx(trained["oof_msle_final"])


def test_every_fold_and_epoch_has_a_line_under_the_documented_keys(trained):
    lines = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "epoch" in line]
    assert len(epochs) == 3 * 2
    fold_1 = {"weights/image", "weights/text", "weights/age", "train/loss_epoch", "val/loss_epoch", "val/msle"}
    fold_1 |= {"val/mae", "val/rmse", "learning_rate"}
    of_fold_1 = [line for line in epochs if "fold_1/val/msle" in line]
    assert [line["epoch"] for line in of_fold_1] == [1, 2]
    assert all({f"fold_1/{key}" for key in fold_1} <= line.keys() for line in of_fold_1)
    ends = {key for line in lines if "epoch" not in line for key in line}
    assert {"fold_2/best_epoch", "fold_2/best_val_loss", "fold_2/best_msle", "ensemble/oof_msle"} <= ends


def test_the_same_seed_gives_the_same_bytes(trained):
    first = {path.name: path.read_bytes() for path in (RUN / "checkpoints").iterdir()}
    vp("train-heads", *QUICK)
    assert {path.name: path.read_bytes() for path in (RUN / "checkpoints").iterdir()} == first
    assert len(first) == 6


def test_a_submission_has_the_ids_of_the_test_table_in_their_order(trained):
    facts = last_json(vp("submit", "--method", "mean", "--json"))
    with Path("dataset/test.csv").open(newline="", encoding="utf-8") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    table = submission()
    assert table["ID"].tolist() == ids
    assert table.columns.tolist() == ["ID", "views"]
    assert np.isfinite(table["views"]).all()
    assert (table["views"] >= 0).all()
    assert facts.keys() >= {"path", "rows"}
    info = json.loads(Path("work/submissions/clip_multimodal_ensemble_mean_info.json").read_text())
    assert info["members"] == ["fold_0", "fold_1", "fold_2"]
    assert list(info["caches"]) == ["tiny"]


def test_members_are_combined_as_asked(trained):
    vp("submit", "--method", "weighted_mean", "--weights", "1,0,0")
    members = [np.log1p(submission("weighted_mean")["views"])]
    for weights in ("fold_1=1,fold_0=0,fold_2=0", "0,0,1"):
        vp("submit", "--method", "weighted_mean", "--weights", weights)
        members.append(np.log1p(submission("weighted_mean")["views"]))
    vp("submit", "--method", "median")
    np.testing.assert_allclose(np.log1p(submission("median")["views"]), np.median(members, axis=0))
    vp("submit")
    np.testing.assert_allclose(np.log1p(submission()["views"]), np.mean(members, axis=0))
    vp("submit", "--space", "views")
    np.testing.assert_allclose(submission()["views"], np.expm1(members).mean(axis=0))


@pytest.mark.parametrize("weights", ["0.5,0.5", "0.9,0.9,0.9", "a,b,c", "fold_0=1,fold_1=0,fold_9=0", "1,1,-1"])
def test_weights_that_do_not_fit_are_refused(trained, weights):
    result = vp("submit", "--method", "weighted_mean", "--weights", weights)
    assert (result.exit_code, "--weights" in result.stderr) == (2, True)
    assert not Path("work/submissions").exists()


def test_weights_are_bound_by_name():
    assert given_weights(["b=0.75", "a=0.25"], ["a", "b"]).tolist() == [0.25, 0.75]


def test_weights_without_weighted_mean_are_a_mistake(trained):
    assert vp("submit", "--weights", "1,0,0").exit_code == 2


def test_several_runs_are_weighted_by_their_out_of_fold_predictions(trained):
    vp("train-heads", "--modalities", "age", "--name", "age", *QUICK)
    result = vp("submit", "--run", "clip_multimodal", "--run", "age", "--method", "weighted_mean", "--json")
    facts = last_json(result)
    assert sum(facts["weights"].values()) == pytest.approx(1)
    scores = facts["out_of_fold"]
    assert scores["msle_together"] <= min(scores["msle_of_each"].values()) + 1e-9
    assert f"(nested)  {scores['msle_nested']:.4f}" in result.stdout
    vp("train-heads", "--modalities", "age", "--name", "other", "--seed", "1", *QUICK)
    refused = vp("submit", "--run", "clip_multimodal", "--run", "other", "--method", "weighted_mean")
    assert refused.exit_code == 7


def test_a_sample_with_the_same_ids_gives_header_and_order(trained):
    ids = pd.read_csv("dataset/test.csv", dtype=str)["id"].tolist()[::-1]
    Path("sample.csv").write_text("Id,Views\n" + "".join(f"{id_},0\n" for id_ in ids))
    vp("submit", "--sample", "sample.csv")
    lines = Path("work/submissions/clip_multimodal_ensemble_mean.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["Id", *ids]


def test_a_sample_with_dummy_rows_gives_only_its_header(trained):
    Path("sample.csv").write_text("ID,TARGET\n0,1.5\n1,1.5\n900,1.5\n901,1.5\n")
    result = vp("submit", "--sample", "sample.csv")
    assert "warning" in result.stderr
    lines = Path("work/submissions/clip_multimodal_ensemble_mean.csv").read_text().splitlines()
    assert (lines[0], len(lines)) == ("ID,TARGET", 9)


def test_a_test_video_without_embedding_is_named(trained):
    with Path("dataset/test.csv").open("a", encoding="utf-8") as file:
        header = Path("dataset/test.csv").read_text().splitlines()[0].split(",")
        csv.writer(file).writerow(
            ["brand-new" if name == "id" else "2024" if name == "year" else "" for name in header]
        )
    result = vp("submit")
    assert (result.exit_code, "brand-new" in result.stderr, "vp extract" in result.stderr) == (7, True, True)


def test_score_is_the_mean_squared_error_of_log_views(tmp_path):
    (tmp_path / "s.csv").write_text("ID,views\na,0\nb,99\n")
    (tmp_path / "t.csv").write_text("id,views\nb,9\na,0\n")
    facts = last_json(vp("score", "--submission", tmp_path / "s.csv", "--truth", tmp_path / "t.csv", "--json"))
    assert facts["msle"] == pytest.approx(np.log(10) ** 2 / 2)
    (tmp_path / "t.csv").write_text("id,views\nb,9\nc,0\n")
    assert vp("score", "--submission", tmp_path / "s.csv", "--truth", tmp_path / "t.csv").exit_code == 3


def test_heads_without_an_encoder_need_no_cache(job):
    shutil.rmtree("work")
    assert vp("train-heads", "--modalities", "age", *QUICK).exit_code == 0
    assert vp("submit").exit_code == 0


def test_a_moved_work_folder_still_works(trained, trained_there):
    shutil.move("work", "elsewhere")
    assert vp("submit", "--work", "elsewhere").exit_code == 0
    for path in Path("elsewhere").rglob("*.json"):
        assert str(trained_there.parent) not in path.read_text(), path


def test_a_checkpoint_that_changed_is_refused(trained):
    path = next((RUN / "checkpoints").glob("*_best.safetensors"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    result = vp("submit")
    assert (result.exit_code, "is not the file that the run was saved with" in result.stderr) == (7, True)


class _Bomb:
    def __reduce__(self):
        return Path("exploded").touch, ()


@pytest.mark.parametrize("name", ["planted.safetensors", "planted.pt"])
def test_a_planted_pickle_is_refused_and_not_run(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(pickle.dumps(_Bomb()))
    with pytest.raises(CacheError):
        read_checkpoint(Path(name))
    assert not Path("exploded").exists()


class _StopAt(durable.DiskCalls):
    def __init__(self, at):
        self.left = at

    def replace(self, source, target):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        super().replace(source, target)


def test_a_training_stopped_at_any_rename_leaves_the_old_run_or_the_new_one(trained, monkeypatch):
    old = open_run(RUN).record["files"]
    for at in range(1, 40):
        monkeypatch.setattr(durable, "calls", _StopAt(at))
        stopped = vp("train-heads", "--seed", "7", *QUICK).exit_code
        monkeypatch.setattr(durable, "calls", durable.DiskCalls())
        run = open_run(RUN)
        for fold in range(3):
            run.checkpoint(fold, "best")
        if stopped == 0:
            break
        assert stopped == 130
        assert run.record["files"].keys() == old.keys()
        assert not [path for path in RUN.parent.iterdir() if path.name.endswith(".replaced")]
    assert at > 8


def test_two_trainings_of_one_run_exclude_each_other(job):
    with writer_lock(Path("work/runs/.clip_multimodal.lock")):
        result = vp("train-heads", *QUICK)
    assert (result.exit_code, f"process {os.getpid()}" in result.stderr) == (6, True)


def _start(*arguments, code=CODE):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent)}, start_new_session=True,
    )  # fmt: skip


def _wait_for_a_shard(process, folder):
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and not list(folder.rglob("*.h5")):
        time.sleep(0.002)


def _living_in_session(session):
    """Processes of a session that have not ended; one that nobody asked how it ended counts as ended."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own_session = path.read_text().rpartition(")")[2].split()[:4]
            if int(own_session) == session and state not in "ZX":
                yield path.parent.name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_an_extraction_that_is_stopped_goes_on_to_the_undisturbed_cache(job, number, code):
    undisturbed = sorted(path.name for path in Path("work").rglob("*.h5"))
    shutil.rmtree("work/embeddings")
    with _start("extract", "--model", "tiny") as process:
        _wait_for_a_shard(process, Path("work"))
        process.send_signal(number)
        _, messages = process.communicate(timeout=30)
    if process.returncode != 0:  # it may have been faster than the signal
        assert process.returncode == code, messages
        assert "Traceback" not in messages
    deadline = time.monotonic() + 10
    while (left := list(_living_in_session(process.pid))) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left
    with workers_here():
        assert vp("extract", "--model", "tiny").exit_code == 0
    assert sorted(path.name for path in Path("work").rglob("*.h5")) == undisturbed


def test_vectors_of_an_older_title_are_trained_on_and_submitted_with_a_warning(trained):
    for split in ("train_val", "test"):
        table = pd.read_csv(f"dataset/{split}.csv", dtype=str, keep_default_na=False)
        table.loc[3, "title"] = "another title"
        table.to_csv(f"dataset/{split}.csv", index=False)
    for command, split in ((("train-heads", *QUICK), "train_val"), (("submit",), "test")):
        result = vp(*command)
        assert result.exit_code == 0
        assert f"warning: tiny: 1 row of {split}.csv have another text now" in result.stderr


TERMINATED_TWICE = """
import time, cli
from pipeline.console import Console

def stage(_console):
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("ending", flush=True)
        time.sleep(60)

cli._run(stage, Console(), json=False)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_ends_the_process_at_once(number):
    command = [sys.executable, "-c", TERMINATED_TWICE]
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for said in ("working\n", "ending\n"):
            assert process.stdout.readline() == said
            process.send_signal(number)
        assert process.wait(timeout=10) == -number


WITHOUT_ROOM = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, 4_000)); {CODE}"
"""Files of at most 4,000 bytes can be written, by this process and by those that it starts."""


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        pytest.param(("extract", "--model", "tiny"), "work/embeddings", marks=pytest.mark.slow),
        pytest.param(("train-heads", *QUICK), "work/runs", marks=pytest.mark.slow),
        (("demo",), "none"),
    ],
)
def test_a_file_system_that_takes_no_more_is_told_and_when_there_is_room_the_command_goes_on(job, arguments, without):
    shutil.rmtree(without, ignore_errors=True)
    with _start(*arguments, code=WITHOUT_ROOM) as process:
        _, messages = process.communicate(timeout=120)
    assert process.returncode == 5, messages
    assert re.search(
        r"^error: cannot write .*: File too large \(.*free\)\. .*make room .* run the same", messages, re.M
    )
    assert "Traceback" not in messages
    assert not list(Path().rglob(".tmp-*"))
    if arguments != ("demo",):
        with workers_here():
            assert vp(*arguments).exit_code == 0


def test_an_unfinished_cache_is_not_trained_on(job):
    cache = Path("work/embeddings/tiny/train_val")
    (cache / "manifest.json").rename(cache / "manifest.next.json")
    next(cache.glob("text-*.h5")).unlink()
    result = vp("train-heads", *QUICK)
    assert result.exit_code == 7
    assert f"the cache in {cache} is incomplete (1 of 2 shards): run `vp extract --model tiny` again" in result.stderr


@pytest.mark.slow
def test_the_real_wandb_writes_the_weights_of_every_fold_offline(job, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    with _start("train-heads", *QUICK, "--wandb", "offline") as process:
        _, messages = process.communicate(timeout=120)
    assert process.returncode == 0, messages
    (record,) = Path("work/wandb").glob("offline-run-*/*.wandb")
    raw = record.read_bytes()
    for modality in ("image", "text", "age"):
        assert f"fold_0/weights/{modality}".encode() in raw


def test_a_failing_wandb_never_costs_the_run(job, monkeypatch):
    def init(**_):
        raise RuntimeError("no network")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    result = vp("train-heads", *QUICK, "--wandb", "online")
    assert (result.exit_code, "no network" in result.stderr) == (0, True)
    assert (RUN / "run.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("train-heads", "--folds", "three"), 2, "--folds takes a whole number"),
        (("train-heads", "--folds", "31"), 3, "--folds"),
        (("train-heads", "--modalities", "smell"), 2, "there are only image, text, age"),
        (("train-heads", "--model", "ViT-B-32"), 7, "vp extract"),
        (("train-heads", "--name", "../x"), 2, "name"),
        (("train-heads", "--epochs", "0"), 2, "--epochs"),
        (("submit",), 7, "vp train-heads"),
        (("submit", "--data", "nowhere", "--run", "x"), 7, "vp train-heads --name x"),
        (("extract", "--data", "nowhere"), 3, "train_val.csv"),
        (("extract", "--batch-size", "-1"), 2, "--batch-size must be at least 1, not -1"),
        (("extract", "--worker-timeout", "0"), 2, "--worker-timeout must be above 0"),
        (("extract", "--worker-timeout", "1e300"), 2, "--worker-timeout must be above 0 and at most 1,000,000,000"),
        (("extract", "--max-bad", "-1"), 2, "--max-bad must lie between 0 and 1"),
        (("extract", "--model", "tiny", "--gpus", "0,7"), 2, "available: cpu"),
        (("extract", "--model", "tiny", "--precision", "fp16"), 7, "precision: 'fp16' here, "),
        (("score",), 2, "give both files"),
    ],
)
def test_a_mistake_is_one_message_and_its_exit_code(job, arguments, code, said):
    result = vp(*arguments)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.usefixtures("in_this_process")
def test_too_many_bad_rows_fail_after_everything_is_kept(job):
    gone = sorted(Path("dataset/train_val").iterdir())[:7]
    for path in gone:
        path.unlink()
    result = vp("extract", "--model", "tiny", "--json")
    assert (result.exit_code, last_json(result)["exit_code"]) == (4, 4)
    assert "and 2 more: the same command with --json names them all" in result.stderr
    told = last_json(result)["splits"]["train_val"]["bad_rows"]
    assert {(row["id"], row["kind"], row["status"]) for row in told} == {(p.stem, "image", "missing") for p in gone}
    lines = Path("dataset/train_val.csv").read_text(encoding="utf-8").split("\n")
    assert all(f",{row['id']}," in lines[row["line"] - 1] for row in told)
    assert vp("extract", "--model", "tiny", "--max-bad", "0.5").exit_code == 0
    assert vp("train-heads", *QUICK).exit_code == 0


def test_a_full_disk_is_told_with_what_to_do(job, monkeypatch):
    shutil.rmtree("work/embeddings")

    class Full(durable.DiskCalls):
        def write(self, descriptor, data):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable, "calls", Full())
    result = vp("extract", "--model", "tiny")
    assert (result.exit_code, "No space left" in result.stderr, "make room" in result.stderr) == (5, True, True)


def test_the_command_line_beats_the_file_and_the_file_beats_the_default(job):
    Path("vp.toml").write_text('[train-heads]\nepochs = 2\nhidden-dim = 8\nname = "from_file"\n')
    assert last_json(vp("train-heads", "--epochs", "1", "--quiet", "--json"))["run"] == "from_file"
    config = json.loads(Path("work/runs/from_file/run.json").read_text())["config"]
    assert (config["epochs"], config["hidden_dim"], config["folds"]) == (1, 8, 3)


def test_the_suggested_command_reads_the_same_file_and_tables(job):
    for split in ("train_val", "test"):
        table = pd.read_csv(f"dataset/{split}.csv", dtype=str, keep_default_na=False)
        table.to_csv(f"dataset/{split}.csv", sep=";", index=False)
    Path("my options.toml").write_text("[train-heads]\nepochs = 1\n")
    quick = [option for option in QUICK if option != "--quiet"]
    result = vp("train-heads", *quick, "--config", "my options.toml", "--sep", ";")
    assert result.stderr.splitlines()[-1] == "next: vp submit --method mean --sep ';' --config 'my options.toml'"
    assert vp("submit", "--method", "mean", "--sep", ";", "--config", "my options.toml").exit_code == 0


@pytest.mark.parametrize("text", ["[submit]\nmetod = 1\n", "modle = 1\n", "[sumbit]\n", "[train-heads]\nlr = true\n"])
def test_an_unknown_key_or_a_wrong_value_in_the_file_is_named(job, text):
    Path("vp.toml").write_text(text)
    result = vp("train-heads")
    assert (result.exit_code, "vp.toml" in result.stderr) == (2, True)


def test_columns_can_have_other_names(job):
    table = pd.read_csv("dataset/train_val.csv", dtype=str, keep_default_na=False)
    table.rename(columns={"views": "likes"}).to_csv("dataset/train_val.csv", index=False)
    assert vp("train-heads", *QUICK).exit_code == 3
    Path("vp.toml").write_text('[columns]\nviews = "likes"\n')
    assert vp("train-heads", *QUICK).exit_code == 0


def test_a_constant_target_is_refused_with_the_reason(job):
    table = pd.read_csv("dataset/train_val.csv", dtype=str, keep_default_na=False)
    table.assign(views="7").to_csv("dataset/train_val.csv", index=False)
    result = vp("train-heads", *QUICK)
    assert (result.exit_code, "constant" in result.stderr) == (3, True)


@pytest.mark.usefixtures("in_this_process")
def test_a_dataset_without_thumbnails_and_dates_trains_on_what_it_has(job):
    shutil.rmtree("dataset/train_val")
    shutil.rmtree("dataset/test")
    shutil.rmtree("work/embeddings")
    result = vp("extract", "--model", "tiny")
    assert result.stderr.count("no thumbnails") == 1
    assert list(last_json(vp("train-heads", *QUICK, "--json"))["weights"]) == ["text", "age"]


@pytest.mark.usefixtures("in_this_process")
def test_titles_and_descriptions_can_have_vectors_of_their_own(job):
    """The thumbnails' vectors serve both ways, and a run reads new videos as it read those it was trained on."""
    shutil.rmtree("work/embeddings")
    extract = ("extract", "--model", "tiny", "--precision", "fp32", "--json")
    assert last_json(vp(*extract))["shards_written"] == 4
    separate = last_json(vp(*extract, "--text", "separate"))
    assert (separate["shards_written"], separate["shards_kept"]) == (4, 2)
    assert vp("verify", "--quiet").exit_code == 0
    weights = last_json(vp("train-heads", "--head", "linear", "--no-diagnostics", "--quiet", "--json"))["weights"]
    assert list(weights) == ["image", "title", "description", "age"]
    test = pd.read_csv("dataset/test.csv", dtype=str, keep_default_na=False)
    columns = {"image": "test/" + test["id"] + ".jpg", "title": test["title"], "description": test["description"]}
    pd.DataFrame(columns | {"date": test["date"]}).to_csv("dataset/new.csv", index=False)
    assert vp("submit").exit_code == 0
    assert vp("predict", "--csv", "dataset/new.csv", "--out", "new_views.csv").exit_code == 0
    np.testing.assert_allclose(pd.read_csv("new_views.csv")["views"], submission()["views"], rtol=2e-3)
    assert vp("report").exit_code == 0
    assert "description" in (RUN / "report.html").read_text()
    back = last_json(vp(*extract))
    assert (back["shards_written"], back["shards_kept"]) == (0, 4)


def test_data_goes_to_stdout_and_everything_else_to_stderr(trained):
    result = vp("submit")
    assert "next: vp score" in result.stderr
    assert "videos, mean of 3 members" in result.stdout
    assert "next:" not in result.stdout


def test_a_bug_keeps_its_traceback(job, monkeypatch):
    def broken(_config, _console):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("pipeline.submit.submit", broken)
    result = CliRunner().invoke(cli.app, ["submit"])
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_too_little_memory_is_no_bug(job):
    result = vp("train-heads", "--head", "mlp", "--hidden-dim", 10**9, "--epochs", 1, "--no-diagnostics")
    assert result.exit_code == 2
    assert "Unable to allocate" in result.stderr
    assert "ask for less of what grows with it (--hidden-dim" in result.stderr


def test_what_the_table_tells_is_trained_on_and_submitted_like_an_embedding(job):
    result = vp("train-heads", "--head", "linear", "--modalities", "text,channel,words,age", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    assert list(last_json(result)["weights"]) == ["text", "age", "channel", "words"]
    assert vp("submit").exit_code == 0
    assert len(np.unique(submission()["views"])) == 8


@pytest.mark.parametrize("head", ["linear", "trees"])
def test_a_head_that_is_solved_gives_the_same_bytes_again(job, head):
    written = []
    for _ in range(2):
        trained = vp("train-heads", "--head", head, "--modalities", "text,age,channel", "--no-diagnostics", *SMALL)
        assert trained.exit_code == 0, trained.output
        assert vp("submit").exit_code == 0
        table = Path("work/submissions/clip_multimodal_ensemble_mean.csv").read_bytes()
        written.append({path.name: path.read_bytes() for path in (RUN / "checkpoints").iterdir()} | {"table": table})
    assert written[0] == written[1]
    assert len(written[0]) == 7


@pytest.mark.parametrize(("split", "seed", "expanding"), [("group", 42, False), ("time", None, True)])
def test_a_plan_is_saved_and_rows_that_nobody_validated_have_no_prediction(job, split, seed, expanding):
    which = ("--head", "linear", "--modalities", "age,channel", "--split", split)
    result = vp("train-heads", *which, "--no-diagnostics", *SMALL, "--json")
    assert result.exit_code == 0, result.output
    run = open_run(RUN)
    saved = pd.read_csv(RUN / "folds.csv", dtype={"id": str})
    plan = from_table(saved["fold"].to_numpy(), split=split, seed=seed, expanding=expanding)
    digest = plan.digest(saved["id"].tolist())
    assert run.part("folds") == {"split": split, "n": 3, "seed": seed, "expanding": expanding, "digest": digest}
    oof = pd.read_csv(RUN / "oof.csv", dtype={"id": str})
    assert oof[["id", "fold"]].equals(saved)
    unvalidated = oof["fold"] < 0
    assert unvalidated.any() == expanding
    for column in ("log_pred_best", "log_pred_final", "contribution_age", "contribution_channel"):
        assert oof[column].isna().equals(unvalidated)
    assert np.mean((oof["log_pred_best"] - oof["log_views"]) ** 2) == pytest.approx(last_json(result)["oof_msle"])
    assert vp("submit").exit_code == 0


def test_metrics_hold_importance_intervals_coverage_and_diagnostics_unless_those_are_not_wanted(job):
    which = ("--head", "linear", "--modalities", "age,channel")
    told = vp("train-heads", *which, *SMALL)
    full = open_run(RUN).read_json("metrics.json")
    silent = vp("train-heads", *which, "--no-diagnostics", *SMALL)
    brief = open_run(RUN).read_json("metrics.json")
    assert full.keys() - brief.keys() == {"diagnostics"}
    assert brief == {key: full[key] for key in brief} | {"seconds": brief["seconds"]}
    assert ("MSLE by split" in told.stdout, "MSLE by split" in silent.stdout) == (True, False)
    assert list(full["importance"]) == ["age", "channel"]
    assert [band["level"] for band in full["intervals"]["pooled"]] == [0.5, 0.9]
    assert [level["overall"]["rows"] for level in full["coverage"]] == [30, 30]
    diagnostics = full["diagnostics"]
    assert diagnostics["linear_msle_by_split"].keys() == {"kfold", "group", "time"}
    assert diagnostics["test_against_train_auc"].keys() == {"age", "channel"}
    assert sum(entry["rows"] for entry in diagnostics["error_by_channel"]) == 30
    assert sum(entry["rows"] for entry in diagnostics["error_by_year"]) == 30


def test_the_demo_finds_the_rule_it_drew(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    facts = last_json(vp("demo", "--json", "--quiet"))
    trained = facts["train_heads"]
    assert trained["oof_msle"] < 0.5 * trained["oof_msle_constant"]
    assert facts["score"]["msle"] < 0.6 * trained["oof_msle_constant"]
    for modality, weight in trained["weights"].items():
        terms = {name: facts["rule"][name] for name in ("image", "text", "age")}
        assert weight == pytest.approx(terms[modality] / sum(terms.values()), abs=0.12)


# Vectors that stay on disk


def test_heads_fitted_from_the_shards_are_those_fitted_in_memory(job):
    for how in ("stream", "no-stream"):
        result = vp("train-heads", "--head", "linear", f"--{how}", "--name", how, "--quiet")
        assert result.exit_code == 0, result.output
        assert vp("submit", "--run", how, f"--{how}", "--quiet").exit_code == 0
    streamed, whole = (Path(f"work/runs/{name}") for name in ("stream", "no-stream"))
    for name in ("oof.csv", "folds.csv", "fold_info.csv"):
        assert (streamed / name).read_bytes() == (whole / name).read_bytes()
    ours, theirs = (json.loads((run / "metrics.json").read_text()) for run in (streamed, whole))
    assert ours | {"run": "", "seconds": 0} == theirs | {"run": "", "seconds": 0}
    assert ours["diagnostics"]["test_against_train_auc"].keys() == {"image", "text", "age"}
    assert submission(name="stream").equals(submission(name="no-stream"))


def test_vectors_beyond_the_memory_stay_on_disk_or_are_refused(job, monkeypatch):
    monkeypatch.setattr("pipeline.memory.available_bytes", lambda: 1000)
    result = vp("train-heads", "--head", "linear", "--no-diagnostics")
    assert result.exit_code == 0
    assert "stay on disk" in result.stderr
    assert vp("submit", "--quiet").exit_code == 0
    refused = vp("train-heads", "--json")
    assert refused.exit_code == 2
    assert "--head hybrid cannot: use --head linear" in last_json(refused)["error"]
    assert vp("train-heads", "--no-stream", *QUICK).exit_code == 0


@pytest.mark.parametrize("head", ["mlp", "trees"])
def test_several_seeds_have_checkpoints_of_their_own_and_are_submitted_as_their_mean(job, head):
    flags = ("--head", head, "--seeds", "2", "--no-diagnostics", *SMALL, "--json")
    facts = last_json(vp("train-heads", *flags))
    names = {path.name for path in (RUN / "checkpoints").iterdir()}
    assert names == {
        f"clip_multimodal_fold{fold}_seed{seed}_{moment}.safetensors"
        for fold in range(3)
        for seed in (42, 43)
        for moment in ("best", "final")
    }
    before = {path.name: path.read_bytes() for path in (RUN / "checkpoints").iterdir()}
    vp("train-heads", *flags)
    assert before == {path.name: path.read_bytes() for path in (RUN / "checkpoints").iterdir()}
    assert facts["seeds"]["seeds"] == [42, 43]
    assert len(facts["fold_msle"]) == 3
    run = open_run(RUN.resolve())
    assert [run.member(0, "best", seed).seed for seed in run.seeds] == [42, 43]
    assert vp("submit", "--quiet").exit_code == 0
    assert len(submission()) == 8


def test_a_fold_of_several_seeds_predicts_their_mean(job):
    vp("train-heads", "--seeds", "3", *QUICK)
    run = open_run(RUN.resolve())
    table = pd.read_csv(RUN / "oof.csv")
    assert table["log_pred_best"].notna().all()
    ensembled = run.checkpoint(1, "final").heads
    parts = [run.member(1, "final", seed).heads for seed in run.seeds]
    np.testing.assert_allclose(ensembled.weights, np.mean([part.weights for part in parts], axis=0))
    assert ensembled.baseline == pytest.approx(np.mean([part.baseline for part in parts]))
    keys = set().union(*(json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines()))
    assert {"fold_1/val/msle", "fold_1/seed_43/val/msle", "fold_1/seed_44/weights/image"} <= keys
    assert "fold_1/seed_42/val/msle" not in keys


def test_a_sweep_becomes_the_run_that_it_chose(job):
    facts = last_json(vp("train-heads", *QUICK, "--sweep", "lr=1e-9,1e-2", "--near-duplicates", "--json"))
    assert facts["sweep"]["chosen"] == {"lr": 1e-2}
    assert open_run(RUN.resolve()).record["config"]["lr"] == 1e-2
    assert facts["sweep"]["oof_msle_final"] == pytest.approx(facts["oof_msle_final"], rel=1e-6)
    assert facts["near_duplicates"].keys() == {"image", "text", "cosine_above", "seconds"}
    refused = vp("train-heads", "--head", "linear", "--sweep", "lr=1")
    assert refused.exit_code == 2
    assert "solves every penalty" in refused.stderr


def test_a_joint_term_stands_beside_the_modalities_everywhere(job):
    facts = last_json(vp("train-heads", "--head", "hybrid", "--joint", "--no-diagnostics", *SMALL, "--json"))
    assert list(facts["weights"]) == list(facts["importance"]) == ["image", "text", "age", "joint"]
    assert "contribution_joint" in pd.read_csv(RUN / "oof.csv").columns
    run = open_run(RUN.resolve())
    assert run.record["additive"] is False
    assert run.modalities == ["image", "text", "age"]
    assert vp("submit", "--quiet").exit_code == 0
