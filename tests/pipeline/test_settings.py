"""Options: the command line and vp.toml mean the same, the nearest source wins, and a mistake is named."""

import itertools
import json
import os
import shlex
import subprocess
import typing
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer.main
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cli
from features.errors import UsageError
from pipeline.config import CONFIG_OF, ExtractConfig, SubmitConfig, TrainHeadsConfig, WorkConfig
from pipeline.settings import load, options_of, parse, repeated_flags, to_plain
from tests.mutations import damaged


@pytest.fixture
def vp_toml(tmp_path, monkeypatch):
    """The vp.toml of an empty working folder; it is not there until a test writes it."""
    monkeypatch.chdir(tmp_path)
    return Path("vp.toml")


def loaded(command, given=None, file=None):
    return load(CONFIG_OF[command], command, given or {}, file)


def option(where):
    """The option that is written so on the command line, such as `submit --method`."""
    command, _, key = where.partition(" --")
    return command, next(option for option in options_of(CONFIG_OF[command]) if option.key == key)


VALUES = [
    ("extract --model", "clip b32, large", '"clip b32, large"', "clip b32, large"),
    ("extract --precision", "bf16", '"bf16"', "bf16"),
    ("extract --allow-bin-weights", True, "true", True),
    ("extract --allow-bin-weights", False, "false", False),
    ("extract --batch-size", "8", "8", 8),
    ("extract --batch-size", "8", '"8"', 8),
    ("extract --batch-size", "auto", '"auto"', None),
    ("extract --max-bad", "2.5e-1", "0.25", 0.25),
    ("extract --max-bad", "1", "1", 1.0),
    ("extract --gpus", "0, 1,2", "[0, 1, 2]", (0, 1, 2)),
    ("extract --gpus", "3", '"3"', (3,)),
    ("extract --modalities", "image,text", '["image", "text"]', ("image", "text")),
    ("extract --text", "joined", '"joined"', "joined"),
    ("train-heads --model", ["a,b", "c"], '["a,b", "c"]', ("a,b", "c")),
    ("train-heads --model", ["a,b"], '"a,b"', ("a,b",)),
    ("extract --shard-index", "-3", "-3", -3),
    ("train-heads --folds", "4", "4", 4),
    ("train-heads --split", "kfold", '"kfold"', "kfold"),
    ("train-heads --head", "mlp", '"mlp"', "mlp"),
    ("train-heads --target", "none", '"none"', "none"),
    ("train-heads --wandb", "offline", '"offline"', "offline"),
    ("train-heads --reference-date", "2024-02-29", "2024-02-29", date(2024, 2, 29)),
    ("train-heads --reference-date", "2024-02-29", '"2024-02-29"', date(2024, 2, 29)),
    ("train-heads --on-duplicate", "first", '"first"', "first"),
    ("train-heads --on-bad-label", "drop", '"drop"', "drop"),
    ("finetune --init", "a run", '"a run"', "a run"),
    ("finetune --lr", "3e-4", "3e-4", 3e-4),
    ("finetune --lr", None, '"auto"', None),
    ("train-heads --stream", True, "true", True),
    ("submit --stream", False, "false", False),
    ("submit --stream", None, '"auto"', None),
    ("submit --method", "median", '"median"', "median"),
    ("submit --weights", "fold_0=0.4, fold_1=0.6", '["fold_0=0.4", "fold_1=0.6"]', ("fold_0=0.4", "fold_1=0.6")),
    ("submit --checkpoint", "final", '"final"', "final"),
    ("submit --space", "views", '"views"', "views"),
    ("submit --sample", "a folder/s.csv", '"a folder/s.csv"', Path("a folder/s.csv")),
    ("report --run", "auto", '"auto"', "auto"),
    ("report --out", "a page.html", '"a page.html"', Path("a page.html")),
    ("report --out", "auto", '"auto"', Path("auto")),
    ("finetune --name", "auto", '"auto"', "auto"),
    ("predict --date", "2024-02-29", "2024-02-29", date(2024, 2, 29)),
    ("predict --channel", "auto", '"auto"', "auto"),
    ("compare --runs", ["a", "b"], '["a", "b"]', ("a", "b")),
    ("demo --out", "demo/../x", '"demo/../x"', Path("demo/../x")),
]


