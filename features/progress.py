"""What a long stage tells while it runs; the command line decides how that looks."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Told by a stage about its work: first `begin`, then `advance` often, then `end`."""

    def begin(self, label: str, total: int, unit: str) -> None:
        """Work on `total` units starts."""

    def advance(self, units: int, *, bad: int = 0, bottleneck: str = "", device: str = "") -> None:
        """Some more units are done (fewer than 0: some are lost again), on a device if there are several.

        `bad` of them cannot be used; `bottleneck` is where the time goes.
        """

    def end(self) -> None:
        """The work is done."""

    def note(self, text: str) -> None:
        """A fact worth a line."""

    def warn(self, text: str) -> None:
        """Something the user should look at, though the work goes on."""


class Silent:
    """Progress that nobody watches."""

    def begin(self, label: str, total: int, unit: str) -> None:
        """Ignore."""

    def advance(self, units: int, *, bad: int = 0, bottleneck: str = "", device: str = "") -> None:
        """Ignore."""

    def end(self) -> None:
        """Ignore."""

    def note(self, text: str) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""
