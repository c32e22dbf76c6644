"""Where a run's points go beside its metrics.jsonl: one file a tracker, found by its name and imported when it is asked
for. A file holds `PACKAGE`, what it imports, and `open_tracker(start) -> Tracker`.
"""
