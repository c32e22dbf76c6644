"""Statistics of what a store holds, layer by layer: how large, how redundant, how many dimensions it uses."""
