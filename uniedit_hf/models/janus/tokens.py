"""What a token of a sequence is: padding, text or a marker, a token of SigLIP's view, or one of the VQ view."""

PADDING, TEXT, SIGLIP, VQ = range(4)
