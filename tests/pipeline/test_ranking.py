"""Who wins, by how much, and why: the table and the sentence."""

import numpy as np
import pytest

from pipeline.prediction import Prediction
from pipeline.ranking import names, ranking, sentence


def prediction(image, title, image_adds, text_adds=0.0, **changes):
    log_views = float(np.log(1000) + image_adds + text_adds)
    views = float(np.expm1(log_views))
    fields = {
        "image": image,
        "title": title,
        "views": views,
        "interval_50": (views - 100, views + 100),
        "interval_90": (views - 400, views + 400),
        "percentile": 50.4,
        "percentile_in_channel": None,
        "baseline": 999.0,
        "log_views": log_views,
        "contributions": {"image": image_adds, "text": text_adds},
    }
    return Prediction(**fields | changes)


TWO = [prediction("a.jpg", "Cake", float(np.log(2))), prediction("b.jpg", "Cake", float(np.log(0.5)))]


def chance(log_difference):
    return min(0.5 + log_difference / 10, 1.0)


def test_the_table_shows_views_intervals_percentile_and_factors():
    assert ranking(TWO, "") == [
        "       views           50 %           90 %  percentile  image   text",
        "a.jpg  1,999  1,899 - 2,099  1,599 - 2,399          50  x2.00  x1.00",
        "b.jpg    499      399 - 599       99 - 899          50  x0.50  x1.00",
        "",
        "each modality multiplies the baseline of 999, the mean of the training videos in log views",
    ]


def test_a_channel_has_a_column_of_its_own():
    known = [prediction("a.jpg", "", 1.0, percentile_in_channel=12.4), prediction("b.jpg", "", 0.0)]
    header, first, second, *_ = ranking(known, "My channel")
    assert "in My channel" in header
    assert (first.split()[-3], second.split()[-3]) == ("12", "-")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([("a.jpg", "Cake"), ("b.jpg", "Cake")], ["a.jpg", "b.jpg"]),
        ([("a.jpg", "Cake"), ("a.jpg", "Pie")], ['"Cake"', '"Pie"']),
        ([("a.jpg", "Cake"), ("b.jpg", "Pie")], ['a.jpg + "Cake"', 'b.jpg + "Pie"']),
        ([("", "Cake"), ("", "Pie")], ['"Cake"', '"Pie"']),
        ([("a.jpg", "")], ["a.jpg"]),
        ([("a.jpg", "Two\n lines")], ['a.jpg + "Two lines"']),
        ([("", "x" * 60)], [f'"{"x" * 45}..."']),
    ],
)
def test_candidates_are_named_by_what_tells_them_apart(given, told):
    assert names([prediction(*one, 0.0) for one in given]) == told


def test_the_sentence_says_who_wins_by_how_much_and_why():
    assert sentence(TWO, chance) == (
        "a.jpg wins over b.jpg: 1,999 against 499 views (x4.00: image x4.00); of pairs of different videos predicted "
        "this far apart 64 % come in this order."
    )


def test_the_modality_that_makes_most_of_the_difference_comes_first():
    first, second = prediction("a.jpg", "Cake", 0.3, -0.1), prediction("b.jpg", "Pie", 0.0, -0.2)
    assert "(x1.49: image x1.35, text x1.11)" in sentence([first, second], chance)
    assert "(x1.65: text x2.23, image x0.74)" in sentence(
        [prediction("a.jpg", "Cake", -0.3, 0.8), prediction("b.jpg", "Pie", 0.0, 0.0)], chance
    )


def test_a_modality_that_hardly_matters_is_named_only_where_nothing_else_does():
    assert "image x1.35)" in sentence([prediction("a", "", 0.3, 0.004), prediction("b", "", 0.0)], chance)
    assert "(x1.00: text x1.00)" in sentence([prediction("a", "", 0.0, 0.004), prediction("b", "", 0.0)], chance)


def test_equals_have_no_winner():
    told = sentence([prediction("a.jpg", "", 1.0), prediction("b.jpg", "", 1.0)], chance)
    assert told == "a.jpg and b.jpg are predicted alike: nothing that the run reads tells them apart."


def test_one_alone_is_told_with_its_interval():
    assert sentence(TWO[:1], chance) == 'a.jpg + "Cake": 1,999 views, most likely between 1,899 and 2,099 (50 %).'


def test_what_is_no_count_is_told_in_its_own_units():
    plain = {"target": "none", "views": 3.25, "interval_50": (1.0, 5.0)}
    told = sentence(
        [prediction("a", "", 0.5, **plain, log_views=3.25), prediction("b", "", 0.25, **plain, log_views=3.0)], chance
    )
    assert "3.25 against 3.25 views (+0.25: image +0.25)" in told
