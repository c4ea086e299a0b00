"""A checkpoint is read as it was written, or refused before it predicts anything."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from features.errors import CacheError
from heads.fitted import Branch, FittedHeads, Head
from heads.inputs import Block, Inputs
from heads.readers import AsIs, Knots
from heads.targets import Standardisation, Target
from pipeline.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tests.mutations import changed, damaged


def draw_checkpoint():
    """A member that reads an image and an age, with numbers that need every digit."""
    rng = np.random.default_rng(0)

    def layer(*shape):
        return rng.normal(size=shape).astype(np.float32)

    image = Branch(reader=AsIs(3), weights=(layer(3, 2), layer(2, 1)), biases=(layer(2), layer(1)))
    age = Branch(reader=Knots(layer(3)), table=layer(3, 2), weights=(layer(2, 1),), biases=(layer(1),))
    heads = FittedHeads(
        heads={"image": Head((image,)), "age": Head((age,))},
        weights=np.array([2 / 3, 1 / 3]),
        raw_weights=np.array([0.1, 0.9]),
        intercept=0.1 + 0.2,
        standardisation=Standardisation(mean=9 + 1 / 3, sd=2**0.5),
        target=Target("log1p"),
    )
    return Checkpoint(heads, "clip_multimodal", 2, "best", {"tiny": "f" * 64}, "2025-04-15T00:00:00")


CHECKPOINT = draw_checkpoint()
RNG = np.random.default_rng(1)
INPUTS = Inputs(
    (
        Block.embedding("image", RNG.normal(size=(9, 3)), np.arange(9) != 4),
        Block.scalar("age", RNG.uniform(-3, 3, size=9)),
    )
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a checkpoint."""
    path = tmp_path_factory.mktemp("whole") / "x.safetensors"
    write_checkpoint(path, CHECKPOINT)
    return path.read_bytes()


def facts(checkpoint):
    return {name: value for name, value in vars(checkpoint).items() if name != "heads"}


def header_of(raw):
    """The JSON at the head of a safetensors file, and where it ends."""
    end = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:end]), end


def rewritten(raw, change):
    """A whole safetensors file whose tensors and document were changed by `change`."""
    arrays, document = dict(load(raw)), json.loads(header_of(raw)[0]["__metadata__"]["vp"])
    document = change(arrays, document)
    return save(arrays, metadata={"vp": json.dumps(document)})


def read(folder, raw):
    path = folder / "x.safetensors"
    path.write_bytes(raw)
    return read_checkpoint(path)


def test_what_was_written_predicts_the_same_to_the_last_bit(whole, tmp_path):
    again = read(tmp_path, whole)
    predicted = CHECKPOINT.heads.predict(INPUTS)
    assert np.unique(predicted).size > 1
    np.testing.assert_array_equal(again.heads.predict(INPUTS), predicted)
    np.testing.assert_array_equal(again.heads.contributions(INPUTS), CHECKPOINT.heads.contributions(INPUTS))


def test_everything_else_of_the_heads_is_kept_too(whole, tmp_path):
    kept = read(tmp_path, whole).heads
    assert kept.to_metadata() == CHECKPOINT.heads.to_metadata()
    np.testing.assert_array_equal(kept.raw_weights, CHECKPOINT.heads.raw_weights)


def test_the_facts_of_a_checkpoint_come_back_as_they_were(tmp_path):
    changes = {
        "run": 'Ünï "run" 日本\n\0',
        "fold": 10**6,
        "moment": "final",
        "encoders": {"ViT-L-14": "a" * 64, "": "", "😱": "\\"},
        "reference_date": "NaT",
        "seed": 10**6,
    }
    write_checkpoint(tmp_path / "x.safetensors", replace(CHECKPOINT, **changes))
    assert facts(read_checkpoint(tmp_path / "x.safetensors")) == changes


def test_equal_checkpoints_are_equal_bytes(tmp_path):
    encoders = {"b": "1" * 64, "a": "2" * 64}
    turned = dict(reversed(encoders.items()))
    paths = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for path, changes in zip(paths, ({"encoders": encoders}, {"encoders": turned}, {"fold": 1}), strict=True):
        write_checkpoint(path, replace(CHECKPOINT, **changes))
    one, two, other = (path.read_bytes() for path in paths)
    assert one == two != other


def test_a_file_that_was_cut_anywhere_is_refused(whole, tmp_path):
    for length in [*range(0, len(whole), 13), len(whole) - 1]:
        with pytest.raises(CacheError, match="is missing or damaged"):
            read(tmp_path, whole[:length])


def test_a_file_that_goes_on_is_refused(whole, tmp_path):
    with pytest.raises(CacheError, match="is missing or damaged"):
        read(tmp_path, whole + b"\0")


def flipped(raw, byte, bit):
    changed = bytearray(raw)
    changed[byte] ^= 1 << bit
    return bytes(changed)


