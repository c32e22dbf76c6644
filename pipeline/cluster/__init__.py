"""Work on many machines: what a cluster is like, scripts for its scheduler, shares of the work."""
