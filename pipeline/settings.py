"""One configuration from three sources: the command line wins over `vp.toml`, which wins over the default.

Both sources go through the same parser, so an option means the same wherever it stands.
"""

import dataclasses
import difflib
import math
import shlex
import tomllib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from features.errors import UsageError
from pipeline.config import CONFIG_OF, POSITIONAL, REPEATABLE, WorkConfig

Config = TypeVar("Config")

SHARED = frozenset(field.name for field in dataclasses.fields(WorkConfig))
"""Options of dataset and work folder, which most commands have."""


@dataclass(frozen=True)
class Option:
    """One field of a configuration, as the command line and `vp.toml` see it."""

    name: str
    type: Any
    help: str
    repeatable: bool
    default: Any
    positional: bool = False

    @property
    def key(self) -> str:
        """The name with dashes: `--batch-size` on the command line, `batch-size` in `vp.toml`."""
        return self.name.replace("_", "-")

    @property
    def flag(self) -> str:
        """How the command line names it."""
        return self.key.upper() if self.positional else f"--{self.key}"

    @property
    def only_in_file(self) -> bool:
        """Whether the option is a table, which has no place on a command line."""
        return typing.get_origin(self.type) is Mapping

    @property
    def is_flag(self) -> bool:
        """Whether the option is on or off, `--x` or `--no-x`; not given, it may also be left to vp."""
        return _without_none(self.type) is bool

    @property
    def shown_default(self) -> str:
        """The default as a user would write it; empty if the help text tells it."""
        if self.default is None:
            return "auto" if int in typing.get_args(self.type) else ""
        if isinstance(self.default, bool | tuple):
            return ""
        return str(self.default)

    @property
    def shown_type(self) -> str:
        """What to write as the value."""
        kind = _without_none(self.type)
        if typing.get_origin(kind) is Literal:
            return "|".join(typing.get_args(kind))
        if typing.get_origin(kind) is tuple:
            return "TEXT" if self.repeatable else "A,B,..."
        return {int: "N", float: "X", Path: "PATH", date: "YYYY-MM-DD"}.get(kind, "TEXT")


