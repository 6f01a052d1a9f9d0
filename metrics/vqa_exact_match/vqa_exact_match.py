"""Exact match of answers, ignoring case, blanks and a final period: `evaluate.load("metrics/vqa_exact_match")`."""

import datasets
import evaluate

from uniedit_hf.small_world.scoring import score_answer


class VqaExactMatch(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description="The share of answers that are the expected ones.",
            citation="",
            inputs_description="predictions and references: texts.",
            features=datasets.Features({name: datasets.Value("string") for name in ("predictions", "references")}),
        )

    def _compute(self, predictions, references):
        scores = [score_answer(*pair).right for pair in zip(predictions, references)]
        return {"exact_match": sum(scores) / len(scores)}
