"""A plan is made from the dataset and the encoder alone, and a manifest that is not one whole plan is never guessed."""

import importlib.util
import json
import os
import time
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import features.plan
from features.cache import make_plan
from features.errors import CacheError
from features.plan import (
    CachePlan,
    PlannedShard,
    differences,
    digest,
    read_plan,
    shard_key,
    shard_ranges,
    write_plan,
)
from tests.mutations import changed, damaged

MOVE_AWAY = "move its folder away and run `vp extract` again"
QUICK = settings(deadline=None, derandomize=True, max_examples=25)


def plan_of(rows=5, rows_per_shard=2, dims=("image", "text"), **changes) -> CachePlan:
    shards = [
        PlannedShard(kind, index, start, stop, f"key of {kind} {index}", "stamps", f"{kind}-{index}")
        for index, start, stop in shard_ranges(rows, rows_per_shard)
        for kind in dims
    ]
    fields = {
        "semantic": {"weights": "w", "crop": [224, 224], "text": {"mode": "joined"}, "layer": None},
        "environment": {"torch": "2.6", "device": "cpu"},
        "split": "train_val",
        "rows": rows,
        "rows_per_shard": rows_per_shard,
        "batch_size": 4,
        "dims": dict.fromkeys(dims, 3),
        "shards": tuple(shards),
        "superseded": ("image-000000.0123456789abcdef.h5",),
        "created_utc": "2026-01-02T03:04:05+00:00",
    }
    return CachePlan(**fields | changes)


@pytest.fixture
def manifest(tmp_path):
    path = tmp_path / "manifest.json"
    write_plan(path, plan_of())
    return path


def document_of(manifest):
    return json.loads(manifest.read_text())


def refusal(manifest, document=None, read=read_plan):
    """What is said of a manifest with this document."""
    if document is not None:
        manifest.write_text(json.dumps(document))
    with pytest.raises(CacheError) as caught:
        read(manifest)
    message = str(caught.value)
    assert str(manifest) in message
    return message


@QUICK
@given(st.integers(0, 300), st.integers(1, 50))
def test_every_row_is_in_one_shard_in_order_and_only_the_last_is_short(rows, rows_per_shard):
    ranges = list(shard_ranges(rows, rows_per_shard))
    assert [index for index, _, _ in ranges] == list(range(len(ranges)))
    assert [row for _, start, stop in ranges for row in range(start, stop)] == list(range(rows))
    assert all(stop - start == rows_per_shard for _, start, stop in ranges[:-1])
    assert all(0 < stop - start <= rows_per_shard for _, start, stop in ranges)


WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
SCALARS = st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | WORDS
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3))


@QUICK
@given(
    semantic=st.dictionaries(WORDS, JSON, max_size=4),
    environment=st.dictionaries(WORDS, WORDS, max_size=3),
    split=WORDS,
    rows=st.integers(1, 9),
    rows_per_shard=st.integers(1, 4),
    dims=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=2, unique=True),
    superseded=st.lists(WORDS, max_size=3).map(tuple),
    created_utc=WORDS,
)
def test_a_plan_comes_back_from_its_manifest_as_it_was(tmp_path_factory, **fields):
    path = tmp_path_factory.getbasetemp() / "a-plan" / "manifest.json"
    plan = plan_of(**fields)
    write_plan(path, plan)
    assert read_plan(path) == plan
    assert read_plan(path).encoder == plan.encoder


def test_a_missing_manifest_is_none_and_no_error(tmp_path):
    assert read_plan(tmp_path / "nowhere" / "manifest.json") is None


