"""What is trained. The paper: both experts, connector, embeddings, time embedder and the layers to and from latents;
the understanding encoder, the autoencoder and the position tables stay as they are."""

from __future__ import annotations

from .config import UniEditConfig


def freeze(model, args: UniEditConfig, draws: bool) -> None:
    """Sets which parameters of a model are trained.

    What no loss reaches is frozen too, so that it is neither computed for nor kept in the optimizer: without a text
    loss that is the text head, and in the last layer what only makes understanding tokens; where no image is drawn,
    the generation expert.

    Args:
        model: With all its heads.
        args: Say what is wanted.
        draws: Whether any sample may hold an image that the model draws.
    """
    wanted = {
        "vit": not args.freeze_vit,
        "und": not args.freeze_und,
        "gen": not args.freeze_gen and draws,
        "text_only": not args.freeze_und and args.text_loss_weight > 0,
        "fixed": False,
    }
    for part, parameters in model.trainable_parts().items():
        for parameter in parameters:
            parameter.requires_grad_(wanted[part])


def adapted_layers(model, args: UniEditConfig, draws: bool) -> str:
    """The layers that adapters go to: those of the decoder that `freeze` would leave to train."""
    return model.lora_target_modules(
        und=not args.freeze_und,
        gen=not args.freeze_gen and draws,
        text=args.text_loss_weight > 0,
    )
