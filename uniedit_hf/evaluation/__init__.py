"""Scores of models: pure functions from what was asked and what came out to numbers, and intervals around them."""