@pytest.mark.parametrize(("where", "text", "toml", "value"), VALUES)
def test_an_option_means_the_same_on_the_command_line_and_in_the_file(vp_toml, where, text, toml, value):
    command, known = option(where)
    told = loaded(command, {known.name: text})
    vp_toml.write_text(f"[{command}]\n{known.key} = {toml}\n")
    read = loaded(command)
    assert told == read
    found = getattr(read, known.name)
    assert (type(found), found) == (type(value), value)


def kind_of(known):
    """The type of an option; all choices among words are one."""
    return Literal if typing.get_origin(known.type) is Literal else known.type


def test_no_type_of_option_is_left_out_above():
    types = {kind_of(known) for kind in CONFIG_OF.values() for known in options_of(kind) if not known.only_in_file}
    assert types == {kind_of(option(where)[1]) for where, *_ in VALUES}


@pytest.mark.parametrize(
    ("where", "text", "takes"),
    [
        ("extract --batch-size", "many", "a whole number, not 'many'"),
        ("extract --batch-size", "8.0", "a whole number, not '8.0'"),
        ("extract --gpus", "0,one", "a whole number, not 'one'"),
        ("extract --max-bad", "1,5", "a number, not '1,5'"),
        ("extract --wait-lock", "inf", "a number, not 'inf'"),
        ("extract --precision", "int4", "one of auto, fp32, bf16, fp16, int8, not 'int4'"),
        ("train-heads --reference-date", "2023-02-29", "a date, not '2023-02-29'"),
        ("submit --sample", "", "a path, not ''"),
    ],
)
def test_a_wrong_value_on_the_command_line_is_told_with_its_option(vp_toml, where, text, takes):
    command, known = option(where)
    with pytest.raises(UsageError) as told:
        loaded(command, {known.name: text})
    assert str(told.value) == f"--{known.key} takes {takes}"


@pytest.mark.parametrize(
    ("where", "toml", "takes"),
    [
        ("extract --batch-size", "8.0", "a whole number, not 8.0"),
        ("extract --num-workers", "true", "a whole number, not True"),
        ("extract --num-workers", "[1]", "a whole number, not [1]"),
        ("extract --gpus", "0", "a list, not 0"),
        ("extract --gpus", "[0, 0.5]", "a whole number, not 0.5"),
        ("extract --modalities", '["image", 2]', "text, not 2"),
        ("extract --max-bad", "false", "a number, not False"),
        ("extract --wait-lock", "nan", "a number, not nan"),
        ("extract --precision", "16", "one of auto, fp32, bf16, fp16, int8, not 16"),
        ("extract --allow-bin-weights", '"true"', "true or false, not 'true'"),
        ("extract --allow-bin-weights", "1", "true or false, not 1"),
        ("train-heads --reference-date", "2024", "a date, not 2024"),
        ("train-heads --reference-date", "2024-02-29T10:00:00", "a date, not datetime.datetime(2024, 2, 29, 10, 0)"),
        ("train-heads --name", "7", "text, not 7"),
        ("train-heads --model", "{}", "a list, not {}"),
        ("submit --sample", "7", "a path, not 7"),
    ],
)
def test_a_wrong_value_in_the_file_is_told_with_its_key_and_the_file(vp_toml, where, toml, takes):
    command, known = option(where)
    vp_toml.write_text(f"[{command}]\n{known.key} = {toml}\n")
    with pytest.raises(UsageError) as told:
        loaded(command)
    assert str(told.value) == f"{known.key} in vp.toml takes {takes}"


