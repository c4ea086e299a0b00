"""Every modality as a few dense columns of one fold: what trees, and the networks of the hybrid head, read."""

from dataclasses import replace

import numpy as np

from heads.readers import AsIs, FoldReaders, Projection, fit_readers
from heads.ridge import Problem
from heads.targets import Standardisation


def component_readers(problem: Problem, fold: int, n_components: int, rng: np.random.Generator) -> FoldReaders:
    """Fit every reader on the fold's training rows; embeddings and words become their principal components."""
    train_rows = problem.plan.train_rows(fold)
    z = Standardisation.fit(problem.log_views[train_rows]).apply(problem.log_views)
    fitted = fit_readers(problem.inputs, z, train_rows, rng, n_components=n_components)
    projections = _projections(problem, fold, n_components)
    columns = {name: projection.read(problem.inputs.block(name)) for name, projection in projections.items()}
    return replace(fitted, readers={**fitted.readers, **projections}, columns={**fitted.columns, **columns})


def _projections(problem: Problem, fold: int, n_components: int) -> dict[str, Projection]:
    """The directions in which each embedding varies most, from the sums that the linear head uses as well."""
    from scipy.linalg import eigh  # noqa: PLC0415  slow, and only these heads need it

    sums = problem.training_sums(fold)
    gram, means = sums.centred()[0], sums.means()
    projections = {}
    for modality, columns in problem.embeddings.slices.items():
        width = columns.stop - columns.start
        _, axes = eigh(gram[columns, columns], subset_by_index=(max(width - n_components, 0), width - 1))
        components = np.ascontiguousarray(axes[:, ::-1].astype(np.float32))
        projections[modality] = Projection(AsIs(width), means[columns].astype(np.float32), components)
    return projections
