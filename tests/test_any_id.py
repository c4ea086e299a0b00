"""An id is text, exactly as written, on the whole way from the table to the submission."""

import csv
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from features.config import DatasetConfig
from features.errors import DataError
from features.store import EmbeddingStore
from features.videos import MAX_ID_CHARACTERS, read_videos
from tests.command_line import vp

ODD_IDS = [
    *("NA", "nan", "null", "None", "1e10", "1.0", "00123", "True", "-Abc", "=1+1", "+1", "@x", " padded ", "-", "#1"),
    *("a,b", 'a"b', "two\nlines", "a\r\nb", "a\rb", "tab\tid", "../../etc/passwd", "C:\\x", "%2e%2e", "x" * 5000),
    *(
        "日本",
        "e\u0301",
        "\u00e9",
        "\U0001f600",
        "\u202e",
        "\ufeffx",
        "\x1b[31m",
        "a\u2028b",
        "a\x85",
        "\x1a",
        "'",
        "NaN",
    ),
]
ANY_ID = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12)
ANY_IDS = st.lists(ANY_ID.filter(str.strip), min_size=6, max_size=12, unique=True)


def write(path, ids, *, views):
    rows = [[id_, f"title {row}", 2010 + row % 9, *([row] if views else [])] for row, id_ in enumerate(ids)]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["id", "title", "year", *(["views"] if views else [])], *rows])


def column(path):
    with Path(path).open(newline="", encoding="utf-8") as file:
        return [row[0] for row in csv.reader(file)][1:]


def go_the_whole_way(world, encoder, ids):
    """Table, cache, run, submission; the vectors of texts and the age are enough."""
    for split, views in (("train_val", True), ("test", False)):
        write(world.data / f"{split}.csv", ids, views=views)
        table = read_videos(DatasetConfig(data=world.data), split)
        folder = Path("work/embeddings/fake") / split
        world.make(encoder, folder=folder, table=table, rows_per_shard=4)
        assert EmbeddingStore.open(folder).read("image").ids == ids
    options = ("--model", "fake", "--head", "linear", "--modalities", "text,age", "--no-diagnostics", "--no-search")
    for command in (("train-heads", *options), ("submit",), ("verify", "--no-sources")):
        result = vp(*command, "--data", world.data)
        assert result.exit_code == 0, result.output
    assert column("work/runs/clip_multimodal/folds.csv") == ids
    assert column("work/runs/clip_multimodal/oof.csv") == ids
    assert column("work/submissions/clip_multimodal_ensemble_mean.csv") == ids


def test_ids_that_other_tools_change_come_back_as_they_were(cache_world, fake_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    go_the_whole_way(cache_world, fake_encoder(), ODD_IDS)


@settings(deadline=None, derandomize=True, max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ids=ANY_IDS)
def test_any_ids_come_back_as_they_were(cache_world, fake_encoder, tmp_path, monkeypatch, ids):
    monkeypatch.chdir(tmp_path)
    go_the_whole_way(cache_world, fake_encoder(), ids)


@pytest.mark.parametrize("bad", ["\ud800", "a\udfffb", "nul\0", " ", "", "x" * (MAX_ID_CHARACTERS + 1)])
def test_an_id_that_no_file_could_keep_is_refused_with_its_line(cache_world, bad):
    path = cache_world.data / "train_val.csv"
    path.write_bytes(f'id,title,year,views\nok,t,2020,1\n"{bad}",t,2020,1\n'.encode("utf-8", "surrogatepass"))
    with pytest.raises(DataError, match="line 3: the id must"):
        cache_world.table()
