"""`vp predict` as a user types it, with the tiny encoder, and the lines of the README that show it."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import cli
from pipeline.drawn_dataset import draw_dataset
from pipeline.predict import Predictor
from tests.command_line import copy_to_work_in, vp
from tests.workers_here import workers_here

README = (Path(cli.__file__).parent / "README.md").read_text(encoding="utf-8")
CAKE, PHONE = "How I made a giant cake challenge", "A look at the old phone update"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A drawn dataset, its cache, and a run over images, texts and ages."""
    root = tmp_path_factory.mktemp("predict")
    with contextlib.chdir(root):
        draw_dataset(root / "dataset", n_train=60, n_test=8)
        with workers_here():
            assert vp("extract", "--model", "tiny", "--quiet").exit_code == 0
        assert vp("train-heads", "--head", "linear", "--no-diagnostics", "--quiet").exit_code == 0
        which = ("--head", "linear", "--modalities", "words,age,channel", "--name", "words")
        assert vp("train-heads", *which, "--no-diagnostics", "--quiet").exit_code == 0
    return root


@pytest.fixture
def job(trained, tmp_path, monkeypatch):
    root = copy_to_work_in(trained, tmp_path, monkeypatch)
    for name, image in zip(("a.jpg", "b.jpg"), sorted(Path("dataset/test").iterdir()), strict=False):
        shutil.copy(image, name)
    return root


def clip(*arguments):
    return vp("predict", "--run", "clip_multimodal", *arguments)


def results(*arguments):
    result = clip(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout.splitlines()[-1])


def test_two_images_are_ranked_with_the_reason(job):
    result = clip("--image", "a.jpg", "--image", "b.jpg", "--title", CAKE)
    facts = results("--image", "a.jpg", "--image", "b.jpg", "--title", CAKE)
    lines, (first, second) = result.stdout.splitlines(), facts["results"]
    assert lines[0].split() == ["views", "50", "%", "90", "%", "percentile", "image", "text", "age"]
    assert [line.split()[0] for line in lines[1:3]] == [first["image"], second["image"]]
    assert first["views"] > second["views"]
    factor = (1 + first["views"]) / (1 + second["views"])
    assert first["factors"]["image"] / second["factors"]["image"] == pytest.approx(factor)
    assert lines[-1] == facts["verdict"]
    assert lines[-1].startswith(f"{first['image']} wins over {second['image']}: {first['views']:,.0f} against ")
    assert f"(x{factor:.2f}: image x{factor:.2f})" in lines[-1]
    notes = result.stderr.splitlines()
    assert [note for note in notes if "untrained" in note] == [notes[0]]
    assert notes[1].startswith("no --date: age 0 at 20")


def test_a_video_of_the_test_table_gets_what_a_submission_gives_it(job):
    table = pd.read_csv("dataset/test.csv", dtype=str, keep_default_na=False)
    assert vp("submit", "--run", "clip_multimodal", "--checkpoint", "final").exit_code == 0
    submitted = pd.read_csv("work/submissions/clip_multimodal_ensemble_mean.csv", dtype={"ID": str})
    predictor, compared = Predictor.open(run="clip_multimodal"), 0
    for row, views in zip(table.itertuples(), submitted["views"], strict=True):
        image = Path(f"dataset/test/{row.id}.jpg")
        if not row.date or not row.title.strip() or image.stat().st_size < 500:
            continue
        with_day = {"date": pd.Timestamp(row.date).date()} if len(row.date) == 10 else None
        if with_day is None:
            continue
        one = predictor.predict(images=[image], titles=[row.title], description=row.description, **with_day)[0]
        assert one.log_views == pytest.approx(np.log1p(views), abs=0.01)  # other batches, other last bits of float16
        compared += 1
    assert compared > 0


def test_every_pair_is_scored_and_json_holds_all_of_it(job):
    facts = results("--image", "a.jpg", "--image", "b.jpg", "--title", CAKE, "--title", PHONE)
    assert facts.keys() == {"run", "verdict", "results"}
    assert len(facts["results"]) == 4
    keys = {
        "image",
        "title",
        "views",
        "interval_50",
        "interval_90",
        "percentile",
        "baseline",
        "factors",
        "contributions",
    }
    for one in facts["results"]:
        assert one.keys() >= keys
        low, high = one["interval_90"]
        assert low <= one["interval_50"][0] <= one["views"] <= one["interval_50"][1] <= high


