"""The README is true: commands, options and the tree of files."""

import re
from pathlib import Path

import pytest

from pipeline.config import CONFIG_OF
from pipeline.settings import options_of

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLOORS = ("features", "heads", "pipeline")


@pytest.mark.parametrize("name", CONFIG_OF)
def test_every_command_is_described(name):
    assert f"`vp {name}`" in README


@pytest.mark.parametrize("name", CONFIG_OF)
def test_every_option_of_a_command_is_described_with_the_command_or_for_all(name):
    flags = {o.flag for o in options_of(CONFIG_OF[name]) if not (o.only_in_file or o.positional)}
    commands = README.partition("## Commands")[2].partition("## What it writes")[0].split("\n### ")
    of_all, *own = (part for part in commands if part is commands[0] or f"`vp {name}`" in part)
    assert flags <= set(re.findall(r"--[a-z][a-z0-9-]+", of_all + "".join(own)))


def test_the_readme_invents_no_option():
    options = [option for config in CONFIG_OF.values() for option in options_of(config)]
    known = {f"--{option.key}" for option in options} | {f"--no-{o.key}" for o in options if o.is_flag}
    elsewhere = {"--config", "--json", "--quiet"}
    assert set(re.findall(r"--[a-z][a-z0-9-]+", README)) <= known | elsewhere


def test_the_tree_names_just_the_files_that_are_there():
    tree = README.partition("## The source")[2].split("```")[1]
    for floor in FLOORS:
        block = re.search(rf"^{floor}/.*?(?=^\S|\Z)", tree, re.MULTILINE | re.DOTALL).group()
        files = {path.name for path in (ROOT / floor).rglob("*.py")} - {"__init__.py"}
        assert set(re.findall(r"\w+\.py", block)) == files


def test_the_short_names_in_the_readme_exist():
    from features.encoders import SHORT_NAMES

    assert set(re.findall(r"ViT-[BL]-\d+(?:-\d+)?", README)) <= set(SHORT_NAMES)


def test_the_readme_is_short_enough_to_be_read():
    assert 150 <= len(README.splitlines()) <= 440