FLAGS = [
    (known, f"--{known.key}")
    for kind in CONFIG_OF.values()
    for known in options_of(kind)
    if not known.is_flag and not known.only_in_file
]
TEXTS = st.one_of(
    st.text(), st.integers().map(str), st.floats().map(str), st.dates().map(str), st.lists(st.integers()).map(str)
)


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.sampled_from(FLAGS), TEXTS)
def test_any_text_is_a_value_or_a_mistake_that_names_the_option(flag, text):
    known, name = flag
    try:
        parse(known, text, name)
        said = f"{name} takes it"
    except UsageError as error:
        said = str(error)
    assert said.startswith(f"{name} takes ")


TOML = st.recursive(
    st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text() | st.dates() | st.datetimes(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=3,
)
KEYS = [known for kind in CONFIG_OF.values() for known in options_of(kind)]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.sampled_from(KEYS), TOML)
def test_anything_that_toml_can_hold_is_a_value_or_a_mistake_that_names_the_key(known, value):
    try:
        parse(known, value, known.key)
        said = f"{known.key} takes it"
    except UsageError as error:
        said = str(error)
    assert said.startswith((f"{known.key} takes ", f"{known.key} must be a table"))


@pytest.mark.parametrize("where", list(itertools.product((False, True), repeat=3)))
def test_the_nearest_source_wins(vp_toml, where):
    told, in_table, shared = where
    lines = ['work = "shared"'] if shared else []
    lines += ["[submit]", 'work = "table"'] if in_table else []
    vp_toml.write_text("\n".join(lines))
    config = loaded("submit", {"work": "told"} if told else {})
    nearest = [name for name, is_there in (("told", told), ("table", in_table), ("shared", shared)) if is_there]
    assert config.work == Path([*nearest, "work"][0])


@pytest.mark.parametrize("command", CONFIG_OF)
def test_without_file_and_flags_everything_is_at_its_default(vp_toml, command):
    assert loaded(command) == CONFIG_OF[command]()


@pytest.mark.parametrize("command", CONFIG_OF)
def test_keys_above_all_tables_count_for_every_command_that_knows_them(vp_toml, command):
    vp_toml.write_text('data = "videos"\nsep = ";"\n[demo]\nout = "elsewhere"\n')
    reads_the_dataset = {"data": Path("videos"), "sep": ";"} if issubclass(CONFIG_OF[command], WorkConfig) else {}
    draws_its_own = {"out": Path("elsewhere")} if command == "demo" else {}
    assert loaded(command) == CONFIG_OF[command](**reads_the_dataset, **draws_its_own)


def test_the_table_of_another_command_does_not_count(vp_toml):
    vp_toml.write_text('[extract]\nwork = "elsewhere"\nbatch-size = 8\n')
    assert loaded("train-heads") == TrainHeadsConfig()


def test_columns_stand_above_all_tables_or_in_that_of_a_command(vp_toml):
    vp_toml.write_text('[columns]\nviews = "likes"\n[submit.columns]\nid = "video"\n')
    assert loaded("train-heads").columns == {"views": "likes"}
    assert loaded("submit").columns == {"id": "video"}


@pytest.mark.parametrize("text", ["columns = 3\n", "[columns]\nviews = 3\n", "[submit.columns.views]\nis = 'likes'\n"])
def test_columns_that_are_no_table_of_names_are_refused(vp_toml, text):
    vp_toml.write_text(text)
    with pytest.raises(UsageError, match=r"^columns in vp\.toml must be a table of names"):
        loaded("submit")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("wrok = 'w'\n", "unknown key 'wrok'; did you mean 'work'?"),
        ("[sumbit]\n", "unknown key 'sumbit'; did you mean 'submit'?"),
        ("[train_heads]\nepochs = 1\n", "unknown key 'train_heads'; did you mean 'train-heads'?"),
        ("[extract]\nbatch_size = 1\n", "unknown key [extract] 'batch_size'; did you mean 'batch-size'?"),
        ("[submit]\nmetod = 'mean'\n", "unknown key [submit] 'metod'; did you mean 'method'?"),
        ("[score]\nquux = 1\n", "unknown key [score] 'quux'; known are submission, truth"),
        ("[extract.demo]\n", "unknown key [extract] 'demo'; known are "),
        ("[[extract]]\n", "unknown key 'extract'; known are "),
    ],
)
@pytest.mark.parametrize("command", ["extract", "score"])
def test_an_unknown_key_is_told_with_its_table_and_what_was_meant(vp_toml, command, text, said):
    vp_toml.write_text(text)
    with pytest.raises(UsageError) as told:
        loaded(command)
    assert str(told.value).startswith(f"vp.toml: {said}")


