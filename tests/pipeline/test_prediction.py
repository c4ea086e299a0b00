"""What is predicted of one candidate, as numbers."""

import numpy as np
import pytest

from heads.fitted import Branch, FittedHeads, Head
from heads.inputs import Block, Inputs
from heads.readers import AsIs
from heads.targets import Standardisation, Target
from pipeline.prediction import Explained, Prediction


def prediction(**changes):
    fields = {
        "image": "a.jpg",
        "title": "",
        "views": 99.0,
        "interval_50": (50.0, 200.0),
        "interval_90": (9.0, 900.0),
        "percentile": 75.0,
        "percentile_in_channel": None,
        "baseline": 49.0,
        "log_views": float(np.log(100)),
        "contributions": {"image": float(np.log(2)), "age": 0.0},
    }
    return Prediction(**fields | changes)


def member(slope, mean, sd):
    """A head that reads one number: z = slope * number."""
    branch = Branch(reader=AsIs(1), weights=(np.array([[slope]], np.float32),), biases=(np.zeros(1, np.float32),))
    one = np.ones(1)
    return FittedHeads(
        heads={"image": Head((branch,))},
        weights=one,
        raw_weights=one,
        intercept=0.5,
        standardisation=Standardisation(mean=mean, sd=sd),
        target=Target(),
    )


def test_a_contribution_is_a_factor_on_one_plus_views():
    found = prediction()
    assert found.factors == pytest.approx({"image": 2.0, "age": 1.0})
    assert (1 + found.baseline) * np.prod(list(found.factors.values())) == pytest.approx(1 + found.views)


def test_what_is_no_count_has_differences():
    assert prediction(target="none").factors == {"image": np.log(2), "age": 0.0}


def test_everything_goes_into_json():
    assert prediction().to_dict().keys() == vars(prediction()).keys() | {"factors"}


def test_members_are_explained_by_their_mean():
    numbers = Block(modality="image", values=np.array([[1.0], [3.0]], np.float32), present=np.array([True, False]))
    models, inputs = [member(1.0, 9.0, 2.0), member(3.0, 11.0, 1.0)], Inputs((numbers,))
    found = Explained.by(models, [inputs, inputs])
    assert found.baseline == pytest.approx((10.0 + 11.5) / 2)
    np.testing.assert_allclose(found.contributions, [[(2.0 + 3.0) / 2, 0.0]])
    np.testing.assert_allclose(found.log_views, np.mean([model.predict(inputs) for model in models], axis=0))
    np.testing.assert_allclose(found.without("image"), [found.baseline] * 2)
    np.testing.assert_allclose(found.without("age"), found.log_views)
