"""The encoder of a run: found, checked against what the run was trained on, and asked once for each thing."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from features.encoders import EncoderConfig
from features.errors import CacheError, UsageError
from features.plan import digest
from features.preprocess import ImagePreprocess
from features.progress import Silent
from features.status import Status
from features.text_layout import TextLayout
from features.texts import TextPolicy
from pipeline import found_encoder, run_encoders
from pipeline.run_encoders import RunEncoders
from pipeline.runs import Run
from pipeline.workspace import Workspace

PREPROCESS = ImagePreprocess(
    mode="squash", size=(8, 8), crop=None, resample="bicubic", rescale_factor=1.0, mean=(0.0,) * 3, std=(1.0,) * 3
)


def encoder(folder="somewhere", weights="w"):
    return EncoderConfig(
        tag="fake",
        source="tiny",
        revision=None,
        family="clip",
        folder=Path(folder),
        weights_sha256=weights,
        config_sha256="c",
        tokenizer_sha256="t",
        preprocess=PREPROCESS,
        text=TextPolicy(max_tokens=20),
        dim={"image": 3, "text": 4},
        image_size=8,
        pickled_weights=False,
    )


class Told(Silent):
    """A progress that remembers."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture
def world(tmp_path, monkeypatch, fake_encoder):
    """Makes the encoders of a run that was trained on vectors of `weights` in some precision; names what was asked."""
    asked, loaded = [], {}

    def resolve(name, *_, **options):
        asked.append((name, options["expected_revision"]))
        return encoder()

    def load(_config, kinds, _device, precision):
        (kind,) = kinds
        loaded[kind] = fake_encoder()
        loaded[kind].precision = precision
        return loaded[kind]

    monkeypatch.setattr(found_encoder, "resolve_encoder", resolve)
    monkeypatch.setattr(run_encoders, "load_encoder", load)
    monkeypatch.setattr(run_encoders, "choose_device", lambda wanted: wanted)

    def make(*, weights="w", precision="bf16", models=("here",), tags=("fake",), progress=None):
        semantic = {**encoder(weights=weights).semantic(), "precision": precision, "stored_as": "float16"}
        run = Run(tmp_path / "run", {"encoders": {tag: digest(semantic) for tag in tags}})
        progress = progress or Silent()
        return RunEncoders(Workspace(tmp_path), run, models=models, device="cpu", progress=progress)

    return make, asked, loaded


@pytest.fixture
def images(tmp_path):
    paths = []
    for shade in (10, 200):
        paths.append(tmp_path / f"{shade}.png")
        Image.new("RGB", (9, 12), (shade, shade, shade)).save(paths[-1])
    return paths


def test_equal_images_and_texts_are_encoded_once_each_alone(world, images):
    make, _, loaded = world
    encoders = make()
    found = encoders.images("fake", [*images, images[0], Status.MISSING])
    assert found.vectors.dtype == np.float16
    np.testing.assert_array_equal(found.vectors, [[10] * 3, [200] * 3, [10] * 3, [0] * 3])
    assert found.present.tolist() == [True, True, True, False]
    assert loaded["image"].images == 2
    texts = encoders.texts("fake", "text", [("a", "b"), ("a", "b"), (" ", "")])
    assert texts.status.tolist() == [Status.OK, Status.OK, Status.EMPTY_TEXT]
    assert loaded["text"].pads == [8]  # which is the multiple that this encoder asks for


def test_a_vector_does_not_depend_on_what_else_is_asked(world, images):
    encoders = world[0]()
    together = encoders.images("fake", images).vectors
    alone = [encoders.images("fake", [image]).vectors[0] for image in images]
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_precision_is_the_one_that_the_run_was_trained_in(world, images, precision):
    make, _, loaded = world
    make(precision=precision).images("fake", images)
    assert loaded["image"].precision == precision


def test_other_weights_are_refused_and_not_loaded(world, images):
    make, _, loaded = world
    with pytest.raises(CacheError, match=r"was trained on vectors of encoder fake .* has other weights"):
        make(weights="others").images("fake", images)
    assert not loaded


def test_a_tower_that_is_not_needed_is_not_loaded(world):
    make, _, loaded = world
    make().texts("fake", "text", [("a title", "")])
    assert list(loaded) == ["text"]


