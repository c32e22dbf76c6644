"""Whether caching pays on this machine, for this model, data and recipe: measured, predicted, chosen."""