def test_any_flipped_bit_in_the_length_of_the_header_is_noticed(whole, tmp_path):
    for bit in range(64):
        with pytest.raises(CacheError, match="is missing or damaged"):
            read(tmp_path, flipped(whole, bit // 8, bit % 8))


def test_a_flipped_bit_in_the_header_is_mostly_refused_and_never_a_crash(whole, tmp_path):
    _, end = header_of(whole)
    bytes_of_header = range(8, end, 5)
    refused = 0
    for byte in bytes_of_header:
        try:
            read(tmp_path, flipped(whole, byte, byte % 7))  # what is read all the same has another fact, such as a name
        except CacheError:
            refused += 1
    assert len(bytes_of_header) > refused > 0.5 * len(bytes_of_header)


def test_a_file_that_was_taken_apart_and_put_together_again_is_whole(whole, tmp_path):
    again = read(tmp_path, rewritten(whole, lambda arrays, document: document))
    np.testing.assert_array_equal(again.heads.predict(INPUTS), CHECKPOINT.heads.predict(INPUTS))


@pytest.mark.parametrize(
    ("version", "said"),
    [
        ({"schema": 2}, "format 'vp-heads' 2, not 'vp-heads' 1"),
        ({"schema": "1"}, "format 'vp-heads' '1', not 'vp-heads' 1"),
        ({"format": "vp-towers"}, "format 'vp-towers' 1, not 'vp-heads' 1"),
    ],
)
def test_another_version_is_refused_with_both_versions(whole, tmp_path, version, said):
    with pytest.raises(CacheError) as told:
        read(tmp_path, rewritten(whole, lambda arrays, document: document | version))
    assert said in str(told.value)
    assert "x.safetensors" in str(told.value)
    assert "vp train-heads" in str(told.value)


@pytest.mark.parametrize("key", ["format", "schema", "heads", "run", "fold", "moment", "encoders", "reference_date"])
def test_no_part_of_the_metadata_may_be_missing(whole, tmp_path, key):
    def without(arrays, document):
        del document[key]
        return document

    with pytest.raises(CacheError, match=rf"is missing or damaged \('{key}'\)"):
        read(tmp_path, rewritten(whole, without))


@pytest.mark.parametrize("document", [[], "vp-heads", 1, None, True, ["format", "schema"]])
def test_metadata_that_is_no_object_is_refused(whole, tmp_path, document):
    with pytest.raises(CacheError, match="is missing or damaged"):
        read(tmp_path, rewritten(whole, lambda *_: document))


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"vp": "{"}, {"vp": ""}])
def test_a_foreign_safetensors_file_is_refused(tmp_path, metadata):
    with pytest.raises(CacheError, match="is missing or damaged"):
        read(tmp_path, save({"weight": np.zeros((2, 2), np.float32)}, metadata=metadata))


def test_tensors_that_are_not_those_of_the_metadata_are_refused(whole, tmp_path):
    names = sorted(load(whole))
    assert names

    def lost(arrays, document):
        del arrays[name]
        return document

    def wider(arrays, document):
        arrays[name] = np.concatenate([arrays[name], arrays[name]])
        return document

    def more(arrays, document):
        arrays[f"{name}.more"] = arrays[name]
        return document

    for name in names:
        for change in (lost, wider, more):
            with pytest.raises(CacheError, match=f"is missing or damaged .*{name}"):
                read(tmp_path, rewritten(whole, change))


@pytest.mark.parametrize("raw", [b"", b"\0" * 8, b"\xff" * 16, b"PK\x03\x04" + b"\0" * 60, b"\x80\x04." + b"\0" * 60])
def test_any_other_file_of_that_name_is_refused(tmp_path, raw):
    with pytest.raises(CacheError, match="is missing or damaged"):
        read(tmp_path, raw)


def test_a_checkpoint_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CacheError, match=r"x\.safetensors is missing or damaged"):
        read_checkpoint(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.ckpt", "x.safetensors.bak", "x"])
def test_a_file_of_another_kind_is_not_even_opened(name):
    with pytest.raises(CacheError, match="vp reads no other checkpoints, and unpickles none"):
        read_checkpoint(Path("/nowhere") / name)


def test_writing_leaves_no_other_file(tmp_path):
    write_checkpoint(tmp_path / "new" / "x.safetensors", CHECKPOINT)
    write_checkpoint(tmp_path / "new" / "x.safetensors", CHECKPOINT)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.safetensors"]


FUZZ = settings(
    deadline=None, derandomize=True, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(st.data())
def test_any_change_of_the_metadata_is_refused_or_leaves_a_model(whole, tmp_path, data):
    def draw(_arrays, document):
        return data.draw(changed(document))

    assert_refused_or_a_model(tmp_path, rewritten(whole, draw))


@FUZZ
@given(st.data())
def test_any_change_of_the_bytes_is_refused_or_leaves_a_model(whole, tmp_path, data):
    assert_refused_or_a_model(tmp_path, data.draw(damaged(whole)))


def assert_refused_or_a_model(folder, raw):
    try:
        found = read(folder, raw)
    except CacheError as error:
        said = str(error)
    else:
        assert set(found.heads.modalities) <= {"image", "age"} | set(found.heads.to_metadata()["modalities"])
        said = "x.safetensors"
    assert "x.safetensors" in said


@pytest.mark.parametrize(
    "change", [{"encoders": 7}, {"fold": "1"}, {"run": None}, {"seed": 1.5}, {"heads": []}], ids=str
)
def test_a_fact_of_another_type_is_refused(whole, tmp_path, change):
    with pytest.raises(CacheError, match="is missing or damaged"):
        read(tmp_path, rewritten(whole, lambda arrays, document: document | change))
