"""The command line: parses options, calls one stage, prints what it did.

The options of a command are the fields of its configuration (`pipeline.config`), so flags, `vp.toml` and defaults
cannot disagree. Stages are imported inside commands: `vp --help` loads neither torch nor pandas.
"""

import inspect
import os
import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from features.errors import StorageError, UsageError
from pipeline.config import (
    CONFIG_OF,
    CompareConfig,
    DemoConfig,
    ExtractConfig,
    FinetuneConfig,
    PredictConfig,
    PruneConfig,
    ReportConfig,
    ScoreConfig,
    StatusConfig,
    SubmitConfig,
    TrainHeadsConfig,
    VerifyConfig,
)
from pipeline.console import Console, lead_nowhere
from pipeline.errors import EXPECTED_ERRORS, exit_code
from pipeline.outcome import Outcome
from pipeline.settings import Option, load, options_of

SIGINT_EXIT, SIGTERM_EXIT = 130, 143

app = typer.Typer(
    name="vp",
    help=(
        "Predict how many views a YouTube video gets, from its thumbnail, title, description and age. "
        "The usual order: extract, train-heads, submit, report. Try `vp demo` first."
    ),
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)

Stage = Callable[[Any, Console], Outcome]


def command(config_class: type) -> Callable[[Stage], Stage]:
    """Register a stage as the command whose options are the fields of `config_class`."""
    name = next(name for name, known in CONFIG_OF.items() if known is config_class)

    def register(stage: Stage) -> Stage:
        @wraps(stage)
        def run(config_file: Path | None, json: bool, quiet: bool, **given: Any) -> None:
            values = {key: value for key, value in given.items() if value not in (None, [])}

            def configured(console: Console) -> Outcome:
                outcome = stage(load(config_class, name, values, config_file), console)
                return replace(outcome, next_command=_with_config(outcome.next_command, config_file))

            raise typer.Exit(_run(configured, Console(quiet=quiet), json=json))

        parameters = [_parameter(option) for option in options_of(config_class) if not option.only_in_file]
        vars(run)["__signature__"] = inspect.Signature([*parameters, *_COMMON])
        app.command(name)(run)
        return stage

    return register


def _parameter(option: Option) -> inspect.Parameter:
    """A field as a typer option; the value stays text here, because `pipeline.settings` parses it."""
    flag = option.flag
    text = f"{option.help} [{option.shown_default}]" if option.shown_default else option.help
    kind: Any
    if option.is_flag:
        kind, declaration = bool | None, typer.Option(f"{flag}/--no-{option.key}", help=text, show_default=False)
    elif option.positional:
        kind, declaration = list[str] | None, typer.Argument(help=text, metavar=flag, show_default=False)
    else:
        kind = list[str] | None if option.repeatable else str | None
        declaration = typer.Option(flag, help=text, metavar=option.shown_type, show_default=False)
    annotation = Annotated[kind, declaration]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


_COMMON = [
    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, declaration])
    for name, kind, default, declaration in (
        ("config_file", Path | None, None, typer.Option("--config", help="read this file instead of vp.toml")),
        ("json", bool, False, typer.Option("--json", help="end with one JSON object on stdout")),
        ("quiet", bool, False, typer.Option("--quiet", help="no progress, only warnings and results")),
    )
]


_LESS_MEMORY = "free some, or ask for less of what grows with it (--hidden-dim, --seeds, --batch-size, --workers)"


class Terminated(BaseException):
    """SIGTERM or SIGHUP arrived; not an Exception, so that no handler below takes it for a failure."""


def _with_config(following: str, config_file: Path | None) -> str:
    """The command to run next, which is to read the same file of options."""
    return f"{following} --config {shlex.quote(str(config_file))}" if following and config_file else following


def _run(stage: Callable[[Console], Outcome], console: Console, *, json: bool) -> int:
    """Run one stage to its exit code; a user's mistake is one message, a bug keeps its traceback."""
    _open_closed_streams()
    _turn_signals_into_exceptions()
    _set_up_libraries()
    try:
        outcome = stage(console)
    except EXPECTED_ERRORS as error:
        console.end()
        outcome = Outcome([], error=error)
    except MemoryError as error:
        console.end()
        what = f" ({error})" if str(error) else ""
        outcome = Outcome([], error=UsageError(f"there is not enough memory for that{what}: {_LESS_MEMORY}"))
    except (KeyboardInterrupt, Terminated) as signalled:
        console.end()
        console.error("stopped; what was there before, and whatever was finished, is kept: run the same command again")
        return SIGINT_EXIT if isinstance(signalled, KeyboardInterrupt) else SIGTERM_EXIT
    try:
        _report(outcome, console, json=json)
    except BrokenPipeError:  # `vp ... | head`: the work is done and kept
        lead_nowhere(sys.stdout)
    except OSError as error:
        lead_nowhere(sys.stdout)
        console.error(f"the result cannot be written to stdout: {error.strerror}; what was made is kept")
        outcome = replace(outcome, error=outcome.error or StorageError())
    return 0 if outcome.error is None else exit_code(outcome.error)


