"""Turns rows of visual questions and answers into intelligent image edits."""
