"""What the store promises, measured: one file a topic, one row a promise. `python -m benchmarks.storage`."""
