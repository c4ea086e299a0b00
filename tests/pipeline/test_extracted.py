"""What an extraction says at its end."""

import pytest

from features.cache import BadRow, CacheSummary
from features.lock import Part
from features.making import Timing
from pipeline.config import ExtractConfig
from pipeline.extracted import outcome
from pipeline.parts import ChosenPart


def summary(rows, made, bad):
    return CacheSummary(
        rows=rows,
        shards_written=1,
        shards_kept=0,
        missing=rows // made - 1,
        vectors_encoded=made,
        vectors_copied=0,
        statuses={"image": {"ok": made - bad, "missing": bad}, "text": {"ok": made}},
        notes={},
        bad_rows=[BadRow(row, "image", "missing") for row in range(bad)],
        timing=Timing(),
    )


@pytest.mark.parametrize(("made", "bad", "too_many"), [(100, 2, True), (100, 1, False), (1000, 10, False)])
def test_the_bad_rows_of_a_part_are_measured_against_the_rows_of_its_shards(made, bad, too_many):
    part = ChosenPart(Part(1, 1000 // made), "part 1")
    summaries = {"train_val": summary(1000, made, bad)}
    found = outcome(ExtractConfig(max_bad=0.01), "tiny", [], summaries, chosen=part, seconds=1.0)
    assert (found.error is not None) is too_many
    if found.error is not None:
        assert str(found.error).startswith(f"{bad} of {made} rows have a bad thumbnail or text")
