"""The model card: true, escaped, and enough to make the run again."""

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.drawn_dataset import CHANNELS, draw_dataset
from pipeline.model_card import escaped
from pipeline.runs import open_run
from tests.command_line import vp


@pytest.fixture
def job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_dataset(tmp_path / "dataset", n_train=60, n_test=6)
    return tmp_path


def trained(*arguments, name="run"):
    result = vp("train-heads", "--head", "linear", "--modalities", "channel,age", "--name", name, "--quiet", *arguments)
    assert result.exit_code == 0, result.output
    return open_run(Path("work/runs") / name)


def card(run):
    return run.verified("model_card.md").read_text(encoding="utf-8")


def test_the_card_says_what_the_metrics_say(job):
    run = trained()
    text, metrics = card(run), run.read_json("metrics.json")
    assert text.splitlines()[0] == "# run"
    for number in (metrics["oof_msle"], metrics["oof_msle_constant"], *metrics["weights"].values()):
        assert f"{number:.4f}" in text
    for level in metrics["coverage"]:
        assert f"Intervals of {level['level']:.0%} held for {level['overall']['share']:.1%} of 60 videos" in text
    for split, score in metrics["diagnostics"]["linear_msle_by_split"].items():
        assert f"| linear head, --split {split} | {score:.4f} |" in text
    assert "It is no cause" in text
    assert "60 training videos of 6 channels" in text


@pytest.mark.parametrize("split", ["kfold", "stratified", "time"])
def test_every_split_has_its_limits(job, split):
    text = card(trained("--split", split, "--no-diagnostics"))
    told = {
        "kfold": "Folds are random: ",
        "stratified": "Folds are random, alike in their views: ",
        "time": "Later videos",
    }
    assert f"- {told[split]}" in text
    assert "linear head, --split" not in text


def test_the_command_on_the_card_makes_the_same_run_again(job):
    run = trained("--folds", "4", "--seed", "7", "--no-search", "--no-diagnostics")
    first = (card(run), run.read_json("metrics.json")["oof_msle"], run.part("folds"))
    command = next(line for line in first[0].splitlines() if line.startswith("$ vp train-heads"))
    assert vp(*shlex.split(command.removeprefix("$ vp ")), "--quiet").exit_code == 0
    again = open_run(Path("work/runs/run"))
    assert (card(again), again.read_json("metrics.json")["oof_msle"], again.part("folds")) == first


def test_no_absolute_path_stands_on_the_card(job):
    folds = job / "folds.csv"
    run = trained("--no-diagnostics")
    folds.write_bytes((run.folder / "folds.csv").read_bytes())
    text = card(
        trained("--no-diagnostics", "--split", "file", "--fold-file", folds, "--data", job / "dataset", name="of_file")
    )
    assert str(job) not in text
    assert "--fold-file folds.csv" in text
    assert "Folds are those of a file" in text


def test_names_from_the_dataset_are_escaped(job):
    path = Path("dataset/train_val.csv")
    text = path.read_text(encoding="utf-8")
    for number, name in enumerate(CHANNELS):
        text = text.replace(name, f"<b>|[{number}](x)")
    path.write_text(text, encoding="utf-8")
    shown = card(trained())
    assert shown.count(r"| \<b\>\|\[") == 5
    assert "<b>" not in shown


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_escaped_text_is_one_line_without_a_bare_mark(text):
    shown = escaped(text)
    assert len(shown.splitlines()) <= 1
    bare = shown
    for mark in r"\`*_{}[]()<>#+-.!|~&$:":
        bare = bare.replace(f"\\{mark}", "")
    assert not set(bare) & set("`*_[]()<>#|~&$")


def test_the_card_is_one_of_the_files_that_a_run_vouches_for(job):
    run = trained("--no-diagnostics")
    assert "model_card.md" in json.loads((run.folder / "run.json").read_text())["files"]
