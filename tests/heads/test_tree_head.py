"""Trees over all modalities: what they read, what each modality contributes, and how they are written down."""

import json
from dataclasses import replace
from functools import partial

import jaxtyping
import numpy as np
import pytest
from scipy.sparse import csr_matrix
from sklearn.decomposition import PCA

from heads import tree_head
from heads.config import HeadsConfig
from heads.errors import UnfitDataError
from heads.folds import FoldPlan
from heads.inputs import Block, Category, Inputs, Words
from heads.linear import fit_linear
from heads.members import Training
from heads.metrics import msle
from heads.tree_head import TreeModel, fit_trees
from heads.trees import TreeSettings

CONFIG = HeadsConfig(head="trees", seed=3)
N_VIDEOS = 200
PLAN = FoldPlan(
    fold_of=np.random.default_rng(0).permutation(np.arange(N_VIDEOS, dtype=np.int32) % 3), split="file", seed=None
)


@pytest.fixture(autouse=True, scope="module")
def _few_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_head, "TreeSettings", partial(TreeSettings, max_iter=25, learning_rate=0.2))
        patch.setattr(tree_head, "COMPONENTS", 4)
        yield


def draw_inputs(seed: int = 0) -> Inputs:
    rng = np.random.default_rng(seed)
    here = rng.random((4, N_VIDEOS)) >= 0.2
    # Every direction of the image has a spread of its own, so that its components are well told apart.
    image = rng.normal(size=(N_VIDEOS, 6)) * 0.7 ** np.arange(6) + 0.3
    counts = rng.poisson(0.4, size=(N_VIDEOS, 12)) * here[2][:, None]
    years = np.where(here[3], rng.uniform(0, 9, N_VIDEOS), np.nan)
    return Inputs(
        (
            Block.embedding("image", image, here[0]),
            Block.scalar("age", years, rng.normal(size=(N_VIDEOS, 1))),
            Category(modality="channel", codes=rng.integers(0, 8, N_VIDEOS), present=here[1]),
            Words(modality="words", counts=csr_matrix(counts.astype(np.float32)), present=here[2]),
        )
    )


def views_of(inputs: Inputs) -> np.ndarray:
    """Views that need image and age together, and a channel."""
    image, age, channel, _ = inputs.blocks
    rule = 2 * image.values[:, 0] * (age.values[:, 0] - 4) + 0.3 * channel.codes * channel.present
    return 8 + rule + 0.1 * np.random.default_rng(9).normal(size=N_VIDEOS)


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return draw_inputs()


@pytest.fixture(scope="module")
def log_views(inputs) -> np.ndarray:
    return views_of(inputs)


@pytest.fixture(scope="module")
def training(inputs, log_views) -> Training[TreeModel]:
    return fit_trees(inputs, log_views, PLAN, CONFIG)


@pytest.fixture(scope="module")
def model(training) -> TreeModel:
    return training.members[0].final


def bytes_of(model: TreeModel) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in model.to_arrays().items()}


def test_a_model_survives_arrays_and_json_to_the_bit(model, inputs):
    again = TreeModel.from_arrays(model.to_arrays(), json.loads(json.dumps(model.to_metadata())))
    np.testing.assert_array_equal(again.predict(inputs), model.predict(inputs))
    np.testing.assert_array_equal(again.contributions(inputs), model.contributions(inputs))
    assert bytes_of(again) == bytes_of(model)
    assert again.to_metadata() == model.to_metadata()
    assert again.baseline == model.baseline


def test_contributions_and_baseline_add_up_to_the_prediction(training, inputs):
    for member in training.members:
        total = member.final.baseline + member.final.contributions(inputs).sum(axis=0)
        np.testing.assert_allclose(total, member.final.predict(inputs), atol=1e-9)


def test_an_absent_modality_contributes_nothing_and_a_present_one_something(model, inputs):
    for contribution, block in zip(model.contributions(inputs), inputs.blocks, strict=True):
        assert not block.present.all()
        np.testing.assert_allclose(contribution[~block.present], 0, atol=1e-12)
        assert np.abs(contribution[block.present]).max() > 1e-3


def test_what_stands_in_the_row_of_an_absent_modality_is_never_read(model, inputs):
    image, *others = inputs.blocks
    noise = np.random.default_rng(0).normal(size=image.values.shape).astype(np.float32)
    dirty = replace(image, values=np.where(image.present[:, None], image.values, noise))
    np.testing.assert_array_equal(model.predict(Inputs((dirty, *others))), model.predict(inputs))


