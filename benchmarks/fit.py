#!/usr/bin/env python3
"""Meshing, fitting and the comparison with other head models.

    python benchmarks/fit.py [--quick] [--json FILE] [--work DIR] [--rows meshing,speed]

Each part stands in a file of its own. What is finished is kept in DIR, and a killed run goes on.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.fit_comparison import comparison_rows
from benchmarks.fit_meshing import meshing_rows
from benchmarks.fit_scans import scan_rows
from benchmarks.fit_speed import speed_rows

PARTS: dict[str, Callable[[Path, bool], dict[str, float]]] = {
    "meshing": meshing_rows,
    "speed": speed_rows,
    "scans": scan_rows,
    "comparison": comparison_rows,
}
"""Each is given the work folder and whether to be quick; it prints its figures as they come and returns them."""


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small data and few repeats: shows that it works")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--rows", default=",".join(PARTS), help=f"of {', '.join(PARTS)}")
    args = parser.parse_args()
    chosen = args.rows.split(",")
    if unknown := [name for name in chosen if name not in PARTS]:
        parser.error(f"no such rows: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    figures: dict[str, float] = {}
    for name in chosen:
        figures |= PARTS[name](args.work, args.quick)
        if args.json:
            args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
