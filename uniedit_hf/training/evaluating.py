"""Evaluation during training: losses over all tokens of the evaluation data, with unusable rows set aside."""

from __future__ import annotations

import torch

from uniedit_hf.row_error import RowError

from . import checks
from .data import DataError
from .loaders import PackLoader, evaluation_loader
from .metrics import RunningSums, loss_means


class EvaluationMixin:
    """The evaluation of a `UniEditTrainer`, which has `args`, `eval_parts`, `reader` and `data`."""

    def begin_evaluations(self) -> None:
        """Prepares the sums of evaluations."""
        self._eval_loaders: dict[str, PackLoader] = {}
        self._eval_sums = RunningSums()
        self._eval_bad_rows: dict[str, RowError] = {}

    def get_eval_dataloader(self, eval_dataset=None) -> PackLoader:
        """The evaluation rows in packs, with the same draws at every evaluation.

        Args:
            eval_dataset: The name of one of several data sets, or another data set.
        """
        if eval_dataset is None or isinstance(eval_dataset, str):
            name = eval_dataset or ""
            if name not in self.eval_parts:
                raise ValueError("There is nothing to evaluate on: give eval_dataset.")
            if name not in self._eval_loaders:
                self._eval_loaders[name] = evaluation_loader(self.eval_parts[name], self.reader, self.args)
            return self._eval_loaders[name]
        (part,) = checks.evaluation_parts(eval_dataset, self.args.make_recipe()).values()
        return evaluation_loader(part.for_model(self.processing_class), self.reader, self.args)

    def get_test_dataloader(self, test_dataset) -> PackLoader:
        """The rows of `predict()`, whose metrics are the losses."""
        return self.get_eval_dataloader(test_dataset)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """The loss of one batch; the parts are summed for the means over all of them."""
        inputs = {name: value for name, value in inputs.items() if not name.startswith("num_")}
        self._eval_bad_rows |= {row.row_id: row for notes in inputs["pack"] for row in notes.bad_rows}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None

    def evaluation_loop(self, dataloader, *args, metric_key_prefix: str = "eval", **kwargs):
        """The mean of each loss part over all tokens: `eval_loss`, `eval_image_loss`, `eval_text_loss`; with
        quarantine also `eval_quarantined_rows`.

        Raises:
            DataError: No row can be used, so there is no loss.
        """
        self._eval_sums.clear()
        self._eval_bad_rows = {row.row_id: row for row in getattr(dataloader, "bad_rows", ())}
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        self.data.set_aside_in_evaluation(self._eval_bad_rows.values())
        self._eval_sums.add(quarantined_rows=len(self._eval_bad_rows))
        sums = self._eval_sums.over_all(self.accelerator)
        means = loss_means(sums)
        if not means:
            raise DataError(
                f"No row of the evaluation data can be used ({int(sums['quarantined_rows'])} are left out, see "
                f"{self.data.evaluation_file}), so there is no {metric_key_prefix}_loss: correct the data, or leave "
                "eval_dataset out."
            )
        weights = {"image": self.args.image_loss_weight, "text": self.args.text_loss_weight}
        output.metrics[f"{metric_key_prefix}_loss"] = sum(weights[part] * mean for part, mean in means.items())
        output.metrics.update({f"{metric_key_prefix}_{part}_loss": mean for part, mean in means.items()})
        if self.args.bad_rows == "quarantine":
            output.metrics[f"{metric_key_prefix}_quarantined_rows"] = int(sums["quarantined_rows"])
        return output
