"""Which parameters are trained. In the paper: both experts, connector, embeddings, time embedder and the layers to and
from latents;
the understanding encoder, the autoencoder and the position tables are frozen."""

from __future__ import annotations

from .config import UniEditConfig


def freeze(model, args: UniEditConfig, draws: bool) -> None:
    """Sets which parameters of a model are trained.

    Parameters that no loss reaches are frozen too, so that they get no gradient and no optimizer state: without a text
    loss the text head, and in the last layer the parts used only by understanding tokens; if no image is drawn, the
    generation expert.

    Args:
        model: The model with all its heads.
        args: The settings of the run.
        draws: Whether any sample may contain an image that the model draws.
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
    """The layers to adapt: those of the decoder that `freeze` would leave trainable."""
    return model.lora_target_modules(
        und=not args.freeze_und,
        gen=not args.freeze_gen and draws,
        text=args.text_loss_weight > 0,
    )
