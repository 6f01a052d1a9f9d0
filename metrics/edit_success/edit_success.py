"""Shares of pixels that an edit changes correctly and preserves: `evaluate.load("metrics/edit_success")`."""

import datasets
import evaluate

from uniedit_hf.evaluation.scorers.marks import mean
from uniedit_hf.evaluation.scorers.pixels import score_edit


class EditSuccess(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="Shares of pixels: changed as in the target, and kept as in the source.",
            citation="",
            inputs_description="predictions, references (targets) and sources: images of one size each.",
            features=datasets.Features({name: datasets.Image() for name in ("predictions", "references", "sources")}),
        )

    def _compute(self, predictions, references, sources):
        scores = [score_edit(*pictures) for pictures in zip(predictions, sources, references)]
        return {
            name: mean(score[name] for score in scores if score[name] is not None)
            for name in ("success", "preservation")
        }
