"""Whether the vectors that are about to be used are of the dataset as it is now; what is not, is told."""

from collections.abc import Mapping
from pathlib import Path

from features.inspection import inspect
from features.plan import CachePlan
from features.progress import Progress, Silent
from features.staleness import Staleness, compare
from features.videos import VideoTable
from pipeline.config import WorkConfig
from pipeline.repairs import extract_command
from pipeline.workspace import Workspace


def tell_outdated(config: WorkConfig, plans: Mapping[str, CachePlan], videos: VideoTable, progress: Progress) -> None:
    """Warn of texts that changed since their vectors were made, and say if thumbnails may have.

    `plans` are the manifests of the caches that are used, by tag. Rows that came are an error of whoever reads the
    cache, rows that went or moved are found by their ids. Files are asked for their sizes and times alone, shard by
    shard: nothing is said of them once rows of a shard went, or where there are no thumbnails.
    """
    for tag, plan in plans.items():
        folder = Workspace(config.work).cache(tag, videos.split)
        found, command = _staleness(folder, plan, videos), extract_command(tag, plan, config)
        if found.texts.count:
            progress.warn(
                f"{tag}: {found.texts.rows} of {videos.path.name} have another text now than their vectors were made "
                f"from ({found.texts.told}): `{command}` encodes just those"
            )
        if found.touched.count and not found.gone.count and videos.thumbnails is not None:
            progress.note(
                f"{tag}: thumbnails were written or copied since their vectors were made, in shards of "
                f"{found.touched.rows} of {videos.path.name}: `{command}` encodes those with another content"
            )


def _staleness(folder: Path, plan: CachePlan, videos: VideoTable) -> Staleness:
    """What differs; the shards are looked at only where the plan alone cannot tell."""
    by_plan = compare(plan, {}, videos, Silent())
    return compare(plan, inspect(folder).shards, videos, Silent()) if by_plan.unknown else by_plan