def options_of(config_class: type) -> list[Option]:
    """The options of a configuration class, in the order in which it declares them, inherited ones last."""
    hints = typing.get_type_hints(config_class, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    own = [name for cls in config_class.__mro__ for name in vars(cls).get("__annotations__", {}) if name in fields]
    options = []
    for name in dict.fromkeys(own):
        kind, help_text, *marks = typing.get_args(hints[name])
        default = fields[name].default
        shown = {} if default is dataclasses.MISSING else default
        options.append(Option(name, kind, help_text, REPEATABLE in marks, shown, POSITIONAL in marks))
    return options


def load(config_class: type[Config], section: str, given: Mapping[str, Any], file: Path | None) -> Config:
    """Build a configuration from what the command line gave and what the file says.

    Parameters
    ----------
    section
        The command's table in the file; keys above all tables count for every command that knows them.
    given
        Field name -> text (or a list of texts, or a bool) for the options that were on the command line.
    file
        The TOML file; None reads `vp.toml` if it is there.

    Raises
    ------
    UsageError
        An unknown key, or a value that the option cannot take; the message names both.
    """
    options = {option.name: option for option in options_of(config_class)}
    path = file or Path("vp.toml")
    values = {}
    if file is not None or path.is_file():
        for key, value in _from_file(path, section, options).items():
            values[key] = parse(options[key], value, f"{key.replace('_', '-')} in {path}")
    for name, value in given.items():
        values[name] = parse(options[name], value, options[name].flag)
    try:
        return config_class(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def parse(option: Option, value: Any, source: str) -> Any:
    """One value, from text or from TOML, as the type of its field.

    >>> option = Option("lr", float, "learning rate", False, 0.001)
    >>> parse(option, "3e-4", "--lr")
    0.0003
    >>> parse(option, "fast", "--lr")
    Traceback (most recent call last):
    features.errors.UsageError: --lr takes a number, not 'fast'
    """
    kind = option.type
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        kind = _without_none(kind)
        if value is None or (value == "auto" and kind not in {str, Path}):  # which is a name as good as any there
            return None
    if typing.get_origin(kind) is Mapping:
        return _table(value, source)
    if typing.get_origin(kind) is tuple:
        return _items(typing.get_args(kind)[0], value, source, repeatable=option.repeatable)
    return _scalar(kind, value, source)


def repeated_flags(config: Any) -> str:
    """Flags about dataset and work folder that the next command needs as well, because they are not at their default.

    >>> from pipeline.config import ExtractConfig
    >>> repeated_flags(ExtractConfig(model="tiny", sep=";", work=Path("elsewhere")))
    " --sep ';' --work elsewhere"
    """
    return flags_of(type(config), {name: getattr(config, name) for name in SHARED if hasattr(config, name)})


def flags_of(config_class: type, values: Mapping[str, Any], leaving_out: Collection[str] = ()) -> str:
    """Those of the given options that are not at their default, as a command line has them, after a space each.

    Values are those of a configuration, or what `to_plain` makes of them; options that only a file has are left out.
    """
    flags = []
    for option in options_of(config_class):
        if option.name not in values or option.name in leaving_out or option.only_in_file:
            continue
        value = _plain(values[option.name]) if isinstance(values[option.name], tuple) else values[option.name]
        if value not in (option.default, _plain(option.default)):
            flags += _as_flags(option, value)
    return "".join(f" {flag}" for flag in flags)


def _as_flags(option: Option, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [f"--{option.key}" if value else f"--no-{option.key}"]
    values = [str(item) for item in value] if isinstance(value, list) else [str(value)]
    if not option.repeatable:
        values = [",".join(values)]
    return [f"{option.flag} {shlex.quote(text)}" for text in values]


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration as JSON-able values, to be kept beside a result; of an absolute path only its last part."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return value.name if value.is_absolute() else str(value)
    if isinstance(value, date):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _from_file(path: Path, section: str, options: Mapping[str, Option]) -> dict[str, Any]:
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: --config names a file of options in TOML") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not readable as TOML: {error}") from error
    tables = {key: value for key, value in document.items() if isinstance(value, dict) and key != "columns"}
    shared = {key: value for key, value in document.items() if key not in tables}
    _refuse_unknown(shared, [option.key for option in options_of(WorkConfig)], path)
    _refuse_unknown(tables, list(CONFIG_OF), path)
    for name, entries in tables.items():
        _refuse_unknown(entries, [option.key for option in options_of(CONFIG_OF[name])], path, f"[{name}] ")
    own = tables.get(section, {})
    known = {option.key: option.name for option in options.values()}
    merged = {**{key: value for key, value in shared.items() if key in known}, **own}
    return {known[key]: value for key, value in merged.items()}


def _refuse_unknown(found: Mapping[str, Any], known: Sequence[str], path: Path, where: str = "") -> None:
    for key in found:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}"
            raise UsageError(f"{path}: unknown key {where}{key!r}{hint}")


def _without_none(kind: Any) -> Any:
    if typing.get_origin(kind) in {typing.Union, types.UnionType}:
        return next(part for part in typing.get_args(kind) if part is not types.NoneType)
    return kind


def _table(value: Any, source: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise UsageError(f'{source} must be a table of names, such as views = "likes"')
    return value


def _items(kind: Any, value: Any, source: str, *, repeatable: bool) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [value] if repeatable else [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise UsageError(f"{source} takes a list, not {value!r}")
    return tuple(_scalar(kind, item, source) for item in value)


def _scalar(kind: Any, value: Any, source: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise UsageError(f"{source} takes one of {', '.join(choices)}, not {value!r}")
        return value
    readers = {bool: _bool, int: _int, float: _float, Path: _path, date: _date, str: _str}
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        Path: "a path",
        date: "a date",
        str: "text",
    }
    try:
        return readers[kind](value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{source} takes {words[kind]}, not {value!r}") from None


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _int(value: Any) -> int:
    if isinstance(value, bool | float):
        raise TypeError
    return int(value)


def _float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value)
    if not math.isfinite(number):
        raise ValueError
    return number


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value:
        raise TypeError
    return Path(value)


def _date(value: Any) -> date:
    if isinstance(value, datetime):  # TOML's dates with a time; which day they mean depends on where one is
        raise TypeError
    return value if isinstance(value, date) else date.fromisoformat(value)


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
