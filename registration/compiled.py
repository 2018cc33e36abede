"""How the hot loops over pixels, voxels and vertices are compiled."""

from __future__ import annotations

from functools import partial

import numba

compiled = partial(numba.njit, cache=True, nogil=True, error_model="numpy")
"""Decorator of a loop: the machine code is kept beside the module, and the interpreter's lock is let go.

A division by zero gives an infinity or NaN as in numpy. The test for it that Python's own rule wants before every
division keeps loops from vector instructions; where a divisor may be zero, the loop itself looks first.
"""
