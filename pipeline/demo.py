"""`vp demo`: draw a small dataset with a known rule, then extract, train-heads, submit, score and report, offline."""

import shlex
import time
from pathlib import Path

from features.errors import UsageError
from features.progress import Progress
from pipeline.config import DemoConfig, ExtractConfig, ReportConfig, ScoreConfig, SubmitConfig, TrainHeadsConfig
from pipeline.drawn_dataset import draw_dataset
from pipeline.extract import extract
from pipeline.outcome import Outcome, table
from pipeline.report import report
from pipeline.score import score
from pipeline.submit import submit
from pipeline.train_heads import train_heads

TINY = "tiny"
"""An untrained encoder: it knows nothing of the world, but it keeps enough of what it sees for heads to learn from."""

LEARNING_RATE, BATCH = 3e-3, 64
"""For a few hundred videos; the defaults are for tens of thousands."""


def demo(config: DemoConfig, progress: Progress) -> Outcome:
    """Run the main job from nothing and say how well the known rule was found.

    Raises
    ------
    UsageError, StorageError, LockedError
        `--out` holds something else, or cannot be written.
    """
    start = time.monotonic()
    if config.out.exists() and not config.out.is_dir():
        raise UsageError(f"--out must be a folder or not be there yet, however {config.out} is none")
    data, work = config.out / "dataset", config.out / "work"
    progress.note(f"drawing a dataset with a known rule in {data}")
    rule = draw_dataset(data)
    extracted = extract(ExtractConfig(data=data, work=work, model=TINY), progress)
    trained = train_heads(
        TrainHeadsConfig(data=data, work=work, model=(TINY,), lr=LEARNING_RATE, batch_size=BATCH), progress
    )
    metrics = trained.facts
    submitted = submit(SubmitConfig(data=data, work=work, run=(metrics["run"],)), progress)
    path = Path(submitted.facts["path"])
    scored = score(ScoreConfig(submission=path, truth=data / "test_views.csv"), progress)
    reported = report(ReportConfig(data=data, work=work, run=metrics["run"]), progress)
    lines = [["modality", "weight found", "spread over folds", "weight in the rule"]]
    for modality, weight in metrics["weights"].items():
        spread = f"±{metrics['weights_sd'][modality]:.2f}"
        lines.append([modality, f"{weight:.2f}", spread, f"{rule.weights[modality]:.2f}"])
    errors = [["", "MSLE"]]
    errors.append(["a constant", f"{metrics['oof_msle_constant']:.2f}"])
    errors.append(["the heads, out of fold", f"{metrics['oof_msle']:.2f}"])
    errors.append(["the submission, on the test videos", f"{scored.facts['msle']:.2f}"])
    errors.append(["the noise in the rule: nobody can do better", f"{rule.noise**2:.2f}"])
    files = [["dataset", data], ["embeddings", work / "embeddings" / TINY], ["run", work / "runs" / metrics["run"]]]
    files += [["submission", path], ["report", reported.facts["path"]]]
    facts = {"seconds": time.monotonic() - start, "extract": extracted.facts, "train_heads": metrics}
    facts |= {"submit": submitted.facts, "score": scored.facts, "report": reported.facts, "rule": vars(rule)}
    places = f"--data {shlex.quote(str(data))} --work {shlex.quote(str(work))}"
    following = f"vp train-heads {places} --modalities text,age --name no_image"
    summary = [*table(errors), "", *table(lines), "", *(f"{name:<11} {path}" for name, path in files)]
    return Outcome(summary, facts, following)