def test_what_was_not_given_is_told_once(job):
    notes = clip("--title", CAKE, "--title", PHONE).stderr
    assert notes.count("not given, so counted as the mean of the training videos: image") == 1
    words = vp("predict", "--run", "words", "--title", CAKE).stderr
    assert "not given, so counted as the mean of the training videos: channel" in words


def test_what_a_run_does_not_read_is_told(job):
    result = vp("predict", "--run", "words", "--image", "a.jpg", "--image", "b.jpg", "--title", CAKE)
    assert "reads age, channel, words: --image makes no difference to the views it predicts" in result.stderr
    assert "a.jpg and b.jpg are predicted alike" in result.stdout


def test_a_channel_has_a_percentile_where_it_is_known(job):
    known = pd.read_csv("dataset/train_val.csv", dtype=str)["channel"][0]
    result = clip("--title", CAKE, "--channel", known)
    assert f"in {known}" in result.stdout.splitlines()[0]
    assert "--channel makes no difference to the views it predicts" in result.stderr
    unknown = vp("predict", "--run", "words", "--title", CAKE, "--channel", "nobody")
    assert "no training video is of the channel 'nobody': it counts as a new one" in unknown.stderr
    away = vp("predict", "--run", "words", "--title", CAKE, "--channel", known, "--data", "away")
    assert (away.exit_code, "away holds no train_val.csv: no percentile" in away.stderr) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "give something to score"),
        (("--title", ""), 2, "--title must hold a word"),
        (("--image", ""), 2, "--image must name a file"),
        (("--image", "gone.jpg"), 3, "gone.jpg (missing)"),
        (("--image", "dataset"), 3, "dataset (unreadable)"),
        (("--image", "dataset/test.csv", "--title", "x y"), 3, "test.csv (unidentified)"),
        (("--title", "x y", "--date", "2024-13-01"), 2, "--date takes a date"),
        (("--title", "x y", "--date", "2024-01-01", "--year", "2024"), 2, "exclude each other"),
        (("--title", "x y", "--year", "12"), 2, "--year must be a year from 1990 to 20"),
        (("--title", "x y", "--year", "9999"), 2, "--year must be a year from 1990 to 20"),
        (("--title", "x y", "--date", "1989-12-31"), 2, "--date must lie between 1990-01-01 and 20"),
        (("--title", "x y", "--date", "9999-12-31"), 2, "a year ahead, however: 9999-12-31; leave it out for age 0"),
        (("--csv", "c.csv", "--title", "x y", "--year", "2024"), 2, "leave out --title, --year"),
        (("--title", "x y", "--out", "r.csv"), 2, "--out and --root belong to --csv"),
        (("--title", "x y", "--model", "a", "--model", "b"), 2, "the encoders of the run are: tiny"),
        (("--title", "x y", "--device", "cuda:7"), 2, "no device cuda:7"),
    ],
)
def test_a_mistake_is_one_message_and_its_exit_code(job, arguments, code, said):
    result = clip(*arguments)
    assert (result.exit_code, said in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr


def test_another_encoder_than_that_of_the_run_is_refused(job):
    weights = Path("work/models/tiny/model.safetensors")
    shutil.copytree(weights.parent, "other")
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    Path("other/model.safetensors").write_bytes(raw)
    result = clip("--title", CAKE, "--model", "other")
    assert (result.exit_code, "has other weights or another preprocessing" in result.stderr) == (7, True)
    shutil.copy(weights, "other/model.safetensors")
    assert results("--title", CAKE, "--model", "other")["results"] == results("--title", CAKE)["results"]


def test_a_moved_work_folder_without_its_cache_still_predicts(job):
    before = results("--image", "a.jpg", "--title", CAKE)
    shutil.rmtree("work/embeddings")
    shutil.move("work", "elsewhere")
    assert results("--image", "a.jpg", "--title", CAKE, "--work", "elsewhere") == before


def test_a_run_without_an_encoder_loads_no_torch(job):
    script = (
        "import sys\nfrom pipeline.predict import Predictor\n"
        "Predictor.open(run='words').predict(titles=['a cake'])\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_lines_of_the_readme_run(job, capsys):
    (block,) = re.findall(r"```python\n(from pipeline\.predict import .*?)```", README, re.DOTALL)
    exec(compile(block, "README.md", "exec"), {})
    best = Predictor.open(run="clip_multimodal").predict(images=["a.jpg", "b.jpg"], titles=[CAKE])[0]
    assert capsys.readouterr().out.startswith(f"{best.image} {round(best.views)} (")
