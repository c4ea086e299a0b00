"""What only a GPU can show: `make test-gpu`; where there is none, nothing here runs."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from features.embed import Device
from features.encoders import resolve_encoder
from features.families import load_encoder
from pipeline.drawn_dataset import draw_dataset
from pipeline.runs import open_run
from pipeline.tuning.steps import _clip
from tests.command_line import last_json, vp

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")]

GPU = "cuda:0"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return resolve_encoder("tiny", tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def pixels(config) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (512, 3, *config.preprocess.output), dtype=np.uint8)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    words = ["cake", "review", "vlog", "the", "best", "of", "2024"]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, n)) for n in rng.integers(1, 20, 64)]


def loaded(config, device, precision="fp32", **options):
    return load_encoder(config, ["image", "text"], device, precision, **options)


def cosines(left, right):
    return (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)


@pytest.mark.parametrize(("precision", "at_least"), [("fp32", 0.9999), ("fp16", 0.999), ("bf16", 0.99)])
def test_vectors_are_those_of_a_cpu(config, pixels, texts, precision: str, at_least: float):
    here, there = loaded(config, "cpu"), loaded(config, GPU, precision)
    assert cosines(here.encode_images(pixels[:32]), there.encode_images(pixels[:32])).min() > at_least
    tokens, _ = here.tokenize(texts)
    pad_to = there.text_layout.width(max(map(len, tokens)))
    assert cosines(here.encode_tokens(tokens, pad_to), there.encode_tokens(tokens, pad_to)).min() > at_least


def test_batches_in_flight_give_the_bits_of_one_after_the_other(config, pixels):
    """Each thread has a stream of its own, and what is copied from pinned memory must have arrived."""
    encoder = loaded(config, GPU, "bf16")
    batches = [pixels[start : start + 64] for start in range(0, 512, 64)] * 8
    expected = [encoder.encode_images(batch) for batch in batches]
    device = Device(64, in_flight=2)
    found = [future.result() for future in [device.submit(encoder.encode_images, batch) for batch in batches]]
    device.close()
    assert all(np.array_equal(one, other) for one, other in zip(expected, found, strict=True))


def test_what_else_is_in_a_batch_changes_not_one_bit(config, pixels):
    encoder = loaded(config, GPU, "bf16")
    whole = encoder.encode_images(pixels[:64])
    turned = encoder.encode_images(np.ascontiguousarray(pixels[63::-1]))
    assert np.array_equal(whole, turned[::-1])


def test_weights_that_change_are_seen_by_every_thread(config, pixels):
    """They change on the default stream, and encoding is on another."""
    encoder = loaded(config, GPU)
    with ThreadPoolExecutor(2) as pool:
        before = list(pool.map(encoder.encode_images, [pixels[:8]] * 4))
        with torch.no_grad():
            for parameter in encoder.towers["image"].parameters():
                parameter.mul_(0.5)
        after = list(pool.map(encoder.encode_images, [pixels[:8]] * 4))
    assert all(np.array_equal(before[0], each) for each in before)
    assert all(np.array_equal(after[0], each) for each in after)
    assert not np.array_equal(before[0], after[0])


def test_a_batch_that_does_not_fit_is_encoded_in_parts(config, pixels):
    encoder = loaded(config, GPU)
    many = np.concatenate([pixels] * 16)
    expected = np.concatenate([encoder.encode_images(many[start : start + 512]) for start in range(0, len(many), 512)])
    torch.cuda.empty_cache()
    room = torch.cuda.memory_allocated(GPU) + 300 * 2**20
    torch.cuda.set_per_process_memory_fraction(room / torch.cuda.get_device_properties(GPU).total_memory, GPU)
    device = Device(len(many), in_flight=1)
    try:
        found = device.submit(encoder.encode_images, many).result()
    finally:
        device.close()
        torch.cuda.set_per_process_memory_fraction(1.0, GPU)
    assert device.fits < len(many)
    assert cosines(found, expected).min() > 0.9999


def test_a_compiled_tower_gives_the_same_directions(config, pixels):
    plain, compiled = loaded(config, GPU, "bf16"), loaded(config, GPU, "bf16", compiled=True)
    assert cosines(plain.encode_images(pixels[:64]), compiled.encode_images(pixels[:64])).min() > 0.99


def test_a_gradient_is_clipped_without_waiting_for_the_device():
    parameters = {name: torch.nn.Parameter(torch.ones(64, 64, device=GPU)) for name in ("image.a", "heads.b")}
    sum(parameter.square().sum() for parameter in parameters.values()).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm = _clip(parameters)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert float(norm) > 0


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Path:
    """A drawn dataset, its cache and a run, all made on the GPU by processes of their own."""
    root = tmp_path_factory.mktemp("job")
    draw_dataset(root / "dataset", n_train=96, n_test=12)
    with contextlib.chdir(root):
        for command in (("extract", "--model", "tiny", "--device", "cuda"), ("train-heads", "--no-diagnostics")):
            result = vp(*command)
            assert result.exit_code == 0, result.output
    return root


@pytest.fixture
def here(job, monkeypatch):
    monkeypatch.chdir(job)
    return job


def shard_names(work: str) -> list[str]:
    return sorted(path.name for path in Path(work).glob("embeddings/tiny/*/*.h5"))


def test_two_extractions_give_the_same_files(here):
    result = vp("extract", "--model", "tiny", "--device", "cuda", "--work", "again")
    assert result.exit_code == 0, result.output
    assert shard_names("again") == shard_names("work") != []


def test_the_manifest_names_the_gpu(here):
    environment = json.loads(Path("work/embeddings/tiny/train_val/manifest.json").read_text())["environment"]
    assert environment["device"] == torch.cuda.get_device_name(GPU)


TUNE = ("finetune", "--device", "cuda", "--lr", 3e-4, "--batch-size", 16, "--quiet", "--json")


def test_fine_tuning_lowers_the_loss_and_its_run_predicts(here):
    assert np.isfinite(last_json(vp(*TUNE, "--epochs", 4, "--name", "tuned"))["oof_msle_final"])
    epochs = map(json.loads, Path("work/runs/tuned/metrics.jsonl").read_text().splitlines())
    losses = [loss for epoch in epochs if (loss := epoch.get("fold_0/train/loss_epoch")) is not None]
    assert losses[-1] < losses[0]
    assert vp("submit", "--run", "tuned").exit_code == 0
    assert vp("verify").exit_code == 0
    assert open_run(Path("work/runs/tuned")).is_finetuned


@pytest.mark.parametrize("options", [("--gradient-checkpointing",), ("--unfreeze", "last:1"), ("--lora", 2)])
def test_every_way_of_fine_tuning_runs(here, options):
    told = partial(vp, *TUNE, "--epochs", 1, "--name", options[0].strip("-"))
    assert told(*options).exit_code == 0
