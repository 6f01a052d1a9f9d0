"""What a token is: decides how it is embedded and which expert it takes."""

PADDING, TEXT, VIT, LATENT = range(4)
