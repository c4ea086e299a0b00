"""A run that was changed, with its digests or without, is refused as damaged before any work is spent on it."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.errors import CacheError
from pipeline.oof import read_oof
from pipeline.run_record import METRICS_SHAPE, RECORD_SHAPE, open_whole_run, read_metrics
from tests.command_line import vp
from tests.mutations import changed, damaged

FUZZ = settings(
    deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
RUN = Path("work/runs/lines")
RECORD, METRICS, OOF = RUN / "run.json", RUN / "metrics.json", RUN / "oof.csv"


@pytest.fixture(scope="module")
def spoiled(finished_work, tmp_path_factory):
    """A copy of the job; each test that changes a file puts its bytes back."""
    root = tmp_path_factory.mktemp("spoiled") / "job"
    shutil.copytree(finished_work, root, copy_function=shutil.copy2)
    before = Path.cwd()
    os.chdir(root)
    yield {path: path.read_bytes() for path in RUN.rglob("*") if path.is_file()}
    os.chdir(before)


def rewrite(files, path, raw):
    """One file of the run, with the digest that run.json then needs; all others as they were."""
    for other, original in files.items():
        other.write_bytes(original)
    path.write_bytes(raw)
    if path != RECORD:
        record = json.loads(files[RECORD])
        record["files"][path.relative_to(RUN).as_posix()] = hashlib.sha256(raw).hexdigest()
        RECORD.write_text(json.dumps(record))


def refusal(read):
    """What is said of a damaged file; empty if it was read."""
    try:
        read()
    except CacheError as error:
        return str(error)
    return ""


def as_json(document):
    return json.dumps(document).encode()


def test_a_run_as_it_was_written_is_whole(spoiled):
    rewrite(spoiled, RECORD, spoiled[RECORD])
    run = open_whole_run(RUN)
    assert run.record.keys() >= RECORD_SHAPE.keys()
    assert read_metrics(run).keys() >= METRICS_SHAPE.keys() - {"diagnostics", "before_tuning"}
    assert read_oof(run).ids == [f"id-{row:03d}" for row in range(22)]


def test_only_the_parts_that_are_asked_for_have_to_be_right(spoiled):
    metrics = json.loads(spoiled[METRICS])
    rewrite(spoiled, METRICS, as_json(metrics | {"coverage": 3}))
    assert read_metrics(open_whole_run(RUN), "fold_msle")["fold_msle"] == metrics["fold_msle"]
    with pytest.raises(CacheError, match=r"it\.coverage must be a list, not 3"):
        read_metrics(open_whole_run(RUN))


RECORD_LIES = [
    ({"sources": []}, "its sources give the modalities"),
    ({"modalities": ["image", "text"]}, "its modalities are"),
    ({"encoders": {}}, "which is none of the run"),
    ({"reference_date": "soon"}, "its reference_date is 'soon'"),
    ({"reference_date": "NaT"}, "its reference_date is 'NaT'"),
    ({"folds": {"split": "kfold", "n": 2**60}}, "1152921504606846976 folds and 12 files"),
    ({"seeds": []}, "it has no seeds"),
    ({"target": "log2"}, "one of log1p, none"),
    ({"files": {"../../../etc/passwd": "0"}, "folds": {"split": "kfold", "n": 1}}, "lies outside the run"),
    ({"files": {"/etc/passwd": "0"}, "folds": {"split": "kfold", "n": 1}}, "lies outside the run"),
]


@pytest.mark.parametrize(("change", "said"), RECORD_LIES, ids=str)
def test_a_record_that_contradicts_itself_is_damaged(spoiled, change, said):
    rewrite(spoiled, RECORD, as_json(json.loads(spoiled[RECORD]) | change))
    with pytest.raises(CacheError, match=said):
        open_whole_run(RUN)


@pytest.mark.parametrize("tag", ["..", "a/b", "/etc"])
def test_an_encoder_never_leads_out_of_the_work_folder(spoiled, tag):
    text = spoiled[RECORD].decode().replace('"fake"', json.dumps(tag))
    rewrite(spoiled, RECORD, text.encode())
    with pytest.raises(CacheError, match="which is none of the run"):
        open_whole_run(RUN)


METRIC_LIES = [
    ({"fold_msle": [1.0]}, "fold_msle has 1 entries for 3 folds"),
    ({"weights": {"image": 1.0}}, "are not all of the modalities image"),
    ({"importance": {"image": {}, "text": {}, "age": {}}}, "importance does not tell"),
    (
        {"intervals": {"pooled": [{"level": 0.5, "lower_offset": 0, "upper_offset": 0, "x": 1}], "by_bin": {}}},
        "exactly",
    ),
]


@pytest.mark.parametrize(("change", "said"), METRIC_LIES, ids=str)
def test_metrics_that_contradict_themselves_are_damaged(spoiled, change, said):
    rewrite(spoiled, METRICS, as_json(json.loads(spoiled[METRICS]) | change))
    with pytest.raises(CacheError, match=said):
        read_metrics(open_whole_run(RUN))


@FUZZ
@given(st.data())
def test_any_change_of_a_json_file_is_told_as_damage_or_makes_no_difference(spoiled, data):
    path = data.draw(st.sampled_from([RECORD, METRICS]))
    original = spoiled[path]
    rewrite(spoiled, path, data.draw(changed(json.loads(original)).map(as_json) | damaged(original)))
    said = refusal(lambda: read_metrics(open_whole_run(RUN)))
    assert said == "" or "lines" in said


@FUZZ
@given(st.data())
def test_any_change_of_the_predictions_is_told_as_damage_or_leaves_a_table_of_finite_numbers(spoiled, data):
    rewrite(spoiled, OOF, data.draw(damaged(spoiled[OOF])))
    if said := refusal(lambda: read_oof(open_whole_run(RUN))):
        assert "oof.csv is damaged" in said
    else:
        oof = read_oof(open_whole_run(RUN))
        assert (abs(oof.best[oof.validated]) < float("inf")).all()
        assert len(set(oof.ids)) == len(oof.ids) > 0


CELLS = ["fold,nan", "fold,1.5", "fold,99999999999999999999", "log_views,x", "log_pred_best,inf", "id,id-001"]


@pytest.mark.parametrize("cell", CELLS)
def test_a_cell_that_no_run_writes_is_damage(spoiled, cell):
    name, value = cell.split(",")
    lines = [line.split(",") for line in spoiled[OOF].decode().splitlines()]
    lines[1][lines[0].index(name)] = value
    rewrite(spoiled, OOF, "\n".join(map(",".join, lines)).encode())
    with pytest.raises(CacheError, match=r"oof\.csv is damaged"):
        read_oof(open_whole_run(RUN))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("path", "change"),
    [
        (RECORD, {"sources": [True]}),
        (RECORD, {"encoders": "fake"}),
        (RECORD, {"created_utc": None}),
        (METRICS, {"importance": {}}),
        (METRICS, {"coverage": [{"level": 2}]}),
        (METRICS, {"oof_msle_constant": "1"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("command", [("submit",), ("report",), ("predict", "--title", "x")])
def test_every_command_that_reads_a_run_ends_with_the_code_of_damage_or_does_not_mind(spoiled, path, change, command):
    Path("dataset/test.csv").write_text("id,title,year\nid-001,a title,2020\n")
    rewrite(spoiled, path, as_json(json.loads(spoiled[path]) | change))
    result = vp(*command)
    needs_it = path == RECORD or command[0] == "report"
    assert result.exit_code == 7 if needs_it else result.exit_code in (0, 2, 3, 7), result.output