def test_a_key_of_another_command_is_unknown_in_this_ones_table(vp_toml):
    vp_toml.write_text("[submit]\nepochs = 1\n")
    with pytest.raises(UsageError, match=r"unknown key \[submit\] 'epochs'"):
        loaded("submit")


def test_a_file_that_is_named_takes_the_place_of_vp_toml(vp_toml):
    vp_toml.write_text('work = "from vp.toml"\ndata = "from vp.toml"\n')
    Path("other.toml").write_text('work = "from other.toml"\n')
    assert loaded("extract", file=Path("other.toml")) == ExtractConfig(work=Path("from other.toml"))


@pytest.mark.parametrize("content", [b"work = ", b"work = 1\nwork = 2\n", b"work = '\xff'\n", b"gpus = " + b"[" * 5000])
def test_a_file_that_cannot_be_read_is_named(vp_toml, content):
    Path("my.toml").write_bytes(content)
    with pytest.raises(UsageError, match=r"^my\.toml is not readable as TOML: "):
        loaded("extract", file=Path("my.toml"))


def test_a_file_that_is_not_there_is_told_to_be_missing(vp_toml):
    with pytest.raises(UsageError, match=r"^nope\.toml does not exist: --config names a file of options in TOML$"):
        loaded("extract", file=Path("nope.toml"))


SOUND = b"""data = "videos"
sep = ";"
[columns]
views = "likes"
[train-heads]
epochs = 20
lr = 1e-3
modalities = ["image", "age"]
reference-date = 2024-05-01
search = false
"""


@settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damaged(SOUND), st.sampled_from(["train-heads", "extract", "status"]))
def test_any_change_of_the_file_gives_a_configuration_or_a_usage_error(vp_toml, raw, command):
    vp_toml.write_bytes(raw)
    try:
        assert isinstance(loaded(command), CONFIG_OF[command])
        said = ""
    except UsageError as error:
        said = str(error)
    assert len(said) < 1000


@pytest.mark.parametrize("seed", [-1, 2**32])
@pytest.mark.parametrize("command", ["train-heads", "finetune"])
def test_a_seed_that_no_generator_takes_is_a_usage_error(vp_toml, command, seed):
    with pytest.raises(UsageError, match=f"^--seed must lie between 0 and 4294967295, not at {seed}$"):
        loaded(command, {"seed": str(seed)})
    assert loaded(command, {"seed": "4294967295"}).seed == 2**32 - 1


def test_values_that_do_not_fit_together_are_a_usage_error(vp_toml):
    vp_toml.write_text("[train-heads]\ndropout = 1\nlr = 0\n")
    with pytest.raises(UsageError, match=r"--lr must be above 0, not .*; --dropout must be .* at most 0.99"):
        loaded("train-heads")


@dataclass(frozen=True)
class Parent:
    first: Annotated[int, "one"] = 1
    second: Annotated[int | None, "two"] = None


@dataclass(frozen=True)
class Child(Parent):
    third: Annotated[Path, "three"] = Path("x")
    first: Annotated[str, "another one"] = "a"


def test_own_options_come_first_and_an_overridden_one_comes_once():
    found = [(option.name, option.type, option.help, option.default) for option in options_of(Child)]
    assert found == [
        ("third", Path, "three", Path("x")),
        ("first", str, "another one", "a"),
        ("second", int | None, "two", None),
    ]


