#!/usr/bin/env python3
"""A picture of the people before the simulated rig.

python benchmarks/rig_pictures.py [FILE]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.rig_scene import Hair, Sitter, draw_sitter, sitter_layers
from registration.mesh import Mesh
from registration.pictures import BACK, FRONT, LEFT, Picture, render, sheet, to_png

_ROWS: tuple[tuple[Hair, tuple[str, str, str, str, str, str]], ...] = (
    ("none", ("neutral", "neutral_open", "neutral", "neutral", "smile", "eyes_closed")),
    ("short", ("neutral_open", "smile", "neutral", "neutral", "jaw_open_wide", "brows_up")),
    ("long", ("neutral", "grin", "neutral", "neutral", "pucker", "frown")),
    ("bun", ("neutral_open", "smile", "neutral", "neutral", "surprise", "sneer")),
    ("curly", ("neutral", "smile", "neutral", "neutral", "funnel", "wink_left")),
)
_AZIMUTHS = (FRONT, 40.0, LEFT, BACK, FRONT, -30.0)


def sitter_mesh(sitter: Sitter, expression: str) -> Mesh:
    """A sitter with all layers and colours, head frame, mm."""
    layers = sitter_layers(sitter, expression, 1.0)
    return Mesh.of(layers.vertices, layers.faces, np.clip(np.round(layers.albedo), 0, 255).astype(np.uint8))


def gallery(seed: int = 6, size: int = 260) -> Picture:
    """Five people, a row each: from four sides, and in two more expressions."""
    rows, titles = [], []
    for number, (hair, expressions) in enumerate(_ROWS):
        sitter = draw_sitter(np.random.default_rng([seed, number]), hair)
        views = zip(expressions, _AZIMUTHS, strict=True)
        rows.append([render(sitter_mesh(sitter, e), a, 0.0, size, (0.0, 14.0, 3.0), 320.0) for e, a in views])
        titles.append(list(expressions))
    return sheet(rows, titles)


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images" / "procedural_head.png"
    out.write_bytes(to_png(gallery()))
