"""A submission beside the training videos: what is told of it, and when that is a warning."""

import numpy as np
import pytest

from features.progress import Silent
from heads.targets import Target
from pipeline.distributions import Distribution, Shift, weighted_effects


class Heard(Silent):
    """A progress that remembers."""

    def __init__(self):
        self.notes, self.warnings = [], []

    def note(self, text):
        self.notes.append(text)

    def warn(self, text):
        self.warnings.append(text)


def shift(level, effects, *, spread=1.0, target="log1p", age=0.5):
    rng = np.random.default_rng(0)
    training = rng.normal(11, 2, size=999)
    predicted = 11 + 0.8 * (training - 11)
    submission = level + spread * predicted
    kind = Target(target)
    return Shift(
        submission=Distribution.of(submission - np.median(submission) + np.median(training) + level, kind),
        run="run",
        out_of_fold=Distribution.of(predicted, kind),
        training=Distribution.of(training, kind),
        effects=effects,
        age=age,
        training_age=7.25,
        target=kind,
    )


def heard(found):
    progress = Heard()
    found.tell(progress)
    return progress.notes, progress.warnings


def test_a_distribution_is_described_by_hand():
    views = np.array([0.0, 999.0, 1000.0, 1_000_000.0, 2_000_000.0])
    found = Distribution.of(np.log1p(views), Target())
    assert found.median == pytest.approx(np.log1p(1000))
    assert found.sd == pytest.approx(np.log1p(views).std())
    assert (found.share_below_1000, found.share_above_1000000) == (0.4, 0.2)
    assert Distribution.of(views, Target("none")).share_below_1000 is None


@pytest.mark.parametrize(("level", "effects"), [(0.0, {}), (1.4, {}), (-1.4, {"age": 0.0}), (0.3, {"text": 3.0})])
def test_a_small_shift_is_worth_no_word(level, effects):
    assert heard(shift(level, effects)) == ([], [])


def test_a_shift_that_the_age_explains_is_a_note():
    notes, warnings = heard(shift(-2.0, {"age": -1.9, "text": 0.1}))
    assert warnings == []
    (note,) = notes
    assert "(x0.14)" in note
    assert note.endswith("age alone makes x0.15 (median 0.5 years, in training 7.2)")


@pytest.mark.parametrize(
    ("level", "effects", "left"), [(-2.0, {}, "x0.14"), (2.0, {"age": 0.2}, "x6"), (-1.0, {"age": 1.0}, "x0.14")]
)
def test_a_shift_that_nothing_explains_is_a_warning(level, effects, left):
    notes, warnings = heard(shift(level, effects))
    assert notes == []
    assert warnings[0].endswith(f"{left} is left: check that the test videos may differ so much")


def test_an_age_that_is_not_known_is_not_told():
    (note,), _ = heard(shift(-2.0, {"age": -1.9}, age=float("nan")))
    assert "years" not in note
    assert shift(-2.0, {"age": -1.9}, age=float("nan")).to_dict()["median_age_years"]["submission"] is None


@pytest.mark.parametrize(("spread", "warned"), [(0.4, True), (0.6, False), (1.9, False), (2.2, True)])
def test_a_submission_that_spreads_otherwise_than_the_out_of_fold_predictions_is_a_warning(spread, warned):
    _, warnings = heard(shift(0.0, {}, spread=spread))
    assert len(warnings) == warned
    assert all(f"spreads {spread:.2f} times as far" in warning for warning in warnings)


def test_a_target_that_is_no_count_has_differences_and_no_factors():
    found = shift(-2.0, {"age": -1.9}, target="none")
    (note,), _ = heard(found)
    assert "(-2)" in note
    assert not any("views" in line for line in found.table())


def test_the_table_shows_all_three():
    assert [line.split("  ")[0] for line in shift(0.0, {}).table()] == [
        "",
        "median",
        "spread (sd, log)",
        "below 1,000 views",
        "above 1,000,000 views",
    ]


def test_effects_count_by_the_weights_of_the_members():
    found = weighted_effects([{"age": 1.0}, {"age": 3.0, "text": 1.0}], np.array([0.75, 0.25]))
    assert found == {"age": 1.5, "text": 0.25}