@pytest.mark.parametrize(
    ("where", "shown_type", "shown_default"),
    [
        ("extract --model", "TEXT", "ViT-L-14"),
        ("extract --gpus", "A,B,...", ""),
        ("extract --precision", "auto|fp32|bf16|fp16|int8", "auto"),
        ("extract --batch-size", "N", "auto"),
        ("extract --max-bad", "X", "0.01"),
        ("extract --work", "PATH", "work"),
        ("train-heads --model", "TEXT", ""),
        ("train-heads --reference-date", "YYYY-MM-DD", ""),
        ("submit --sample", "PATH", ""),
    ],
)
def test_help_shows_what_to_write_and_what_is_taken_otherwise(where, shown_type, shown_default):
    _, shown = option(where)
    assert (shown.shown_type, shown.shown_default) == (shown_type, shown_default)


PATHS = st.text(st.characters(exclude_characters="\0"), min_size=1).map(Path)
TRAIN_HEADS = typer.main.get_command(cli.app).commands["train-heads"]


@settings(deadline=None, derandomize=True, max_examples=30)
@given(data=PATHS, work=PATHS)
def test_repeated_flags_give_the_next_command_the_same_folders(data, work):
    words = shlex.split(repeated_flags(ExtractConfig(data=data, work=work)))
    parameters = TRAIN_HEADS.make_context("train-heads", words).params
    told = {name: text for name, text in parameters.items() if name in {"data", "work"} and text is not None}
    assert loaded("train-heads", told, Path(os.devnull)) == TrainHeadsConfig(data=data, work=work)


def test_repeated_flags_are_safe_in_a_real_shell():
    work = Path("""it's "my" $HOME; `ls` *\\""")
    command = "printf '%s\\n'" + repeated_flags(ExtractConfig(work=work))
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["--work", str(work)]


def test_how_the_tables_are_read_is_repeated_too():
    config = ExtractConfig(sep=";", encoding="cp1252", on_bad_label="drop", forbid_overlap=True, columns={"id": "key"})
    assert repeated_flags(config) == " --sep ';' --encoding cp1252 --on-bad-label drop --forbid-overlap"


def test_defaults_need_no_repeating():
    assert repeated_flags(ExtractConfig(data=Path("./dataset/"), model="tiny")) == ""


RELATIVE = PATHS.filter(lambda path: not path.is_absolute())
TEXT_TUPLES = st.lists(st.text()).map(tuple)
CONFIGS = {
    ExtractConfig: st.fixed_dictionaries(
        {
            "data": RELATIVE,
            "columns": st.dictionaries(st.text(), st.text()),
            "gpus": st.lists(st.integers()).map(tuple),
            "batch_size": st.none() | st.integers(1),
            "max_bad": st.floats(0, 1),
            "allow_bin_weights": st.booleans(),
        }
    ),
    TrainHeadsConfig: st.fixed_dictionaries(
        {"model": TEXT_TUPLES, "reference_date": st.none() | st.dates(), "seed": st.integers(0, 2**32 - 1)}
    ),
    SubmitConfig: st.fixed_dictionaries(
        {"run": TEXT_TUPLES, "sample": st.none() | RELATIVE, "method": st.sampled_from(["mean", "median"])}
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
@settings(deadline=None, derandomize=True, max_examples=20)
@given(data=st.data())
def test_a_configuration_that_was_kept_as_json_can_be_had_again(kind, data):
    config = kind(**data.draw(CONFIGS[kind]))
    kept = json.loads(json.dumps(to_plain(config)))
    assert kind(**{option.name: parse(option, kept[option.name], option.key) for option in options_of(kind)}) == config


def test_no_absolute_path_is_kept():
    kept = to_plain(SubmitConfig(data=Path("/home/someone/videos"), sample=Path("/tmp/sample.csv"), work=Path("a/b")))
    assert (kept["data"], kept["sample"], kept["work"]) == ("videos", "sample.csv", "a/b")


def test_a_kept_table_is_a_copy():
    columns = {"views": "likes"}
    kept = to_plain(ExtractConfig(columns=columns))
    columns["views"] = "sales"
    assert kept["columns"] == {"views": "likes"}
