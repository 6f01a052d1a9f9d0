"""Everything that stands between a stage and a model: requests, the cache, the budget, retries and limits."""
