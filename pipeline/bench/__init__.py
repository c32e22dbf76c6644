"""Stage two beside live training of the same model, measured on this machine: each way in a process of its own."""
