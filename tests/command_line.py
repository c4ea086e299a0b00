"""The command line inside the test's own process, and folders to use it in."""

import json
import shutil
from pathlib import Path

from typer.testing import CliRunner

import cli


def vp(*arguments):
    """Run a command; an error that a user cannot mend is raised."""
    return CliRunner().invoke(cli.app, list(map(str, arguments)), catch_exceptions=False)


def last_json(result):
    """What `--json` ended with."""
    return json.loads(result.stdout.strip().splitlines()[-1])


def train(name, head, modalities, *more):
    """A run without an encoder, in the current folder."""
    which = ("--head", head, "--modalities", modalities, "--name", name, "--no-diagnostics", "--quiet", *more)
    result = vp("train-heads", *which)
    assert result.exit_code == 0, result.output


def copy_to_work_in(original: Path, tmp_path: Path, monkeypatch) -> Path:
    """A copy of a folder, which becomes the current one."""
    shutil.copytree(original, tmp_path / "job")
    monkeypatch.chdir(tmp_path / "job")
    return tmp_path / "job"