def test_a_folder_in_place_of_a_manifest_is_refused(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    assert MOVE_AWAY in refusal(tmp_path / "manifest.json")


def test_a_manifest_that_was_cut_anywhere_is_refused(manifest):
    raw = manifest.read_bytes()
    for length in range(0, len(raw) - 1, 23):
        manifest.write_bytes(raw[:length])
        assert MOVE_AWAY in refusal(manifest)
    manifest.write_bytes(raw[: raw.rindex(b"}")])
    assert MOVE_AWAY in refusal(manifest)


@pytest.mark.parametrize(
    "raw",
    [b"\xff\xfe{}", b"null", b"[]", b'"vp-cache"', b"{}", b'{"format": "another"}', b"[" * 100_000, b"1" * 5_000],
    ids=["utf-16", "null", "list", "text", "empty", "another format", "deep", "long number"],
)
def test_a_file_of_another_kind_is_no_manifest(manifest, raw):
    manifest.write_bytes(raw)
    assert MOVE_AWAY in refusal(manifest)


@pytest.mark.parametrize("format_", ["vp-shard", None, 1])
def test_a_whole_plan_of_another_format_is_no_manifest(manifest, format_):
    message = refusal(manifest, document_of(manifest) | {"format": format_})
    assert message == f"{manifest} is not a manifest of vp: {MOVE_AWAY}"


@pytest.mark.parametrize("schema", [2, 99])
def test_a_manifest_of_a_newer_version_asks_for_that_version(manifest, schema):
    message = refusal(manifest, document_of(manifest) | {"schema": schema, "something": "new"})
    assert message.endswith("this vp reads schema 1: upgrade vp")


@pytest.mark.parametrize("schema", [0, -1, "1", "2", None, [2], 1.5])
def test_a_manifest_of_an_older_or_no_version_has_to_be_made_again(manifest, schema):
    assert refusal(manifest, document_of(manifest) | {"schema": schema}).endswith(MOVE_AWAY)


def test_a_manifest_with_an_unknown_field_is_refused_by_its_name(manifest):
    document = document_of(manifest)
    for spoilt in (document | {"colour": "red"}, document | {"shards": [document["shards"][0] | {"colour": "red"}]}):
        message = refusal(manifest, spoilt)
        assert "colour" in message
        assert message.endswith(MOVE_AWAY)


def test_a_manifest_without_one_of_its_fields_is_refused_by_its_name(manifest):
    document = document_of(manifest)
    for name in document.keys() - {"format", "schema", "created_utc"}:
        message = refusal(manifest, {key: value for key, value in document.items() if key != name})
        assert name in message
        assert message.endswith(MOVE_AWAY)
    for name in ("kind", "index", "start", "stop", "key"):
        shards = [{key: value for key, value in shard.items() if key != name} for shard in document["shards"]]
        assert name in refusal(manifest, document | {"shards": shards})


@pytest.fixture(scope="module")
def in_use() -> ModuleType:
    """The module as users have it: while these tests run, types are checked at every call, and there they are not."""
    spec = importlib.util.spec_from_file_location("plan_in_use", features.plan.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "wrong",
    [
        {"semantic": [1]},
        {"semantic": None},
        {"environment": 3},
        {"split": 5},
        {"rows": "5"},
        {"rows": 5.0},
        {"rows": -5, "shards": []},
        {"rows_per_shard": 0},
        {"rows_per_shard": 2.0},
        {"rows_per_shard": -2, "shards": []},
        {"batch_size": "4"},
        {"dims": [3, 4]},
        {"dims": {}},
        {"dims": {"image": "3", "text": 4}},
        {"dims": {"image": 0, "text": 4}},
        {"dims": {"image": -3, "text": 4}},
        {"superseded": None},
        {"superseded": "image-000000.0123456789abcdef.h5"},
        {"superseded": [5]},
        {"created_utc": None},
        {"environment": {"torch": 2.6}},
        {"environment": {"device": None}},
        {"dims": {"image": True, "text": 3}},
        {"shards": None},
        {"shards": {}},
        {"shards": [5]},
        {"shards": ["image"]},
    ],
    ids=str,
)
def test_a_field_of_the_wrong_type_is_refused(manifest, in_use, wrong):
    assert in_use.read_plan(manifest) is not None
    assert refusal(manifest, document_of(manifest) | wrong, in_use.read_plan).endswith(MOVE_AWAY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": 5},
        {"index": "0"},
        {"start": None},
        {"stop": "2"},
        {"key": 5},
        {"stamps": 5},
        {"file": 5},
        {"file": "../elsewhere/image-0"},
        {"file": "/etc/passwd"},
    ],
    ids=str,
)
def test_a_shard_with_a_field_of_the_wrong_type_is_refused(manifest, in_use, wrong):
    document = document_of(manifest)
    document["shards"][0] |= wrong
    assert refusal(manifest, document, in_use.read_plan).endswith(MOVE_AWAY)


