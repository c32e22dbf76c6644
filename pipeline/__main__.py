"""`python -m sherl_cache.pipeline` is `sherl-cache`."""

from .cli import entry

if __name__ == "__main__":
    entry()
