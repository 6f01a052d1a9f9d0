"""Scorers, one file per benchmark: pure functions from replies of a judge, or from detections, to scores and
summaries."""