def gap(shards):
    del shards[2]


def twice(shards):
    shards.append(shards[-1])


def overlap(shards):
    shards[0]["stop"] += 1


def out_of_order(shards):
    shards[0], shards[2] = shards[2], shards[0]


def wrong_number(shards):
    shards[0]["index"] = 1


def too_short(shards):
    shards[-1]["stop"] -= 1


def beyond_the_end(shards):
    shards[-1]["stop"] += 1


def unknown_kind(shards):
    shards.append(shards[0] | {"kind": "audio"})


def one_kind_less(shards):
    shards[:] = [shard for shard in shards if shard["kind"] == "image"]


@pytest.mark.parametrize(
    "spoil",
    [gap, twice, overlap, out_of_order, wrong_number, too_short, beyond_the_end, unknown_kind, one_kind_less],
    ids=lambda spoil: spoil.__name__,
)
def test_shards_that_do_not_cover_every_row_of_every_kind_once_are_refused(manifest, spoil):
    document = document_of(manifest)
    spoil(document["shards"])
    assert refusal(manifest, document).endswith(MOVE_AWAY)


ALIKE = st.tuples(
    st.text("ab", max_size=2),
    st.sampled_from(["image", "text"]),
    st.integers(1, 2),
    st.lists(st.text('a",[', max_size=2), max_size=2),
    st.binary(max_size=1),
)


@settings(deadline=None, derandomize=True, max_examples=150)
@given(ALIKE, ALIKE)
def test_keys_are_equal_only_if_everything_that_they_identify_is(one, other):
    assert (shard_key(*one) == shard_key(*other)) == (one == other)


def test_a_key_does_not_tell_where_in_the_dataset_its_rows_are(cache_world):
    before = make_plan(cache_world.table(), cache_world.recipe())
    cache_world.rows = cache_world.rows[8:16] + cache_world.rows[:8] + cache_world.rows[16:]
    cache_world.write()
    after = make_plan(cache_world.table(), cache_world.recipe())
    for kind in ("image", "text"):
        first, second, third = (shard.key for shard in before.of_kind(kind))
        assert [shard.key for shard in after.of_kind(kind)] == [second, first, third]


def swap_two_videos(world, recipe):
    world.rows[0], world.rows[1] = world.rows[1], world.rows[0]


def rename_a_video(world, recipe):
    world.rows[2][0] = "another"


def change_a_title(world, recipe):
    world.rows[3][1] = "another title"


def change_a_thumbnail(world, recipe):
    world.paint("id-004", 99)


def remove_a_thumbnail(world, recipe):
    (world.data / "train_val" / "id-004.jpg").unlink()


def change_views_and_year(world, recipe):
    world.rows[5][2:] = [123, 2003]


def append_a_video(world, recipe):
    world.rows.append(["new", "a title", 5, 2015])


def use_other_batches(world, recipe):
    recipe["batch_size"] = 8


def use_another_encoder(world, recipe):
    recipe["semantic"] = {"weights": "others", "precision": "fp32"}


def use_another_machine(world, recipe):
    recipe["environment"] = {"device": "another"}


ALL = {(kind, index) for kind in ("image", "text") for index in range(3)}


