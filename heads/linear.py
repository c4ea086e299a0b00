"""`--head linear`: ridge regression of every fold in closed form, every penalty at once.

With X the centred, scaled columns of all modalities on the training rows and X'X = Q diag(s) Q',

    coefficients(penalty) = Q diag(1 / (s + penalty)) Q' X'z

so one eigendecomposition per fold serves the whole grid. What a fold uses is decided by the errors of the other folds:
no row that scores a member has chosen anything about it, and `best` and `final` are the same.

Without words it takes two passes over the rows: one for the sums, one for the members' errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from heads.chunks import Chunks, validated_rows
from heads.fitted import Branch, FittedHeads, Head
from heads.fold_ridge import FoldRidge, Solutions
from heads.folds import FoldPlan
from heads.members import TrainedMember, Training, solved_member
from heads.ridge import Problem
from heads.simplex import Gauge, gauge_of_spreads, head_means, head_spreads
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

    ridge: FoldRidge
    candidate: Candidate
    place: int
    errors: Float64[np.ndarray, " penalty"]

    @property
    def solution(self) -> Solutions:
        """The coefficients."""
        return self.candidate.solutions[self.ridge.fold].at(self.place)

    @property
    def squared_error(self) -> float:
        """Sum of squared errors on the rows that the fold validates."""
        return float(self.candidate.errors[self.ridge.fold, self.place])

    @property
    def penalty(self) -> float:
        """The penalty."""
        return float(self.candidate.penalties[self.place])

    def wants_beyond(self, grid: Float64[np.ndarray, " penalty"]) -> bool:
        """Whether the penalty lies at an edge of the grid, and the errors still fall towards that edge."""
        inner = self.errors[max(self.place - 1, 0) : self.place + 2].max()
        return self.penalty in (grid[0], grid[-1]) and bool(inner > (1 + EDGE_SLOPE) * self.errors[self.place])


def fit_linear(
    inputs: Chunks,
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
    choices, grid = _choices(problem, search=search)
    facts = {
        "penalty": [choice.penalty for choice in choices],
        "scales": [dict(choice.candidate.scales) for choice in choices],
    }
    return Training(_members(problem, choices, target), _edge_notes(choices, grid), facts)


def out_of_fold_msle(problem: Problem) -> float:
    """The (weighted) error of all validated rows, all modalities on equal terms; without words it needs one pass."""
    choices, _ = _choices(problem, search=False)
    return sum(choice.squared_error for choice in choices) / float(problem.weights[problem.plan.fold_of >= 0].sum())


def _choices(problem: Problem, *, search: bool) -> tuple[list[Choice], Float64[np.ndarray, " penalty"]]:
    """What every fold uses, and the grid of penalties that it was chosen from."""
    folds = [FoldRidge.build(problem, fold) for fold in range(problem.plan.n_folds)]
    grid = PENALTIES if folds[0].words is None else PENALTIES_WITH_WORDS

    def attempt(scales: Scales, penalties: Float64[np.ndarray, " penalty"]) -> Candidate:
        solutions = [ridge.solve(penalties, scales) for ridge in folds]
        errors = [ridge.squared_errors(own) for ridge, own in zip(folds, solutions, strict=True)]
        return Candidate(scales, penalties, solutions, np.stack(errors))

    equal = attempt({}, grid)
    candidates = _searched(equal, attempt, problem.outline.modalities) if search else [equal]
    return [_chosen(candidates, ridge) for ridge in folds], grid


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


def _chosen(candidates: Sequence[Candidate], ridge: FoldRidge) -> Choice:
    """The candidate and penalty with the least squared error on all folds but this one."""
    elsewhere = [np.delete(candidate.errors, ridge.fold, axis=0).sum(axis=0) for candidate in candidates]
    index = min(range(len(candidates)), key=lambda index: elsewhere[index].min())
    return Choice(ridge, candidates[index], int(elsewhere[index].argmin()), elsewhere[index])


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


def _members(problem: Problem, choices: Sequence[Choice], target: Target) -> list[TrainedMember[FittedHeads]]:
    """The member of every fold, with its errors on the rows that the fold validates."""
    heads = [fitted_heads(choice.ridge, choice.solution, target) for choice in choices]
    predicted = np.full(len(problem.log_views), np.nan)
    for fold, rows, seen in validated_rows(problem.chunks, problem.plan):
        predicted[rows] = heads[fold].predict(seen)
    members = []
    for fold, own in enumerate(heads):
        train_size, rows = len(problem.plan.train_rows(fold)), problem.plan.val_rows(fold)
        members.append(solved_member(own, fold, train_size, problem.log_views[rows], predicted[rows]))
    return members


def fitted_heads(ridge: FoldRidge, solution: Solutions, target: Target) -> FittedHeads:
    """One linear branch per modality; the simplex weights are uniform, as nothing has trained them."""
    modalities = ridge.problem.outline.modalities
    heads = {}
    for modality in modalities:
        coefficients, means = ridge.of_modality(modality, solution)
        scaled = len(modalities) * coefficients
        branch = Branch(
            reader=ridge.readers[modality],
            weights=(scaled[:, None].astype(np.float32),),
            biases=(np.array([-means @ scaled], dtype=np.float32),),
        )
        heads[modality] = Head((branch,))
    uniform = np.full(len(heads), 1 / len(heads))
    gauge = _gauge(ridge, solution, heads, uniform)
    return FittedHeads.in_gauge(heads, gauge, uniform, ridge.standardisation, target)


def _gauge(
    ridge: FoldRidge, solution: Solutions, heads: Mapping[str, Head], raw_weights: Float64[np.ndarray, " modality"]
) -> Gauge:
    """The canonical gauge: of embeddings from the sums, of what is in memory from what its head gives.

    The two differ where a modality learned from targets: its columns in the sums are out of fold.
    """
    problem, train_rows = ridge.problem, ridge.problem.plan.train_rows(ridge.fold)
    centre, spreads = np.zeros((2, len(heads)))
    for index, (modality, head) in enumerate(heads.items()):
        if modality in problem.embeddings.widths:
            spreads[index] = ridge.spread(modality, solution)
            continue
        block = problem.outline.block(modality)
        seen = (head.outputs(block, train_rows)[None], block.present[train_rows][None])
        own_centre = head_means(*seen, problem.weights[train_rows])
        (centre[index],) = own_centre
        (spreads[index],) = raw_weights[index] * head_spreads(*seen, own_centre, problem.weights[train_rows])
    return gauge_of_spreads(spreads, centre, raw_weights, 0.0)
