import pytest

from heads.config import MAX_SEED, HeadsConfig
from heads.folds import kfold


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0),
        ("lr", 0.0),
        ("hidden_dim", 1),
        ("dropout", 1.0),
        ("batch_size", 0),
        ("seed", -1),
        ("seed", 2**32),
        ("weight_decay", -1.0),
    ],
)
def test_an_option_out_of_its_range_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')}"):
        HeadsConfig(**{option: value})


def test_the_last_of_several_seeds_must_be_one_as_well():
    with pytest.raises(
        ValueError, match=r"^--seed 4294967294 and --seeds 3 must end at 4294967295 at most, not at 42949"
    ):
        HeadsConfig(seed=MAX_SEED - 1, seeds=3)
    assert [config.seed for config in HeadsConfig(seed=MAX_SEED - 1, seeds=2).of_each_seed()] == [2**32 - 2, 2**32 - 1]


def test_the_largest_seed_splits_and_one_more_is_told_alone():
    assert kfold(6, 3, HeadsConfig(seed=MAX_SEED).seed).n_folds == 3
    with pytest.raises(ValueError, match=r"^--seed must lie between 0 and 4294967295, not at 4294967296$"):
        HeadsConfig(seed=MAX_SEED + 1)
