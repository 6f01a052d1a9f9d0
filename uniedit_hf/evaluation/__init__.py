"""Evaluates models on benchmarks: suites, judges, scorers (pure functions from replies to numbers), and confidence
intervals.
"""
