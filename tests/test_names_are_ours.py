"""Generic top-level names can be overwritten by another distribution, silently; here that is a sentence."""

from pathlib import Path

import pytest

import cli
import features
import heads
import pipeline


@pytest.mark.parametrize("module", [cli, features, heads, pipeline])
def test_a_module_comes_from_this_repository(module):
    assert Path(module.__file__).is_relative_to(Path(__file__).parents[1])
