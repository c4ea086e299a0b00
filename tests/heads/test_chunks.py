"""Inputs that come a chunk at a time are the same inputs: the linear head cannot tell the difference."""

from dataclasses import dataclass

import numpy as np
import pytest

from heads import inputs as inputs_module
from heads.chunks import Chunks, in_memory, validated_rows
from heads.config import HeadsConfig
from heads.diagnostics import linear_msle
from heads.fit import fit
from heads.folds import FoldPlan, group, kfold, time
from heads.inputs import Block, Category, Inputs, Rows, Words
from heads.linear import fit_linear

N_VIDEOS = 230


@dataclass(frozen=True, eq=False)
class Piecemeal:
    """Inputs whose embeddings are made again for every chunk, and counted."""

    whole: Inputs
    passes: list[int]

    @property
    def outline(self) -> Inputs:
        blocks = (
            Block.outlined(block.modality, block.values.shape[1], block.present)
            if isinstance(block, Block) and not block.knotted
            else block
            for block in self.whole.blocks
        )
        return Inputs(tuple(blocks))

    def __iter__(self):
        self.passes.append(0)
        for rows, chunk in self.whole:
            self.passes[-1] += chunk.n_videos
            yield rows, chunk

    def take(self, rows: Rows) -> Inputs:
        return self.whole.take(rows)


@pytest.fixture
def drawn(monkeypatch):
    """Four modalities with gaps, and log views; chunks of 64 rows, the last one shorter."""
    monkeypatch.setattr(inputs_module, "CHUNK_ROWS", 64)
    rng = np.random.default_rng(0)
    image, text = rng.normal(size=(2, N_VIDEOS, 12)) + 0.4
    here = rng.random((4, N_VIDEOS)) > 0.2
    codes, years = rng.integers(0, 9, N_VIDEOS), rng.uniform(0, 8, N_VIDEOS)
    blocks = (
        Block.embedding("image", image.astype(np.float16), here[0]),
        Block.scalar("age", np.where(here[2], years, np.nan), rng.normal(size=(N_VIDEOS, 2))),
        Block.embedding("text", text.astype(np.float32), here[1]),
        Category(modality="channel", codes=codes, present=here[3]),
    )
    log_views = 8 + image[:, 0] * here[0] + text[:, 1] * here[1] + 0.2 * years + 0.3 * (codes % 3)
    return Inputs(blocks), log_views + rng.normal(size=N_VIDEOS)


def plans() -> dict[str, FoldPlan]:
    uneven = np.random.default_rng(1).permutation(np.repeat(np.arange(-1, 3, dtype=np.int32), [20, 25, 60, 125]))
    channels = [f"channel {row % 11}" for row in range(N_VIDEOS)]
    return {
        "kfold": kfold(N_VIDEOS, 3, 42),
        "group": group(channels, list(map(str, range(N_VIDEOS))), 3, 42),
        "time": time(np.random.default_rng(0).integers(0, 10**9, N_VIDEOS), 3),
        "unequal": FoldPlan(fold_of=uneven, split="file", seed=None),
    }


@pytest.mark.parametrize("split", ["kfold", "group", "time", "unequal"])
@pytest.mark.parametrize("weighted", [False, True])
def test_chunks_give_the_heads_that_the_whole_gives_to_the_last_bit(drawn, split, weighted):
    inputs, log_views = drawn
    weights = np.random.default_rng(1).uniform(0.2, 3.0, N_VIDEOS) if weighted else None
    plan, chunks = plans()[split], Piecemeal(inputs, [])
    whole, pieces = (fit_linear(given, log_views, plan, seed=5, weights=weights) for given in (inputs, chunks))
    assert whole.facts == pieces.facts
    for ours, theirs in zip(pieces.members, whole.members, strict=True):
        assert (ours.final_msle, ours.history) == (theirs.final_msle, theirs.history)
        tensors = theirs.final.to_arrays()
        assert {name: tensor.tobytes() for name, tensor in ours.final.to_arrays().items()} == {
            name: tensor.tobytes() for name, tensor in tensors.items()
        }


@pytest.mark.parametrize("chunk_rows", [1, 17, N_VIDEOS])
def test_the_length_of_a_chunk_changes_predictions_by_rounding_alone(drawn, chunk_rows, monkeypatch):
    inputs, log_views = drawn
    plan = plans()["unequal"]
    before = fit_linear(inputs, log_views, plan, seed=5)
    monkeypatch.setattr(inputs_module, "CHUNK_ROWS", chunk_rows)
    after = fit_linear(Piecemeal(inputs, []), log_views, plan, seed=5)
    for ours, theirs in zip(after.members, before.members, strict=True):
        np.testing.assert_allclose(ours.final.predict(inputs), theirs.final.predict(inputs), rtol=2e-6)


def test_fitting_takes_two_passes_over_the_rows_and_a_score_by_split_one(drawn):
    inputs, log_views = drawn
    chunks = Piecemeal(inputs, [])
    fit_linear(chunks, log_views, plans()["kfold"], search=True)
    assert chunks.passes == [N_VIDEOS] * 2
    linear_msle(chunks, log_views, plans()["group"], seed=0)
    assert chunks.passes == [N_VIDEOS] * 3


def test_every_validated_row_comes_once_with_its_own_inputs(drawn):
    inputs, _ = drawn
    plan, seen = plans()["unequal"], []
    for fold, rows, found in validated_rows(inputs, plan):
        assert set(plan.fold_of[rows]) == {fold}
        np.testing.assert_array_equal(found.block("image").values, inputs.block("image").values[rows])
        seen += rows.tolist()
    assert sorted(seen) == np.flatnonzero(plan.fold_of >= 0).tolist()


def test_inputs_in_memory_are_chunks_of_themselves(drawn):
    inputs, _ = drawn
    assert isinstance(inputs, Chunks)
    assert in_memory(inputs) is inputs.outline is inputs
    assert [(rows.start, rows.stop) for rows, _ in inputs] == [(0, 64), (64, 128), (128, 192), (192, 230)]


@pytest.mark.parametrize("head", ["hybrid", "mlp", "trees"])
def test_a_head_that_needs_every_row_refuses_chunks(drawn, head):
    inputs, log_views = drawn
    with pytest.raises(TypeError, match="every row in memory"):
        fit(Piecemeal(inputs, []), log_views, plans()["kfold"], HeadsConfig(head=head))


def test_so_does_the_linear_head_where_there_are_words(drawn):
    from scipy.sparse import csr_matrix

    inputs, log_views = drawn
    counts = csr_matrix(np.random.default_rng(0).poisson(0.5, size=(N_VIDEOS, 10)).astype(np.float32))
    words = Words(modality="words", counts=counts, present=np.ones(N_VIDEOS, dtype=bool))
    with pytest.raises(TypeError, match="every row in memory"):
        fit_linear(Piecemeal(Inputs((*inputs.blocks, words)), []), log_views, plans()["kfold"])


def test_what_stands_for_embeddings_cannot_be_taken_for_them(drawn):
    inputs, _ = drawn
    outline = Piecemeal(inputs, []).outline
    assert outline.block("image").values.shape == (N_VIDEOS, 12)
    assert np.isnan(outline.block("image").values).all()
