import pytest

from heads.config import HeadsConfig


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("epochs", 0),
        ("lr", 0.0),
        ("hidden_dim", 1),
        ("dropout", 1.0),
        ("batch_size", 0),
        ("seed", -1),
        ("weight_decay", -1.0),
    ],
)
def test_an_option_out_of_its_range_is_refused_by_name(option, value):
    with pytest.raises(ValueError, match=f"--{option.replace('_', '-')}"):
        HeadsConfig(**{option: value})
