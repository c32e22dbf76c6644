"""A small labelled csv for tests: sentences made here, two classes, a pair of files."""

import csv
import random
from pathlib import Path

NOUNS = ("the film", "the plot", "the acting", "this comedy", "the music", "the ending", "a story", "the cast")
GOOD = ("good", "great", "charming", "strong", "warm", "clever", "nice", "fine")
BAD = ("bad", "awful", "dull", "boring", "poor", "cold", "weak", "thin")


def write_csv(path: Path, rows: int, seed: int = 0) -> Path:
    """`rows` sentences of 3 to 30 words with their label, as `text,label`."""
    random_ = random.Random(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(rows):
            label = random_.choice(("negative", "positive"))
            clauses = [
                f"{random_.choice(NOUNS)} is {random_.choice(GOOD if label == 'positive' else BAD)}"
                for _ in range(random_.randint(1, 6))
            ]
            writer.writerow([" and ".join(clauses), label])
    return path