@pytest.mark.parametrize(
    ("change", "other_keys"),
    [
        (swap_two_videos, {("image", 0), ("text", 0)}),
        (rename_a_video, {("image", 0), ("text", 0)}),
        (change_a_title, {("text", 0)}),
        (append_a_video, {("image", 2), ("text", 2)}),
        (use_other_batches, ALL),
        (use_another_encoder, ALL),
        (change_a_thumbnail, set()),
        (remove_a_thumbnail, set()),
        (change_views_and_year, set()),
        (use_another_machine, set()),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_only_what_decides_the_vectors_of_a_shard_changes_its_key(cache_world, change, other_keys):
    def keys(plan):
        return {(shard.kind, shard.index): shard.key for shard in plan.shards}

    before, options = keys(make_plan(cache_world.table(), cache_world.recipe())), {}
    change(cache_world, options)
    cache_world.write()
    after = keys(make_plan(cache_world.table(), cache_world.recipe(**options)))
    assert {place for place in before if before[place] != after[place]} == other_keys


@pytest.mark.parametrize("change", [change_a_thumbnail, remove_a_thumbnail], ids=lambda change: change.__name__)
def test_stamps_tell_which_thumbnails_have_to_be_looked_at_again(cache_world, change):
    def stamps():
        return [shard.stamps for shard in make_plan(cache_world.table(), cache_world.recipe()).of_kind("image")]

    before = stamps()
    change(cache_world, {})
    assert [one == other for one, other in zip(before, stamps(), strict=True)] == [False, True, True]


def test_a_dataset_has_the_same_keys_wherever_it_lies(make_world, tmp_path):
    plans = [make_plan(world.table(), world.recipe()) for world in (make_world(tmp_path / name) for name in "ab")]
    assert plans[0].identity == plans[1].identity


def test_plans_are_told_apart_by_any_of_their_keys():
    one = plan_of()
    for number in range(len(one.shards)):
        shards = list(one.shards)
        shards[number] = PlannedShard(**vars(shards[number]) | {"key": "another"})
        assert plan_of(shards=tuple(shards)).identity != one.identity


def test_a_plan_is_complete_only_if_each_of_its_shards_has_a_file():
    names = {(shard.kind, shard.index): f"{shard.kind}-{shard.index}.h5" for shard in plan_of().shards}
    whole = plan_of().with_files(names)
    assert whole.is_complete
    assert {(shard.kind, shard.index): shard.file for shard in whole.shards} == names
    for place in names:
        assert not plan_of().with_files(names | {place: ""}).is_complete


@settings(deadline=None, derandomize=True, max_examples=80)
@given(st.dictionaries(st.sampled_from("abc"), JSON, max_size=3), st.data())
def test_two_encoders_differ_exactly_if_some_field_is_named_as_different(ours, data):
    theirs = dict(ours)
    name = data.draw(st.sampled_from("abc"))
    if data.draw(st.booleans()):
        theirs[name] = data.draw(JSON)
    else:
        theirs.pop(name, None)
    assert bool(differences(ours, theirs)) == (digest(ours) != digest(theirs))


def test_differences_name_the_innermost_field_with_both_values():
    ours = {"text": {"mode": "joined", "cut": {"at": 77}}, "same": 1, "new": 5}
    theirs = {"text": {"mode": "joined", "cut": {"at": 64}}, "same": 1, "old": [2]}
    assert differences(ours, theirs) == [
        "new: 5 here, None there",
        "old: None here, [2] there",
        "text.cut.at: 77 here, 64 there",
    ]


def test_the_order_in_which_fields_are_written_does_not_matter():
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})


@pytest.mark.parametrize(
    "change", [{"rows": 10**15}, {"rows": 2**70}, {"rows": 2**70, "rows_per_shard": 2**69}], ids=str
)
def test_an_astronomic_number_of_rows_costs_no_time_and_no_memory(manifest, change):
    start = time.perf_counter()
    assert "do not cover rows" in refusal(manifest, document_of(manifest) | change)
    assert time.perf_counter() - start < 1


def test_a_fifo_or_a_device_in_place_of_a_manifest_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        assert "is no file" in refusal(path)


DOCUMENT = json.loads(
    json.dumps(
        {"format": "vp-cache", "schema": 1}
        | vars(plan_of())  # as it stands in the file
        | {"shards": [vars(shard) for shard in plan_of().shards]}
    )
)


@settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(raw=changed(DOCUMENT).map(json.dumps).map(str.encode) | damaged(json.dumps(DOCUMENT).encode()))
def test_any_change_of_a_manifest_is_refused_or_leaves_a_plan_that_can_be_worked_with(manifest, in_use, raw):
    manifest.write_bytes(raw)
    try:
        plan = in_use.read_plan(manifest)
    except CacheError as error:
        said = str(error)
    else:
        in_use.merged_environment({"torch": "2.7"}, plan.environment)
        in_use.unknown_environment({"torch": "2.7"}, plan.environment)
        assert len(plan.encoder) == len(plan.identity) == 64
        assert sum(shard.rows for shard in plan.shards) == plan.rows * len(plan.dims)
        said = str(manifest)
    assert str(manifest) in said
