"""The command line itself: its help, its speed, its flags."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from pipeline.config import CONFIG_OF
from pipeline.settings import options_of
from tests.command_line import vp

HEAVY = ("torch", "transformers", "pandas", "h5py", "wandb", "sklearn", "numpy")

_ENVIRONMENT = {"PYTHONPATH": str(Path(cli.__file__).parent), "PATH": "/usr/bin:/bin"}


def test_help_loads_nothing_heavy():
    script = (
        "import sys, cli; from typer.testing import CliRunner\n"
        "assert CliRunner().invoke(cli.app, ['--help']).exit_code == 0\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", CONFIG_OF)
def test_every_option_has_a_flag_with_help_and_its_default(name):
    shown = " ".join(CliRunner().invoke(cli.app, [name, "--help"], terminal_width=300).output.split())
    for option in options_of(CONFIG_OF[name]):
        if option.only_in_file:
            continue
        assert option.flag in shown
        default = f" [{option.shown_default}]" if option.shown_default else ""
        assert " ".join(f"{option.help}{default}".split()) in shown


def test_no_command_is_a_request_for_help():
    assert "extract" in CliRunner().invoke(cli.app, []).output


def test_an_unknown_option_is_a_usage_error():
    assert CliRunner().invoke(cli.app, ["submit", "--metod", "mean"]).exit_code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_full_stdout_is_told_and_is_a_storage_error(tmp_path, more):
    with Path("/dev/full").open("w") as full:
        done = _vp_process("status", "--work", "none", *more, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 5
    assert done.stderr == (
        "error: the result cannot be written to stdout: No space left on device; what was made is kept\n"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a file that is always full")
def test_a_full_stderr_is_no_reason_to_stop(tmp_path):
    with Path("/dev/full").open("w") as full:
        done = _vp_process("status", "--work", "none", cwd=tmp_path, stdout=subprocess.PIPE, stderr=full)
    assert (done.returncode, done.stdout) == (0, "none holds no embeddings and no runs yet\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start_are_no_crash(tmp_path, closed):
    command = f"{sys.executable} -c 'from cli import app; app()' status --work none {closed}"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=_ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


@pytest.mark.parametrize("command", ["extract", "train-heads", "submit", "report", "status", "verify", "prune", "demo"])
def test_a_file_in_place_of_the_folder_to_write_to_is_a_usage_error(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    option = "--out" if command == "demo" else "--work"
    result = vp(command, option, "file")
    assert result.exit_code == 2
    assert result.stderr == f"error: {option} must be a folder or not be there yet, however file is none\n"
    assert Path("file").read_text() == "mine"


def _vp_process(*arguments, **options):
    command = [sys.executable, "-c", "from cli import app; app()", *arguments]
    return subprocess.run(command, env=_ENVIRONMENT, text=True, check=False, **options)


def test_a_closed_stdout_is_no_crash(tmp_path):
    (tmp_path / "a.csv").write_text("id,views\na,1\nb,2\n")
    command = f"{sys.executable} -c 'from cli import app; app()' score --submission a.csv --truth a.csv --json | true"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=_ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
