"""Compiled loops give the same bytes in the process that compiles them and in those that find them in the cache."""

from __future__ import annotations

import os
import subprocess
import sys

FIT = """
import hashlib
import numpy as np
from registration.local_fit import fit_depth, window_radii
told = hashlib.sha256()
v, _ = np.mgrid[:40, :40].astype(float)
for tilt in (0.3, 2.1, 5.57):
    depth_mm = (600 + tilt * v + 0.05 * (v - 20) ** 2).astype(np.float32)
    depth_mm[::3, ::4] = 0
    window, radii = np.array([0, 40, 0, 40]), np.array(window_radii(3))
    for made in fit_depth(depth_mm, depth_mm > 0, window, radii, 0.1, 0.9):
        told.update(made.tobytes())
print(told.hexdigest())
"""


def test_the_first_run_on_a_machine_is_like_all_later_ones(tmp_path):
    # Slopes along u that are zero but for rounding tell in which order the sums were taken.
    env = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    runs = [subprocess.run([sys.executable, "-c", FIT], env=env, capture_output=True, text=True) for _ in range(2)]
    assert runs[0].stdout
    assert runs[0].stdout == runs[1].stdout, runs[1].stderr
