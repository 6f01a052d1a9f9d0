"""Calls to models: requests, cache, budget, retries and limits."""