def test_modalities_are_found_by_name_whatever_their_order_and_companions(model, inputs):
    extra = Block.scalar("likes", np.arange(N_VIDEOS, dtype=np.float64))
    shuffled = Inputs((extra, *inputs.blocks[::-1]))
    np.testing.assert_array_equal(model.predict(shuffled), model.predict(inputs))


def test_an_embedding_is_read_through_its_principal_components(training, inputs):
    image = inputs.block("image")
    for member in training.members:
        train = PLAN.train_rows(member.fold)
        pca = PCA(4, svd_solver="full").fit(image.values[train][image.present[train]].astype(np.float64))
        projection = member.final.readers["image"]
        signs = np.sign((projection.components * pca.components_.T).sum(axis=0))
        np.testing.assert_allclose(projection.components * signs, pca.components_.T, atol=1e-4)
        np.testing.assert_allclose(projection.mean, pca.mean_, atol=1e-6)
        expected = np.where(image.present[:, None], pca.transform(image.values), 0)
        np.testing.assert_allclose(projection.read(image) * signs, expected, atol=1e-4)


def test_amounts_are_read_without_knots_and_words_through_components(model):
    kinds = {name: (reader.kind, reader.width) for name, reader in model.readers.items()}
    assert kinds == {
        "image": ("projected_as_is", 4),
        "age": ("as_is", 2),
        "channel": ("category_means", 2),
        "words": ("latent_tf_idf", 4),
    }


def test_weights_are_shares_of_the_spread_of_the_contributions(model, inputs):
    assert model.weights.sum() == pytest.approx(1)
    assert (model.weights > 0).all()
    # The channel was learned out of fold, hence only the others are exactly as they were on the training rows.
    spread = model.contributions(inputs.take(PLAN.train_rows(0))).std(axis=1)
    assert model.weights[0] / model.weights[1] == pytest.approx(spread[0] / spread[1], rel=0.05)
    assert model.weights.argmax() == spread.argmax()
    np.testing.assert_array_equal(model.raw_weights, model.weights)


def test_each_member_is_scored_on_the_rows_that_its_fold_validates(training, inputs, log_views):
    for member in training.members:
        rows = PLAN.val_rows(member.fold)
        assert member.final_msle == pytest.approx(msle(log_views[rows], member.final.predict(inputs.take(rows))))
        assert member.best is member.final
        assert (member.train_size, member.val_size) == (N_VIDEOS - len(rows), len(rows))


def test_modalities_that_only_tell_something_together_are_understood():
    rng = np.random.default_rng(0)
    image, years = rng.normal(size=(N_VIDEOS, 2)), rng.uniform(0, 8, N_VIDEOS)
    block = Block.embedding("image", image, np.ones(N_VIDEOS, dtype=bool))
    both = Inputs((block, Block.scalar("age", years)))
    log_views = 8 + block.values[:, 0].astype(np.float64) * (years - 4)
    trees, linear = (
        np.mean([member.final_msle for member in training.members])
        for training in (fit_trees(both, log_views, PLAN, CONFIG), fit_linear(both, log_views, PLAN))
    )
    assert trees < 0.35 * linear


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(training, inputs, log_views):
    again = fit_trees(inputs, log_views, PLAN, CONFIG)
    for one, other in zip(training.members, again.members, strict=True):
        assert bytes_of(one.final) == bytes_of(other.final)
    reseeded = fit_trees(inputs, log_views, PLAN, replace(CONFIG, seed=4))
    assert bytes_of(reseeded.members[0].final) != bytes_of(training.members[0].final)


def test_neither_blocks_nor_targets_of_validated_rows_reach_their_member(model, inputs, log_views):
    is_val = PLAN.fold_of == 0
    others = draw_inputs(99)
    image, age, channel, words = inputs.blocks
    image_, age_, channel_, words_ = others.blocks
    counts = np.where(is_val[:, None], words_.counts.toarray(), words.counts.toarray())
    present = [
        np.where(is_val, new.present, old.present) for new, old in zip(others.blocks, inputs.blocks, strict=True)
    ]
    changed = Inputs(
        (
            replace(image, values=np.where(is_val[:, None], image_.values, image.values), present=present[0]),
            replace(age, values=np.where(is_val[:, None], age_.values, age.values), present=present[1]),
            replace(channel, codes=np.where(is_val, channel_.codes, channel.codes), present=present[2]),
            replace(words, counts=csr_matrix(counts), present=present[3]),
        )
    )
    theirs = fit_trees(changed, np.where(is_val, 1.0, log_views), PLAN, CONFIG).members
    assert bytes_of(theirs[0].final) == bytes_of(model)
    assert theirs[0].final.to_metadata() == model.to_metadata()
    assert bytes_of(theirs[1].final) != bytes_of(model)


