"""The command line itself: its help, its speed, its flags."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import cli
from pipeline.config import CONFIG_OF
from pipeline.settings import options_of

HEAVY = ("torch", "transformers", "pandas", "h5py", "wandb", "sklearn", "numpy")


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
        assert " ".join(option.help.split()) in shown
        assert option.shown_default in shown


def test_no_command_is_a_request_for_help():
    assert "extract" in CliRunner().invoke(cli.app, []).output


def test_an_unknown_option_is_a_usage_error():
    assert CliRunner().invoke(cli.app, ["submit", "--metod", "mean"]).exit_code == 2


def test_a_closed_stdout_is_no_crash(tmp_path):
    (tmp_path / "a.csv").write_text("id,views\na,1\nb,2\n")
    command = f"{sys.executable} -c 'from cli import app; app()' score --submission a.csv --truth a.csv --json | true"
    environment = {"PYTHONPATH": str(cli.__file__).removesuffix("cli.py"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
