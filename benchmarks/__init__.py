"""Programs that measure: each prints one JSON line; RESULTS.md has the figures that the README claims."""
