"""Reports without their charts, for tests that do not look at them: drawing takes longer than all the rest."""

import pytest

from pipeline.reporting.charts import NAMES


def leave_charts_out(patch: pytest.MonkeyPatch) -> None:
    """Until the patch is undone, every chart of a page is empty, as it is where the numbers do not suffice for it."""
    patch.setattr("pipeline.reporting.page.charts", lambda _numbers, _words: dict.fromkeys(NAMES, ""))
