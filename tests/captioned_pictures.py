"""Pictures of colours with captions, written as a folder with a table of captions."""

from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}


def write_pairs(folder: Path, count: int, seed: int) -> Path:
    """`count` pictures of a colour and a size, each with one to three captions, its lines apart from each other."""
    random = np.random.default_rng(seed)
    (folder / "shown").mkdir(parents=True)
    lines = []
    for number in range(count):
        name, colour = list(COLOURS.items())[number % len(COLOURS)]
        pixels = np.clip(random.normal(colour, 20, (22, 20, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "shown" / f"{number:03}.png")
        texts = [f"a {name} wall, {number}", f"{number}: {name}, all of it", f'"{name}" number {number}'][
            : 1 + number % 3
        ]
        lines += [(turn, f"shown/{number:03}.png", text) for turn, text in enumerate(texts)]
    rows = ["file,caption"] + [f'{file},"{text.replace(chr(34), chr(34) * 2)}"' for _, file, text in sorted(lines)]
    (folder / "captions.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder
