"""JSON from anywhere, bounded before it is parsed."""

from __future__ import annotations

import json
from typing import Any

from storage.errors import ScanRejected, one_line

MAX_JSON_BYTES = 64 * 1024**2


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """Decode a JSON object.

    Args:
        data: the whole file.
        where: name of the file, for messages.

    Raises:
        ScanRejected: too large, no JSON, nested too deep, or no object.
    """
    if len(data) > MAX_JSON_BYTES:
        why = f"{len(data)} bytes, at most {MAX_JSON_BYTES} are read"
        raise ScanRejected(one_line("JSON file is too large", where, why, "export it again"))
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ScanRejected(one_line("is no JSON file", where, str(error), "copy or export it again")) from error
    if not isinstance(value, dict):
        why = f"found {type(value).__name__}"
        raise ScanRejected(one_line("holds no JSON object", where, why, "export it again"))
    return value
