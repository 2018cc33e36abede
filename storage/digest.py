"""SHA-256 digests of bytes, files and plain values."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def digest_bytes(data: bytes) -> str:
    """SHA-256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Encode plain values as JSON with sorted keys and no spaces. Equal values, same bytes.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value is not plain.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_json(value: Any) -> str:
    """SHA-256 of the canonical JSON of a plain value."""
    return digest_bytes(canonical_json(value))
