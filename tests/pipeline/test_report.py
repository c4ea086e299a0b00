"""`vp report` as a user types it: what it writes, what it tells, what it survives and what it refuses."""

import contextlib
import json
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.drawn_dataset import draw_dataset
from pipeline.runs import open_run
from tests.command_line import vp
from tests.pipeline.reporting.world import ReportWorld

KINDS = ("linear", "hybrid", "mlp", "trees")
SMALL = ("--epochs", "2", "--hidden-dim", "8", "--batch-size", "16", "--quiet")
LIMIT_BYTES = 2_000_000


def report(*arguments):
    result = vp("report", *arguments)
    assert result.exit_code == 0, result.output
    return result


def numbers(name="hand"):
    return json.loads(Path(f"work/runs/{name}/report.json").read_text(encoding="utf-8"))


def html(name="hand"):
    return Path(f"work/runs/{name}/report.html").read_text(encoding="utf-8")


@pytest.fixture
def world(tmp_path, cache_world, fake_encoder, monkeypatch):
    """A whole run with its dataset, thumbnails and cache; the current folder is where a user would be."""
    world = ReportWorld(tmp_path / "here")
    world.write_dataset()
    world.paint()
    world.embed(partial(cache_world.make, fake_encoder()))
    world.write_run()
    monkeypatch.chdir(tmp_path / "here")
    return world


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one run of every kind of head, which no encoder was needed for."""
    root = tmp_path_factory.mktemp("kinds")
    draw_dataset(root / "dataset", n_train=90, n_test=4)
    with contextlib.chdir(root):
        for kind in KINDS:
            result = vp("train-heads", "--modalities", "words,channel,age", "--head", kind, "--name", kind, *SMALL)
            assert result.exit_code == 0, result.output
    return root


def test_the_only_run_is_reported_in_its_own_folder(world):
    result = report()
    assert "report in work/runs/hand/report.html" in result.stdout
    assert result.stderr == ""
    assert html().startswith("<!DOCTYPE html>")
    assert len(html()) < LIMIT_BYTES
    assert numbers()["format"] == "vp-report"
    assert html().count("data:image/jpeg;base64,") >= 10
    assert "What it resembles" in html()


@pytest.mark.usefixtures("undrawn")
def test_the_last_line_of_stdout_is_json(world):
    facts = json.loads(report("--json", "--quiet").stdout.strip().splitlines()[-1])
    assert (facts["run"], facts["path"], facts["json"]) == (
        "hand",
        "work/runs/hand/report.html",
        "work/runs/hand/report.json",
    )
    assert facts["score"] == numbers()["score"]


@pytest.mark.usefixtures("undrawn")
def test_the_printed_factor_is_that_of_oof_csv(world):
    table = pd.read_csv("work/runs/hand/oof.csv").query("fold >= 0")
    factor = np.exp(np.sqrt(((table["log_pred_final"] - table["log_views"]) ** 2).mean()))
    assert f"a factor of {factor:.1f}" in report().stdout


def test_equal_runs_give_equal_bytes(world):
    report()
    first = html(), Path("work/runs/hand/report.json").read_bytes()
    report()
    assert (html(), Path("work/runs/hand/report.json").read_bytes()) == first


@pytest.mark.usefixtures("undrawn")
def test_no_path_of_the_machine_is_on_the_page(world, tmp_path):
    report("--data", tmp_path / "nowhere", "--work", tmp_path / "here" / "work")
    assert str(tmp_path) not in html() + json.dumps(numbers())


@pytest.mark.usefixtures("undrawn")
def test_a_page_elsewhere_has_its_numbers_beside_it(world):
    report("--out", "client/page.html")
    assert Path("client/page.html").exists()
    assert Path("client/page.json").exists()
    assert not Path("work/runs/hand/report.html").exists()


@pytest.mark.parametrize("out", ["page.json", "dataset"])
def test_a_page_cannot_be_a_folder_or_its_own_numbers(world, out):
    result = vp("report", "--out", out)
    assert result.exit_code == 2
    assert "--out takes the file of the page" in result.stderr


@pytest.mark.usefixtures("undrawn")
def test_the_run_is_still_whole_afterwards(world):
    report()
    assert open_run(Path("work/runs/hand")).verified("oof.csv").exists()
    report()


@pytest.mark.usefixtures("undrawn")
def test_several_runs_need_a_name_and_no_run_says_what_to_do(world):
    world.write_run("other")
    result = vp("report")
    assert (result.exit_code, "choose with --run" in result.stderr) == (2, True)
    assert "work/runs/other/report.html" in report("--run", "other").stdout
    result = vp("report", "--run", "absent")
    assert (result.exit_code, "vp train-heads" in result.stderr) == (7, True)


@pytest.mark.parametrize("damage", ["oof.csv", "metrics.json", "run.json"])
def test_a_damaged_run_is_refused(world, damage):
    path = Path("work/runs/hand") / damage
    path.write_bytes(path.read_bytes()[:-20])
    result = vp("report")
    assert result.exit_code == 7
    assert "vp train-heads" in result.stderr
    assert not Path("work/runs/hand/report.html").exists()


@pytest.mark.parametrize(
    "content", ["{}", '{"format": "vp-run", "schema": 1}', '{"format": "vp-run", "schema": 1, "files": 3}']
)
def test_a_record_that_says_too_little_is_refused(world, content):
    Path("work/runs/hand/run.json").write_text(content)
    assert vp("report").exit_code == 7


@pytest.mark.usefixtures("undrawn")
def test_half_a_surrogate_in_a_title_is_shown_as_what_cannot_be_shown(world):
    path = Path("dataset/train_val.csv")
    header, *rows = path.read_bytes().splitlines()
    column = header.split(b",").index(b"title")
    cells = [row.split(b",") for row in rows]
    for row in cells:
        row[column] = b"half \xed\xa0\xbd a pair"
    path.write_bytes(b"\n".join([header, *(b",".join(row) for row in cells), b""]))
    report()
    assert {case["title"] for case in numbers()["extremes"]["over"]} == {"half \ufffd a pair"}
    assert "half \ufffd a pair" in html()


@pytest.mark.usefixtures("undrawn")
def test_without_thumbnails_the_rest_is_drawn(world):
    shutil.rmtree("dataset/train_val")
    report()
    assert "data:image" not in html()
    assert "no thumbnail" in html()
    assert "What it resembles" in html()


@pytest.mark.usefixtures("undrawn")
def test_thumbnails_that_cannot_be_shown_are_told(world):
    for path in Path("dataset/train_val").iterdir():
        path.write_text("not a picture")
    result = report()
    assert "thumbnails cannot be shown: unidentified" in result.stderr
    assert "thumbnails cannot be shown: unidentified" in html()


@pytest.mark.usefixtures("undrawn")
def test_without_a_cache_the_rest_is_drawn(world):
    shutil.rmtree("work/embeddings")
    result = report()
    assert "warning: The embeddings of fake could not be read" in result.stderr
    assert "The embeddings of fake could not be read" in html()
    assert "What it resembles" not in html()
    assert "data:image/jpeg;base64," in html()


def test_without_a_dataset_the_rest_is_drawn(world):
    shutil.rmtree("dataset")
    result = report()
    assert "warning: The dataset could not be read" in result.stderr
    assert numbers()["errors"] == {"year": [], "age": [], "channel": []}
    assert numbers()["extremes"]["over"]
    assert "Where it errs" not in html()
    assert "What moves the prediction" in html()


def test_a_run_that_is_trained_again_meanwhile_is_not_given_the_old_page(world, monkeypatch):
    from pipeline import report as stage

    def page(*_):
        world.write_run(seconds=99.0)
        return "<html>"

    monkeypatch.setattr(stage, "page", page)
    result = vp("report")
    assert result.exit_code == 7
    assert "trained again" in result.stderr
    assert not Path("work/runs/hand/report.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_folder_that_cannot_be_written_is_a_storage_error(world):
    Path("taken").write_text("a file")
    assert vp("report", "--out", "taken/page.html").exit_code == 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_head_has_a_report(trained, monkeypatch, kind):
    monkeypatch.chdir(trained)
    report("--run", kind)
    found, metrics = numbers(kind), json.loads(Path(f"work/runs/{kind}/metrics.json").read_text())
    assert found["score"]["final"]["msle"] == pytest.approx(metrics["oof_msle_final"])
    assert found["score"]["best"]["msle"] == pytest.approx(metrics["oof_msle"])
    assert {name: part["weight"] for name, part in found["modalities"].items()} == metrics["weights"]
    assert found["caches"] == []
    assert [entry["msle"] for entry in found["splits"]] == [
        value if isinstance(value, float) else None for value in metrics["diagnostics"]["linear_msle_by_split"].values()
    ]
    assert bool(found["training"]) == (kind in {"hybrid", "mlp"})
    page = html(kind)
    assert ('<h2 id="training-title">' in page) == bool(found["training"])
    assert ("How the weights settled" in page) == (kind == "mlp")
    assert not re.search(r"https?:", page)


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("kind", KINDS)
def test_errors_by_group_are_those_that_the_training_measured(trained, monkeypatch, kind):
    monkeypatch.chdir(trained)
    report("--run", kind)
    measured = json.loads(Path(f"work/runs/{kind}/metrics.json").read_text())["diagnostics"]["error_by_year"]
    for ours, theirs in zip(numbers(kind)["errors"]["year"], measured, strict=True):
        assert (ours["label"], ours["rows"]) == (theirs["label"], theirs["rows"])
        assert (ours["msle"], ours["bias"]) == (pytest.approx(theirs["msle"]), pytest.approx(theirs["bias"]))
