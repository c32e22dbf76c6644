"""Pages that people look at: what a run came to, several runs side by side, what a store holds."""
