"""`--head linear`: ridge regression of every fold in closed form, every penalty at once.

With X the centred, scaled columns of all modalities on the training rows and X'X = Q diag(s) Q',

    coefficients(penalty) = Q diag(1 / (s + penalty)) Q' X'z

so one eigendecomposition per fold serves the whole grid. What a fold uses is decided by the errors of the other folds:
no row that scores a member has chosen anything about it, and `best` and `final` are the same.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from heads.fitted import Branch, FittedHeads, Head
from heads.folds import FoldPlan
from heads.inputs import Inputs
from heads.members import TrainedMember, Training, solved_member
from heads.ridge import FoldRidge, Problem, Solutions
from heads.targets import Target

PENALTIES: Float64[np.ndarray, " penalty"] = np.logspace(-2, 5, 30)
"""Penalties on coefficients of columns whose modality has a total variance of 1 per row, for z of variance 1."""

PENALTIES_WITH_WORDS: Float64[np.ndarray, " penalty"] = np.logspace(-1, 3, 9)
"""A coarser grid where words are among the columns: there every penalty is an iterative solution of its own."""

FACTOR = 3.0
"""By how much one step of the search makes a modality cheaper or dearer than the others."""

STEPS = 3
"""Most steps of the search for one modality in one direction."""

WINDOW = 1
"""Penalties on either side of the best one that the search tries with other scales."""

EDGE_SLOPE = 1e-3
"""A penalty at the edge of the grid is worth a warning if its neighbour's error is larger by at least this share."""

Scales = Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Candidate:
    """One choice of scales: every fold's solutions, and their squared errors on the rows that the fold validates."""

    scales: Scales
    penalties: Float64[np.ndarray, " penalty"]
    solutions: Sequence[Solutions]
    errors: Float64[np.ndarray, "fold penalty"]

    @property
    def least(self) -> float:
        """Sum of squared errors over all folds at the best penalty."""
        return float(self.errors.sum(axis=0).min())

    @property
    def around_best(self) -> Float64[np.ndarray, " penalty"]:
        """The best penalty over all folds and its neighbours."""
        best = int(self.errors.sum(axis=0).argmin())
        return self.penalties[max(best - WINDOW, 0) : best + WINDOW + 1]


@dataclass(frozen=True, eq=False)
class Choice:
    """What a fold uses: a candidate, and the place of the penalty in it; `errors` are those of the other folds."""

    candidate: Candidate
    place: int
    errors: Float64[np.ndarray, " penalty"]

    @property
    def penalty(self) -> float:
        """The penalty."""
        return float(self.candidate.penalties[self.place])

    def wants_beyond(self, grid: Float64[np.ndarray, " penalty"]) -> bool:
        """Whether the penalty lies at an edge of the grid, and the errors still fall towards that edge."""
        inner = self.errors[max(self.place - 1, 0) : self.place + 2].max()
        return self.penalty in (grid[0], grid[-1]) and bool(inner > (1 + EDGE_SLOPE) * self.errors[self.place])


def fit_linear(
    inputs: Inputs,
    log_views: Float64[np.ndarray, " video"],
    plan: FoldPlan,
    *,
    seed: int = 0,
    target: Target | None = None,
    weights: Float64[np.ndarray, " video"] | None = None,
    search: bool = True,
) -> Training[FittedHeads]:
    """Fit every fold; with `search`, also how dear each modality is in comparison with the others.

    `weights` (1 where None) are those of the rows.

    Raises ValueError for arrays of different length, UnfitDataError for a target that is constant or not finite.
    """
    given = np.ones(len(log_views)) if weights is None else weights
    return solve(Problem(inputs, log_views, plan, given, seed), target or Target(), search=search)


