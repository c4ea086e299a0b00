"""The commands that mend are those that a user can type."""

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from features.plan import CachePlan, PlannedShard
from pipeline.config import CONFIG_OF, TrainHeadsConfig, WorkConfig
from pipeline.repairs import extract_command, train_command
from pipeline.settings import options_of, parse, to_plain


def plan(source, *kinds):
    shards = tuple(PlannedShard(kind, 0, 0, 1, "key") for kind in kinds)
    return CachePlan({}, {"source": source}, "train_val", 1, 1, 1, dict.fromkeys(kinds, 2), shards)


@pytest.mark.parametrize(
    ("tag", "made_by", "command"),
    [
        ("ViT-L-14", plan("openai/clip-vit-large-patch14", "image", "text"), "vp extract --model ViT-L-14"),
        ("tiny", plan("tiny", "text"), "vp extract --model tiny --modalities text"),
        ("tiny", plan("tiny", "image", "title", "description"), "vp extract --model tiny --text separate"),
        ("tiny", plan("tiny", "title"), "vp extract --model tiny --text separate --modalities title"),
        ("me--clip", plan("me/clip", "image", "text"), "vp extract --model me/clip"),
        ("me--clip", None, "vp extract --model me/clip"),
        ("my-clip", plan("my clip", "image", "text"), "vp extract --model 'PATH/TO/my clip'"),
    ],
)
def test_extract_names_the_encoder_as_a_user_would(tag, made_by, command):
    assert extract_command(tag, made_by, WorkConfig()) == command


def test_folders_that_are_not_the_default_are_repeated():
    config = WorkConfig(data=Path("my data"), work=Path("w"))
    assert extract_command("tiny", None, config).endswith("--model tiny --data 'my data' --work w")
    assert train_command("r", config) == "vp train-heads --name r --data 'my data' --work w"


def test_a_run_is_trained_again_with_its_own_options():
    trained = TrainHeadsConfig(
        head="mlp", folds=5, model=("a", "b"), modalities=("image", "age"), lr=0.01, diagnostics=False, name="r"
    )
    words = shlex.split(train_command("r", WorkConfig(), to_plain(trained)))
    options = {option.key: option for option in options_of(CONFIG_OF["train-heads"])}
    assert words[:2] == ["vp", "train-heads"]
    assert words.count("--model") == 2
    assert "--no-diagnostics" in words
    assert {word[2:].removeprefix("no-") for word in words if word.startswith("--")} <= set(options)
    assert parse(options["lr"], words[words.index("--lr") + 1], "--lr") == 0.01
    assert CliRunner().invoke(cli.app, [*words[1:], "--data", "nowhere"]).exit_code == 3


def test_a_record_that_holds_anything_else_gives_the_plain_command():
    assert train_command("r", WorkConfig(), ["no", "table"]) == "vp train-heads --name r"
