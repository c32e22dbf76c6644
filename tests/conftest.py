"""What every test shares: no network, no deadline on property-based tests (machines differ), quiet libraries."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from hypothesis import settings

settings.register_profile("machines differ", deadline=None)
settings.load_profile("machines differ")
