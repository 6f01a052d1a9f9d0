"""Uploads a run to the Hub: weights, averages, processor, settings and card; nothing pickled, and nothing that names
local files (samples, quarantine lists, the trainer's own arguments).
"""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.hf_api import CommitInfo
from peft import PeftModel
from transformers.trainer import PushInProgress
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from uniedit_hf.models.loading import inner_model

from .cards import card_at_hand
from .checkpoints import mark_complete
from .loss_curve import NAME as LOSS_CURVE, draw_loss_curve
from .meters import typical
from .model_card import model_card, read_abilities
from .provenance import data_sources


MODEL_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "README.md", LOSS_CURVE]
NOT_MODEL = [
    f"{PREFIX_CHECKPOINT_DIR}-*",
    "*trainer_state.json",
    "*complete.json",
    "*data_state*",
    "weight_average.safetensors",
    "*_results.json",
]


def upload_model(
    folder: str | Path, repo_id: str, message: str, *, token=None, revision=None, wait: bool = True
) -> CommitInfo | Future[CommitInfo]:
    """Uploads the model in a folder to the root of a repository."""
    return HfApi().upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        commit_message=message,
        token=token,
        revision=revision,
        allow_patterns=MODEL_FILES,
        ignore_patterns=NOT_MODEL,
        run_as_future=not wait,
    )


def upload_checkpoint(folder: Path, strategy: HubStrategy, repo_id: str, message: str, *, token, revision) -> list:
    """Uploads a complete checkpoint in the background: its model to the root and, if the strategy asks for it,
    everything needed to resume. Returns the jobs.
    """
    jobs = [upload_model(folder, repo_id, message, token=token, revision=revision, wait=False)]
    if strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        place = "last-checkpoint" if strategy == HubStrategy.CHECKPOINT else folder.name
        job = HfApi().upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            path_in_repo=place,
            commit_message=f"{message}, checkpoint",
            token=token,
            revision=revision,
            delete_patterns=["*"],
            run_as_future=True,
        )
        jobs.append(job)
    return jobs


class HubMixin:
    """Replaces the Hub methods of `Trainer`: complete checkpoints, averages, cards with sources.

    Must come before `Trainer` among the bases.
    """

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Does nothing: `Trainer` calls this before a checkpoint is complete."""

    def _push_checkpoint(self, folder: Path) -> None:
        """Marks a checkpoint as complete and starts to push it if `hub_strategy` asks for it. Waits for the previous
        push, whose checkpoint may be removed next.
        """
        pushes = self.args.push_to_hub and self.args.hub_strategy != HubStrategy.END and self.is_world_process_zero()
        if pushes:
            self._finish_current_push()
            self._card().save(folder / "README.md")
            draw_loss_curve(self.state.log_history, folder)
        mark_complete(folder)
        if pushes:
            place = {"token": self.args.hub_token, "revision": self.args.hub_revision}
            message = f"Training in progress, step {self.state.global_step}"
            jobs = upload_checkpoint(folder, self.args.hub_strategy, self.hub_model_id, message, **place)
            self.push_in_progress = PushInProgress(jobs)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card,
    ):
        """Saves the model and uploads it with its processor, its average under `ema/` and its card; adapters are
        uploaded as adapters.

        Args:
            commit_message: Message of the commit.
            blocking: Whether to wait for the upload; if not, a `Future` is returned.
            token: Replaces `hub_token`.
            revision: Branch; replaces `hub_revision`.
            private: Whether a new repository is private; replaces `hub_private_repo`.
            card: Arguments of `create_model_card`.

        Returns:
            The commit, or its `Future`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**card)
        self._finish_current_push()
        place = {"token": token, "revision": revision or self.args.hub_revision}
        return upload_model(self.args.output_dir, self.hub_model_id, commit_message, **place, wait=blocking)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | list[str] | None = None,
        tags: str | list[str] | None = None,
        report: str | Path | dict | None = None,
        **metadata,
    ) -> None:
        """Writes `README.md` and the loss curve into the output folder.

        Args:
            model_name: The heading; the folder's name if not given.
            dataset_name: Hub ids of the training data, in addition to those that the data sets record.
            tags: Additional tags.
            report: A comparison of base and tuned model: a `report.json` or its contents.
            metadata: Further fields of the card's metadata, such as `license`.

        Raises:
            ValueError: If the report has no abilities.
        """
        if self.is_world_process_zero():
            folder = Path(self.args.output_dir)
            curve = draw_loss_curve(self.state.log_history, folder)
            self._card(model_name, dataset_name, tags, report, curve, metadata).save(folder / "README.md")

    def _card(self, model_name=None, dataset_name=None, tags=None, report=None, curve=LOSS_CURVE, metadata=None):
        base = inner_model(self.model).config.name_or_path
        return model_card(
            self.args,
            model_name=model_name or (self.hub_model_id or Path(self.args.output_dir).name).split("/")[-1],
            hub_model_id=self.hub_model_id,
            base_model=None if not base or Path(base).is_dir() else base,
            sources=data_sources([part.dataset for part in self.parts], _as_list(dataset_name)),
            tags=[*self._tag_names, *_as_list(tags)],
            paper=self._paper,
            adapters=isinstance(self.model, PeftModel),
            steps=self.state.global_step,
            abilities=read_abilities(report),
            curve=curve,
            metadata=metadata or {},
            measured={
                "way of training": self.choice and self.choice.sentence,
                f"speed on {self.args.world_size} x {card_at_hand(self.args.device).name}": typical(
                    self.state.log_history
                ),
                **self._card_settings(),
            },
        )

    def _card_settings(self) -> dict:
        """More entries for the card; trainers of another kind override this."""
        return {}


def _as_list(names: str | list[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else list(names or [])
