"""What most tests of a report begin with."""

import pytest

from tests.pipeline.reporting.world import ReportWorld, Told


@pytest.fixture
def world(tmp_path):
    """A dataset and a run on it; files that need pictures or vectors have a world of their own."""
    world = ReportWorld(tmp_path)
    world.write_dataset()
    world.write_run()
    return world


@pytest.fixture
def told():
    return Told()