def test_what_a_vector_cannot_hold_marks_its_row(world, images, monkeypatch):
    make, _, _ = world
    monkeypatch.setattr(run_encoders, "load_encoder", lambda *_: Huge())
    found = make().images("fake", images)
    assert found.status.tolist() == [Status.NONFINITE] * 2
    assert not found.vectors.any()


class Huge:
    text_layout = TextLayout(20, step=1)
    tokenize = encode_tokens = dict

    def encode_images(self, pixels):
        return np.full((len(pixels), 3), 1e6, np.float32)


def test_the_user_is_told_once_what_the_encoder_is(world, images):
    progress = Told()
    encoders = world[0](progress=progress)
    encoders.images("fake", images)
    encoders.texts("fake", "text", [("a", "")])
    assert progress.notes == ["fake is an untrained encoder with random weights: for demonstrations and tests only"]


def test_the_only_encoder_may_lie_in_a_folder_of_any_name(world, images):
    make, asked, _ = world
    make(models=("/a/folder",)).images("fake", images)
    assert asked == [("/a/folder", None)]


def test_several_encoders_are_named_by_their_tags(world, images):
    make, asked, _ = world
    make(models=("./other", "./fake"), tags=("fake", "other")).images("other", images)
    assert asked == [("./other", None)]
    with pytest.raises(UsageError, match=r"names \./third, but the encoders of the run are: fake, other"):
        make(models=("./third", "./fake"), tags=("fake", "other"))


def test_a_run_without_an_encoder_takes_none(world):
    with pytest.raises(UsageError, match="the encoders of the run are: none"):
        world[0](models=("tiny",), tags=())


@pytest.mark.parametrize(
    "case",
    [
        ("openai--clip", {"source": "openai/clip", "revision": "abc"}, ("openai/clip", "abc")),
        ("ViT-B-32", {"source": "openai/clip-vit-base-patch32", "revision": "abc"}, ("ViT-B-32", "abc")),
        ("tiny", {"source": "tiny", "revision": ""}, ("tiny", None)),
        ("ViT-B-32", None, ("ViT-B-32", None)),
        ("openai--clip", None, ("openai/clip", None)),
    ],
)
def test_an_encoder_is_found_where_its_cache_says_it_came_from(world, images, monkeypatch, case):
    tag, environment, expected = case
    make, asked, _ = world
    plan = None if environment is None else type("Plan", (), {"environment": environment})
    monkeypatch.setattr(found_encoder, "read_plan", lambda _: plan)
    make(models=(), tags=(tag,)).images(tag, images)
    assert asked == [expected]


@pytest.mark.parametrize(
    ("tag", "model", "is_refused"),
    [
        ("tiny", "ViT-B-32", True),
        ("tiny", "openai/clip-vit-base-patch32", True),
        ("ViT-B-32", "tiny", True),
        ("ViT-B-32", "vit-l/14", True),
        ("ViT-B-32", "openai/clip-vit-base-patch32", False),
        ("openai--clip-vit-base-patch32", "ViT-B-32", False),
        ("ViT-B-32", "./a-copy", False),
        ("ViT-B-32", "someone/a-copy", False),
        ("a-folder", "ViT-B-32", False),
    ],
)
def test_the_name_of_another_encoder_is_refused_before_it_is_looked_for(world, images, tag, model, is_refused):
    make, asked, _ = world
    encoders = make(models=(model,), tags=(tag,))
    if not is_refused:
        encoders.images(tag, images)
        assert asked == [(model, None)]
        return
    with pytest.raises(UsageError, match=f"reads the encoder {tag}, not {model}: --model says where the files of its "):
        encoders.images(tag, images)
    assert not asked


def test_a_local_folder_must_be_named(world, images, monkeypatch):
    plan = type("Plan", (), {"environment": {"source": "my-clip", "revision": ""}})
    monkeypatch.setattr(found_encoder, "read_plan", lambda _: plan)
    with pytest.raises(UsageError, match="extracted from a local folder: name that folder with --model"):
        world[0](models=()).images("fake", images)


def test_a_kind_that_is_not_known_is_refused(world):
    with pytest.raises(CacheError, match="reads smell of fake"):
        world[0]().texts("fake", "smell", [("a", "")])
