"""Programs that measure: each prints one JSON line, and what the README claims stands in RESULTS.md."""