def solve(problem: Problem, target: Target, *, search: bool) -> Training[FittedHeads]:
    """`fit_linear` of a problem whose sums may have been taken already."""
    plan, inputs = problem.plan, problem.inputs
    folds = [FoldRidge.build(problem, fold) for fold in range(plan.n_folds)]
    grid = PENALTIES if folds[0].words is None else PENALTIES_WITH_WORDS

    def attempt(scales: Scales, penalties: Float64[np.ndarray, " penalty"]) -> Candidate:
        solutions = [ridge.solve(penalties, scales) for ridge in folds]
        errors = [_squared_errors(ridge, fold, solutions[fold]) for fold, ridge in enumerate(folds)]
        return Candidate(scales, penalties, solutions, np.stack(errors))

    equal = attempt({}, grid)
    candidates = _searched(equal, attempt, inputs.modalities) if search else [equal]
    choices = [_chosen(candidates, fold) for fold in range(plan.n_folds)]
    members = [_member(ridge, fold, choices[fold], target) for fold, ridge in enumerate(folds)]
    facts = {
        "penalty": [choice.penalty for choice in choices],
        "scales": [dict(choice.candidate.scales) for choice in choices],
    }
    return Training(members, _edge_notes(choices, grid), facts)


def _squared_errors(ridge: FoldRidge, fold: int, solutions: Solutions) -> Float64[np.ndarray, " penalty"]:
    problem = ridge.problem
    rows = problem.plan.val_rows(fold)
    errors = ridge.predict(rows, solutions) - problem.log_views[rows, None]
    weighted: Float64[np.ndarray, " penalty"] = problem.weights[rows] @ np.square(errors)
    return weighted


def _searched(
    equal: Candidate,
    attempt: Callable[[Scales, Float64[np.ndarray, " penalty"]], Candidate],
    modalities: Sequence[str],
) -> list[Candidate]:
    """Try other scales, one modality after the other, as far as they help; everything that was tried is returned."""
    best, tried = equal, [equal]
    for modality in modalities if len(modalities) > 1 else ():
        for factor in (FACTOR, 1 / FACTOR):
            before = best
            for _ in range(STEPS):
                scales = {**best.scales, modality: best.scales.get(modality, 1.0) * factor}
                candidate = attempt(scales, best.around_best)
                tried.append(candidate)
                if candidate.least >= best.least:
                    break
                best = candidate
            if best is not before:
                break  # cheaper helped, so dearer does not
    return tried


def _chosen(candidates: Sequence[Candidate], fold: int) -> Choice:
    """The candidate and penalty with the least squared error on all folds but this one."""
    elsewhere = [np.delete(candidate.errors, fold, axis=0).sum(axis=0) for candidate in candidates]
    index = min(range(len(candidates)), key=lambda index: elsewhere[index].min())
    return Choice(candidates[index], int(elsewhere[index].argmin()), elsewhere[index])


def _edge_notes(choices: Sequence[Choice], grid: Float64[np.ndarray, " penalty"]) -> list[str]:
    at_edge = {fold: choice.penalty for fold, choice in enumerate(choices) if choice.wants_beyond(grid)}
    if not at_edge:
        return []
    listed = ", ".join(f"fold {fold}: {penalty:g}" for fold, penalty in at_edge.items())
    note = (
        f"the best penalty lies at the edge of the grid from {grid[0]:g} to {grid[-1]:g} ({listed}): "
        "the modalities may tell almost nothing of the target, or determine it"
    )
    return [note]


def _member(ridge: FoldRidge, fold: int, choice: Choice, target: Target) -> TrainedMember[FittedHeads]:
    solution = choice.candidate.solutions[fold].at(choice.place)
    problem, rows = ridge.problem, ridge.problem.plan.val_rows(fold)
    heads = _fitted(ridge, solution, target)
    predicted = heads.predict(problem.inputs.take(rows))
    return solved_member(heads, fold, len(ridge.train_rows), problem.log_views[rows], predicted)


def _fitted(ridge: FoldRidge, solution: Solutions, target: Target) -> FittedHeads:
    """One linear branch per modality; the simplex weights are uniform, as nothing has trained them."""
    modalities = ridge.problem.inputs.modalities
    heads = {}
    for modality in modalities:
        coefficients, means = ridge.of_modality(modality, solution)
        scaled = len(modalities) * coefficients
        branch = Branch(
            reader=ridge.readers.readers[modality],
            weights=(scaled[:, None].astype(np.float32),),
            biases=(np.array([-means @ scaled], dtype=np.float32),),
        )
        heads[modality] = Head((branch,))
    return FittedHeads.canonical(
        heads,
        raw_weights=np.full(len(heads), 1 / len(heads)),
        intercept=0.0,
        inputs=ridge.problem.inputs,
        train_rows=ridge.train_rows,
        standardisation=ridge.standardisation,
        target=target,
        row_weights=ridge.problem.weights[ridge.train_rows],
    )
