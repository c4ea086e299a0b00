"""The terminal: progress and messages on stderr, data on stdout; no animation where nobody watches."""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

WINDOW_SECONDS = 5.0

_FACTS = "{task.fields[facts]}"


class Console:
    """What stages report to; satisfies `features.progress.Progress`."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._err = RichConsole(stderr=True, highlight=False, soft_wrap=True, emoji=False, markup=False)
        self._quiet = quiet
        self._bars: Progress | None = None
        self._work: _Work | None = None

    def begin(self, label: str, total: int, unit: str) -> None:
        """Work on `total` units starts."""
        self.end()
        self._work = _Work(label, total, unit)
        if self._err.is_terminal and not self._err.is_dumb_terminal and not self._quiet:
            label_column, facts_column = (TextColumn(text, markup=False) for text in ("{task.description}", _FACTS))
            columns = (label_column, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), facts_column)
            self._bars = Progress(*columns, console=self._err, transient=True)
            self._bars.add_task(_plain(label), total=total, facts="")
            self._bars.start()

    def advance(self, units: int, *, bad: int = 0, bottleneck: str = "", device: str = "") -> None:
        """Some more units are done, or some are lost again."""
        work = self._work
        if work is None:
            return
        due = work.advance(units, bad, device)
        if self._bars is not None:
            self._bars.update(self._bars.task_ids[0], completed=work.done, facts=work.facts(bottleneck))
        elif due and not self._quiet:
            self._line(f"{work.label}: {work.done}/{work.total} {work.unit}, {work.facts(bottleneck)}, {work.eta()}")

    def end(self) -> None:
        """The work is done, or has failed."""
        if self._bars is not None:
            self._bars.stop()
        self._bars = self._work = None

    def note(self, text: str) -> None:
        """A fact worth a line."""
        if not self._quiet:
            self._line(text)

    def warn(self, text: str) -> None:
        """Something to look at; also shown when quiet."""
        self._line(f"warning: {text}")

    def error(self, text: str) -> None:
        """Why the command ends."""
        self._line(f"error: {text}")

    def data(self, lines: Sequence[str]) -> None:
        """Results, on stdout."""
        for line in lines:
            sys.stdout.write(_plain(line) + "\n")
        sys.stdout.flush()

    def json(self, facts: Mapping[str, Any]) -> None:
        """One JSON object, on one line of stdout."""
        sys.stdout.write(json.dumps(facts, default=str) + "\n")  # in ASCII, so no terminal obeys what is in it
        sys.stdout.flush()

    def _line(self, text: str) -> None:
        try:
            self._err.print(_plain(text))
        except OSError:  # nobody reads the messages any more, or they fill a disk: no reason to stop working
            lead_nowhere(sys.stderr)


class _Work:
    """How far a piece of work is, and how fast."""

    def __init__(self, label: str, total: int, unit: str) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done = self.bad = 0
        self._start = time.monotonic()
        self._recent = [(self._start, 0)]
        self._tenths_told = 0
        self._by_device: Counter[str] = Counter()

    def advance(self, units: int, bad: int, device: str) -> bool:
        """Count; returns whether another tenth of the work is done."""
        self.done += units
        self.bad += bad
        if device:
            self._by_device[device] += units
        now = time.monotonic()
        self._recent = [point for point in self._recent if now - point[0] <= WINDOW_SECONDS] or self._recent[-1:]
        self._recent.append((now, self.done))
        tenths = 10 * self.done // self.total if self.total else 0
        told, self._tenths_told = self._tenths_told, max(tenths, self._tenths_told)
        return tenths > told

    def facts(self, bottleneck: str) -> str:
        (then, done_then), (now, done) = self._recent[0], self._recent[-1]
        recent = (done - done_then) / max(now - then, 1e-9)
        parts = [f"{recent:.1f}/s (mean {self._mean(self.done):.1f}/s)"]
        if len(self._by_device) > 1:
            each = (f"{device} {self._mean(done):.1f}/s" for device, done in sorted(self._by_device.items()))
            parts.append(", ".join(each))
        parts += [f"{self.bad} bad"] if self.bad else []
        parts += [f"most time in: {bottleneck}"] if bottleneck else []
        return ", ".join(parts)

    def eta(self) -> str:
        seconds = round(max(self.total - self.done, 0) / max(self._mean(self.done), 1e-9))
        minutes, seconds = divmod(seconds, 60)
        return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left"

    def _mean(self, done: int) -> float:
        return done / max(time.monotonic() - self._start, 1e-9)


def lead_nowhere(stream: TextIO) -> None:
    """Nobody takes what is printed any more; without this the interpreter complains when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _plain(text: str) -> str:
    """One line without control characters: titles and ids come from outside."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)
