"""Speed and memory, as ratios to a named baseline in one run: `python -m benchmarks`."""
