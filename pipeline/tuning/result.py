"""What a fine-tuning ends with: members, out-of-fold scores beside those it started from, and the files of a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from heads.members import FittedModel, TrainedMember, Training
from heads.metrics import msle
from pipeline.config import FinetuneConfig
from pipeline.csv_text import publish_table
from pipeline.dataset import Dataset
from pipeline.outcome import Outcome, table
from pipeline.run_files import write_run
from pipeline.run_record import read_metrics
from pipeline.runs import MOMENTS
from pipeline.scores import OutOfFold, distribution, metrics_of
from pipeline.settings import repeated_flags, to_plain
from pipeline.tuning.finetuned import TEST_PREDICTIONS, predictions_table, table_digest
from pipeline.tuning.fold import Made, Trained
from pipeline.tuning.start import SCORES, Start


@dataclass(frozen=True, eq=False, kw_only=True)
class Result:
    """The members of all folds; `factors` say by fold and moment how far each goes from the frozen weights."""

    name: str
    config: FinetuneConfig
    dataset: Dataset
    start: Start
    precision: str
    trained: Mapping[int, Trained]
    made: Mapping[int, Made]
    factors: Mapping[int, Mapping[str, float]]

    def scored(self) -> tuple[Training[FittedModel], OutOfFold]:
        """Every member, and what it predicts for the rows of its fold."""
        plan, truth, made, trained = self.start.plan, self.start.log_views, self.made, self.trained
        modalities = self.start.run.modalities
        best, final, baseline = np.full((3, len(truth)), np.nan)
        contributions = np.full((len(modalities), len(truth)), np.nan)
        members: list[TrainedMember[FittedModel]] = []
        for fold in range(plan.n_folds):
            rows, member = plan.val_rows(fold), made[fold]
            baseline[rows] = member["best"].validation.baseline
            contributions[:, rows] = member["best"].validation.contributions
            best[rows] = member["best"].validation.log_views
            final[rows] = member["final"].validation.log_views
            members.append(
                TrainedMember(
                    fold=fold,
                    best=member["best"].heads,
                    final=member["final"].heads,
                    best_epoch=trained[fold].best_epoch,
                    best_msle=msle(truth[rows], best[rows]),
                    final_msle=msle(truth[rows], final[rows]),
                    train_size=len(plan.train_rows(fold)),
                    val_size=len(rows),
                    history=tuple(trained[fold].records),
                )
            )
        chosen = {moment: [self.factors[fold][moment] for fold in sorted(made)] for moment in MOMENTS}
        facts = {"wise_factors": chosen}
        return Training(members, facts=facts), OutOfFold(plan, truth, best, final, baseline, contributions)

    def metrics(self, training: Training[FittedModel], oof: OutOfFold) -> dict[str, Any]:
        """Every number of the run, and what the frozen run had."""
        run = self.start.run
        before, reference = read_metrics(run, *SCORES), np.datetime64(run.part("reference_date"))
        metrics = {"run": self.name, "head": run.part("config").get("head"), "rows": len(oof.log_views)}
        metrics |= metrics_of(training, oof, run.modalities, self.dataset.train.ages_years(reference))
        frozen = {key: before[key] for key in SCORES}
        return metrics | {"before_tuning": frozen, "duplicates_across_folds": before.get("duplicates_across_folds", {})}

    def write(self, aside: Path, training: Training[FittedModel], oof: OutOfFold, metrics: Mapping[str, Any]) -> None:
        """Every file of the run but those of the towers, which the workers wrote."""
        facts = facts_of(self.name, self.config, self.start, self.precision)
        facts["towers"] = [{m: self.made[fold][m].towers for m in MOMENTS} for fold in sorted(self.made)]
        if (test := self.dataset.test) is not None:
            folds = [_columns(self.made[fold], self.start.run.modalities) for fold in sorted(self.made)]
            publish_table(aside / TEST_PREDICTIONS, predictions_table(test.ids, folds))
            facts["test_digest"] = table_digest(test)
        write_run(aside, facts=facts, metrics=metrics, training=training, oof=oof, videos=self.dataset.train)


def facts_of(name: str, config: FinetuneConfig, start: Start, precision: str) -> dict[str, Any]:
    """What run.json says besides the digests of the files."""
    run, encoder = start.run, start.encoder
    same = ("modalities", "sources", "encoders", "reference_date", "target", "folds", "rows")
    return {
        "name": name,
        "config": {**run.part("config"), **to_plain(config), "name": name, "init": run.name}
        | {"model": list(run.part("encoders"))},
        **{key: run.part(key) for key in same},
        "seeds": [None],
        "additive": True,
        "finetuned_from": {
            "run": run.name,
            "config": run.part("config"),
            "checkpoints": {
                file: digest for file, digest in run.checkpoint_digests.items() if file.endswith("_final.safetensors")
            },
            "weights_sha256": encoder.weights_sha256,
            "precision": precision,
            "frozen_modalities": start.frozen,
        },
        "training_log_views": distribution(start.log_views),
        "versions": {package: version(package) for package in ("vp", "torch", "transformers", "numpy", "safetensors")},
    }


def outcome(config: FinetuneConfig, folder: Path, metrics: Mapping[str, Any], *, has_test: bool) -> Outcome:
    """What is shown: the scores of both runs side by side."""
    frozen, name = metrics["before_tuning"], metrics["run"]
    folds = range(len(metrics["fold_msle"]))
    lines = [["MSLE", *[f"fold {fold}" for fold in folds], "all"]]
    for label, source in (("frozen", frozen), ("fine-tuned", metrics)):
        for which, suffix in (("best epoch", ""), ("last epoch", "_final")):
            each = [f"{value:.4f}" for value in source[f"fold_msle{suffix}"]]
            lines.append([f"{label}, {which}", *each, f"{source[f'oof_msle{suffix}']:.4f}"])
    factors = metrics["chosen"]["wise_factors"]
    lines += [[f"share of tuned weights, {moment}", *[f"{f:g}" for f in factors[moment]], ""] for moment in MOMENTS]
    for modality, mean in metrics["weights"].items():
        each = [f"{weights[modality]:.3f}" for weights in metrics["fold_weights"]]
        lines.append([f"weight {modality}", *each, f"{mean:.3f}"])
    score = (
        f"out-of-fold MSLE {metrics['oof_msle_final']:.4f} of the last epoch, {frozen['oof_msle_final']:.4f} before; "
        f"a constant scores {metrics['oof_msle_constant']:.4f}"
    )
    done = f"{name}: {metrics['rows']} videos in {metrics['seconds']:.1f} s -> {folder}"
    following = f"vp submit --run {name} --method mean{repeated_flags(config)}" if has_test else ""
    return Outcome([*table(lines), "", score, done], metrics, following)


def _columns(made: Made, modalities: list[str]) -> dict[str, np.ndarray]:
    test = {moment: member.test for moment, member in made.items() if member.test is not None}
    named = [f"contribution_{modality}" for modality in modalities]
    columns = {f"log_pred_{moment}": predicted.log_views for moment, predicted in test.items()}
    return columns | dict(zip(named, test["best"].contributions, strict=True))