def test_amounts_and_categories_alone_need_no_embedding(inputs, log_views):
    few = Inputs(inputs.blocks[1:3])
    for member in fit_trees(few, log_views, PLAN, CONFIG).members:
        assert np.isfinite(member.final.predict(few)).all()
        assert member.final.modalities == ("age", "channel")


def test_a_target_that_is_constant_or_not_finite_is_refused(inputs, log_views):
    with pytest.raises(UnfitDataError, match="constant"):
        fit_trees(inputs, np.full(N_VIDEOS, 2.0), PLAN, CONFIG)
    with pytest.raises(UnfitDataError, match="finite"):
        fit_trees(inputs, np.where(np.arange(N_VIDEOS) == 5, np.nan, log_views), PLAN, CONFIG)


def test_every_array_that_is_missing_is_refused(model):
    arrays, metadata = model.to_arrays(), model.to_metadata()
    for name in arrays:
        with pytest.raises((ValueError, KeyError)):
            TreeModel.from_arrays({key: array for key, array in arrays.items() if key != name}, metadata)


def test_every_array_that_is_cut_short_is_refused(model, monkeypatch):
    """As in use, where no shapes are checked at run time."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    arrays, metadata = model.to_arrays(), model.to_metadata()
    accepted = []
    for name, array in arrays.items():
        try:
            TreeModel.from_arrays({**arrays, name: array[:-1]}, metadata)
        except (ValueError, KeyError):
            continue
        except Exception as error:  # noqa: BLE001 - a refusal of another kind is told by its name
            accepted.append((name, type(error).__name__))
        else:
            accepted.append((name, "accepted"))
    assert not accepted


@pytest.mark.parametrize("key", ["modalities", "readers", "weights", "target", "target_mean", "target_sd"])
def test_metadata_without_one_of_its_keys_are_refused(key, model):
    metadata = {name: entry for name, entry in model.to_metadata().items() if name != key}
    with pytest.raises((ValueError, KeyError), match=key):
        TreeModel.from_arrays(model.to_arrays(), metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"target": "sqrt"},
        {"weights": [1.0]},
        {"modalities": ["image", "age", "channel"]},
        {"readers": {"image": "as_is", "age": "as_is", "channel": "category_means", "words": "braille"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_metadata_that_do_not_fit_the_arrays_are_refused(change, model, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ValueError, KeyError)):
        TreeModel.from_arrays(model.to_arrays(), model.to_metadata() | change)


def test_trees_of_several_seeds_read_the_same_columns_and_have_a_mean(inputs, log_views):
    training = fit_trees(inputs, log_views, PLAN, replace(CONFIG, seeds=2))
    assert [(member.fold, member.seed) for member in training.members] == [(f, s) for f in range(3) for s in (3, 4)]
    one, other = (member.final for member in training.of_folds[1])
    mean = one.averaged_with([other])
    predictions = [model.predict(inputs) for model in (one, other)]
    assert np.abs(predictions[0] - predictions[1]).max() > 0.01
    np.testing.assert_allclose(mean.predict(inputs), np.mean(predictions, axis=0), atol=1e-9)
    contributions = [model.contributions(inputs) for model in (one, other)]
    np.testing.assert_allclose(mean.contributions(inputs), np.mean(contributions, axis=0), atol=1e-9)
    assert mean.baseline == pytest.approx((one.baseline + other.baseline) / 2)
    assert not mean.additive
    alone = fit_trees(inputs, log_views, PLAN, CONFIG).members[1].final
    assert bytes_of(alone) == bytes_of(one)


def test_trees_of_different_folds_have_no_mean(training):
    one, other, _ = (member.final for member in training.members)
    with pytest.raises(ValueError, match="same fold"):
        one.averaged_with([other])
