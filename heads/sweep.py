"""Several configurations of one head: which values are tried, which wins, and how much the winning flatters.

The winner has the lowest out-of-fold error of its final epoch; `best` has seen the rows that score it. Having been
chosen on the rows that score it, even the winner's error flatters. The nested error does not: each fold is scored with
the configuration that is best on the other folds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from heads.config import Config, HeadsConfig
from heads.folds import FoldPlan
from heads.inputs import Inputs
from heads.members import FittedModel, Training

SWEPT_FIELDS: Mapping[str, type] = {"lr": float, "hidden-dim": int, "dropout": float, "weight-decay": float}
"""What can be tried, named as its option, and what its values are."""

MOST = 64
"""Most configurations of one sweep: beyond, the best of them is mostly luck."""


def configurations(config: Config, texts: Sequence[str]) -> Sequence[Config]:
    """Every combination of the values, the first key slowest; the other fields are those of `config`.

    Raises ValueError for a text that is not such as lr=1e-3,3e-3, for a key or value given twice, for a value that the
    configuration refuses, and for more than `MOST` combinations.

    >>> tried = configurations(HeadsConfig(), ["lr=1e-3,3e-3", "dropout=0,0.2"])
    >>> [(one.lr, one.dropout) for one in tried]
    [(0.001, 0.0), (0.001, 0.2), (0.003, 0.0), (0.003, 0.2)]
    """
    values = dict(_parsed(text) for text in texts)
    if len(values) < len(texts):
        raise ValueError(f"--sweep must name each key once, given {' and '.join(texts)}: write all its values together")
    count = int(np.prod([len(own) for own in values.values()]))
    if count > MOST:
        raise ValueError(f"--sweep tries at most {MOST} configurations, given {count}: leave some values out")
    fields = [key.replace("-", "_") for key in values]
    combinations: list[dict[str, Any]] = [dict(zip(fields, each, strict=True)) for each in product(*values.values())]
    return [replace(config, **combination) for combination in combinations]


def _parsed(text: str) -> tuple[str, list[int] | list[float]]:
    key, _, listed = text.partition("=")
    key, kind = key.strip(), SWEPT_FIELDS.get(key.strip())
    if kind is None:
        raise ValueError(f"--sweep takes one of {', '.join(SWEPT_FIELDS)} and its values, not {text!r}")
    try:
        values = [kind(value) for value in listed.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ValueError(f"--sweep {key} takes {what} such as {key}=A,B, not {text!r}") from None
    if not np.isfinite(values).all():
        raise ValueError(f"--sweep {key} takes finite numbers, not {text!r}")
    if len(set(values)) < len(values):
        raise ValueError(f"--sweep must give each value once, given {text!r}")
    return key, values


@dataclass(frozen=True, eq=False)
class Selection:
    """Squared errors of every configuration, summed over the rows that each fold validates, and what follows."""

    configs: Sequence[HeadsConfig]
    varied: Sequence[str]
    best: Float64[np.ndarray, "configuration fold"]
    final: Float64[np.ndarray, "configuration fold"]
    sizes: Int64[np.ndarray, " fold"]

    @classmethod
    def of(
        cls,
        configs: Sequence[HeadsConfig],
        texts: Sequence[str],
        trainings: Sequence[Training[FittedModel]],
        *,
        inputs: Inputs,
        log_views: Float64[np.ndarray, " video"],
        plan: FoldPlan,
    ) -> "Selection":
        """Let every configuration predict what each fold validates, as the mean over its seeds."""
        best, final = (
            np.array([_squared_errors(training, moment, inputs, log_views, plan) for training in trainings])
            for moment in ("best", "final")
        )
        return cls(configs, [_parsed(text)[0] for text in texts], best, final, plan.sizes)

    @property
    def chosen(self) -> int:
        """The place of the winner, the first of equals."""
        return int(self.final.sum(axis=1).argmin())

    def chosen_without(self, fold: int) -> int:
        """The place of the winner on all folds but this one."""
        return int(np.delete(self.final, fold, axis=1).sum(axis=1).argmin())

    @property
    def nested_msle(self) -> float:
        """Error of the configurations that the other folds chose."""
        errors = [self.final[self.chosen_without(fold), fold] for fold in range(len(self.sizes))]
        return float(np.sum(errors) / self.sizes.sum())

    def facts(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        n_rows = float(self.sizes.sum())
        rows = [
            self._values(place)
            | {"oof_msle": float(best.sum() / n_rows), "oof_msle_final": float(final.sum() / n_rows)}
            | {"fold_msle_final": (final / self.sizes).tolist()}
            for place, (best, final) in enumerate(zip(self.best, self.final, strict=True))
        ]
        return {
            "configurations": rows,
            "chosen": self._values(self.chosen),
            "chosen_without_fold": [self._values(self.chosen_without(fold)) for fold in range(len(self.sizes))],
            "oof_msle_final": rows[self.chosen]["oof_msle_final"],
            "oof_msle_final_nested": self.nested_msle,
        }

    def _values(self, place: int) -> dict[str, Any]:
        return {key: getattr(self.configs[place], key.replace("-", "_")) for key in self.varied}


def _squared_errors(
    training: Training[FittedModel],
    moment: str,
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
) -> list[float]:
    """Of every fold."""
    errors = []
    for members in training.of_folds:
        rows = plan.val_rows(members[0].fold)
        seen = inputs.take(rows)
        log_pred = np.mean([getattr(member, moment).predict(seen) for member in members], axis=0)
        errors.append(float(np.square(log_pred - log_views[rows]).sum()))
    return errors
