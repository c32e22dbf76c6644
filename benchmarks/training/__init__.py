"""Time and memory of a training step: stage two from a store against live training of the same model."""
