"""What is trained. The paper: both experts, connector, embeddings, time embedder and the layers to and from latents;
the understanding encoder, the autoencoder and the position tables stay as they are."""

from __future__ import annotations

from .config import UniEditConfig


def freeze(model, args: UniEditConfig) -> None:
    """Sets which parameters of a model are trained.

    What no loss reaches is frozen too, so that it is neither computed for nor kept in the optimizer: without a text
    loss that is the text head, and in the last layer what only makes understanding tokens.

    Raises:
        ValueError: If nothing is left to train.
    """
    parts = model.trainable_parts()
    wanted = {
        "vit": not args.freeze_vit,
        "und": not args.freeze_und,
        "gen": not args.freeze_gen,
        "text_only": not args.freeze_und and args.text_loss_weight > 0,
        "fixed": False,
    }
    for part, parameters in parts.items():
        for parameter in parameters:
            parameter.requires_grad_(wanted[part])
    if not any(wanted.values()):
        raise ValueError("freeze_vit, freeze_und and freeze_gen leave nothing to train: set one of them to false.")