def _report(outcome: Outcome, console: Console, *, json: bool) -> None:
    console.data(outcome.summary)
    facts = dict(outcome.facts)
    if outcome.error is not None:
        console.error(str(outcome.error))
        facts |= {"error": str(outcome.error), "exit_code": exit_code(outcome.error)}
    elif outcome.next_command:
        console.note(f"next: {outcome.next_command}")
    if json:
        console.json(facts)


def _open_closed_streams() -> None:
    """`vp ... >&-`: otherwise the first file that is opened gets the number of the stream, and what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            setattr(sys, name, os.fdopen(number, "w" if number else "r"))


def _set_up_libraries() -> None:
    """Say what libraries read when they are loaded; a user's own choice wins.

    numpy's BLAS gets half of the cores, because its threads wait actively for each other: with one of two cores taken
    by other work, the search of the linear head took 86 s with two threads and 5 s with one; on two free cores 3.6 s
    and 5.1 s. GPUs are numbered as nvidia-smi numbers them; left alone, CUDA calls the fastest one 0.
    """
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(max(1, ours // 2)))
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def _turn_signals_into_exceptions() -> None:
    def stop(number: int, _frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second signal ends the process at once
        raise Terminated

    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), stop)


@command(ExtractConfig)
def extract(config: ExtractConfig, console: Console) -> Outcome:
    """Run the frozen encoder once over all thumbnails and texts; a second run does only what is missing."""
    from pipeline.extract import extract as stage

    return stage(config, console)


@command(TrainHeadsConfig)
def train_heads(config: TrainHeadsConfig, console: Console) -> Outcome:
    """Train one head per modality on every fold, from the cached embeddings."""
    from pipeline.train_heads import train_heads as stage

    return stage(config, console)


@command(FinetuneConfig)
def finetune(config: FinetuneConfig, console: Console) -> Outcome:
    """Unfreeze the encoder of a run and train it with the run's heads, one fold per GPU; a killed command goes on."""
    from pipeline.finetune import finetune as stage

    return stage(config, console)


@command(SubmitConfig)
def submit(config: SubmitConfig, console: Console) -> Outcome:
    """Combine the members of a run into a submission for test.csv."""
    from pipeline.submit import submit as stage

    return stage(config, console)


@command(ReportConfig)
def report(config: ReportConfig, console: Console) -> Outcome:
    """Write one self-contained HTML page on a run, and its numbers as JSON."""
    from pipeline.report import report as stage

    return stage(config, console)


@command(PredictConfig)
def predict(config: PredictConfig, console: Console) -> Outcome:
    """Score thumbnails and titles that are not in the dataset: which does better, by how much, and why.

    Percentiles are among what the run predicts of its training videos out of fold, as if they were as old.
    """
    from pipeline.predict import predict as stage

    return stage(config, console)


@command(CompareConfig)
def compare(config: CompareConfig, console: Console) -> Outcome:
    """Tell whether one run predicts better than another on the same videos, and where."""
    from pipeline.compare import compare as stage

    return stage(config, console)


@command(ScoreConfig)
def score(config: ScoreConfig, console: Console) -> Outcome:
    """Score a submission against true views."""
    from pipeline.score import score as stage

    return stage(config, console)


@command(StatusConfig)
def status(config: StatusConfig, console: Console) -> Outcome:
    """Tell what the work folder holds: caches and runs, what they lack, and how far they are from the dataset."""
    from pipeline.status import status as stage

    return stage(config, console)


@command(VerifyConfig)
def verify(config: VerifyConfig, console: Console) -> Outcome:
    """Check every digest and every value of all caches and runs; exit code 7 if anything is wrong."""
    from pipeline.verify import verify as stage

    return stage(config, console)


@command(PruneConfig)
def prune(config: PruneConfig, console: Console) -> Outcome:
    """List what no manifest names and other leftovers; with --yes, remove them."""
    from pipeline.prune import prune as stage

    return stage(config, console)


@command(DemoConfig)
def demo(config: DemoConfig, console: Console) -> Outcome:
    """Draw a small dataset, run extract, train-heads, submit and report on it; offline, in about a minute."""
    from pipeline.demo import demo as stage

    return stage(config, console)


if __name__ == "__main__":
    app()
