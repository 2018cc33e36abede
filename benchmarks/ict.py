"""The ICT heads and the tool that captures them: benchmarks on them look for both in ``shared`` beside the checkout.

They are no part of the project, and nothing but benchmarks and heavy tests wants them.
"""

from __future__ import annotations

import sys
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
HEADS = SHARED / "heads" / "ict_heads.npz"
CAPTURE_TOOL = SHARED / "tools" / "ict_captures.py"


def require_ict() -> None:
    """End the benchmark with one line where they are missing."""
    missing = [str(path) for path in (HEADS, CAPTURE_TOOL) if not path.is_file()]
    if missing:
        sys.exit(f"{', '.join(missing)}: not there; this benchmark needs the ICT heads and their capture tool")
