"""How the hot loops over pixels, voxels and vertices are compiled."""

from __future__ import annotations

from functools import partial

import numba

compiled = partial(numba.njit, cache=True, nogil=True, error_model="numpy")
"""Decorator of a loop: the machine code is kept beside the module, and the interpreter's lock is let go.

A division by zero gives an infinity or NaN as in numpy. The test for it that Python's own rule wants before every
division keeps loops from vector instructions; where a divisor may be zero, the loop itself looks first.
"""

compiled_into = partial(compiled, forceinline=True)
"""Decorator of a part of another loop that is always compiled into it, never called.

A part whose sums may be taken in any order needs this, and so does whatever lies between it and the loop. Else there
are two compilations of it that order the sums differently: its own, which runs in the process that compiled it, and the
loop's, which runs wherever the loop came from the cache; so the first run on a machine differed from all others.
"""
