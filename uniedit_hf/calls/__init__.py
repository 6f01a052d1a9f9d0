"""Calls to models, whoever makes them: requests, the cache, the budget, retries and limits."""
