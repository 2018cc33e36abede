"""Numbers written as text, many at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHUNK_BYTES = 1 << 24


def parse_numbers(text: bytes) -> NDArray[np.float64] | None:
    """All numbers of a text, blanks and line ends between them; None if any word of it is no number."""
    words = count_words(text)
    if not words:
        return np.zeros(0)
    try:
        values: NDArray[np.float64] = np.fromstring(text, np.float64, sep=" ")
    except ValueError:  # what older versions of NumPy only stop at
        return None
    return values if len(values) == words else None


def count_words(text: bytes) -> int:
    """How many words stand between blanks."""
    characters = np.frombuffer(text, np.uint8)
    words, blank_before = 0, True
    for first in range(0, len(characters), _CHUNK_BYTES):
        blank = characters[first : first + _CHUNK_BYTES] <= 32
        words += int(np.count_nonzero(~blank[1:] & blank[:-1])) + int(blank_before and not blank[0])
        blank_before = bool(blank[-1])
    return words


def find_odd_word(text: bytes) -> tuple[int, str]:
    """Where the first word that is no number stands: its line from 0, and the word with what is to be done about it."""
    for number, line in enumerate(text.splitlines()):
        for word in line.split():
            try:
                float(word)
            except ValueError:
                shown = repr(word[:40].decode("ascii", "replace"))
                return number, f"{shown} is no number" + ("; numbers need a decimal point" if b"," in word else "")
    return 0, "a word is no number"
