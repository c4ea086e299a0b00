"""An unfinished fine-tuning is continued as it was begun, or refused."""

import pytest

from features.errors import CacheError, UsageError
from features.progress import Silent
from pipeline.config import FinetuneConfig
from pipeline.runs import Run
from pipeline.tuning import begun as module
from pipeline.tuning.begun import begin, decisive

PARTS = {"files": {"checkpoints/a_fold0_final.safetensors": "1", "oof.csv": "2"}, "folds": {"digest": "3"}}


@pytest.fixture
def folder(tmp_path):
    return tmp_path / ".tuned.tuning"


def begun(folder, parts=PARTS, precision="fp32", **options):
    run = Run(folder.with_name("a"), parts)
    return begin(folder, "tuned", decisive(FinetuneConfig(**options), run, precision, "videos"), Silent())


def test_states_of_which_nobody_knows_how_they_were_begun_go(folder):
    (folder / "fold0").mkdir(parents=True)
    (folder / "fold0" / "state.json").write_text("{}")
    begun(folder)
    assert [path.name for path in folder.iterdir()] == ["begun.json"]


def test_the_threads_of_the_beginning_are_those_of_the_end(folder, monkeypatch):
    monkeypatch.setattr(module, "own_threads", lambda: 3)
    assert begun(folder) == 3
    monkeypatch.setattr(module, "own_threads", lambda: 8)
    assert begun(folder) == 3


@pytest.mark.parametrize("options", [{"gpus": (0, 1)}, {"num_workers": 3}, {"wandb": "offline"}, {"force": True}])
def test_what_does_not_change_the_result_may_differ(folder, options):
    begun(folder)
    begun(folder, **options)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lr": 0.5}, "lr: 0.5 here, None there"),
        ({"epochs": 7}, "epochs"),
        ({"lora": 4}, "lora"),
        ({"seed": 1}, "seed"),
        ({"precision": "bf16"}, "precision"),
        ({"parts": PARTS | {"folds": {"digest": "4"}}}, "folds"),
        ({"parts": PARTS | {"files": {"checkpoints/a_fold0_final.safetensors": "5"}}}, "a_fold0_final"),
    ],
)
def test_what_changes_the_result_is_refused(folder, options, said):
    begun(folder)
    with pytest.raises(UsageError, match=f"begun otherwise .*{said}.* or give it up with `vp prune --unfinished"):
        begun(folder, **options)


@pytest.mark.parametrize("damage", ["", "[]", "{}", '{"compute_threads": null}'])
def test_a_damaged_note_is_told(folder, damage):
    begun(folder)
    (folder / "begun.json").write_text(damage)
    with pytest.raises(CacheError, match="is damaged"):
        begun(folder)
