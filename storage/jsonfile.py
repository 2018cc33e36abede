"""JSON from anywhere, bounded before it is parsed."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from storage.errors import ScanRejected, one_line

MAX_JSON_BYTES = 16 * 1024**2
MAX_DEPTH = 40
_AGAIN = "copy or export it again"


def read_json(data: bytes, where: str) -> dict[str, Any]:
    """Decode a JSON object.

    Args:
        data: the whole file: UTF-8, or UTF-16 and UTF-32 with a mark of their own.
        where: name of the file, for messages.

    Raises:
        ScanRejected: too large, no JSON, not in Unicode, a key that stands twice, nested too deep, or no object.
    """
    if len(data) > MAX_JSON_BYTES:
        why = f"{len(data)} bytes, at most {MAX_JSON_BYTES} are read"
        raise ScanRejected(one_line("JSON file is too large", where, why, "export it again"))
    try:
        text = data.decode(json.detect_encoding(data))
        value = json.loads(text, object_pairs_hook=_unambiguous)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair can't be written again
    except UnicodeError as error:
        raise ScanRejected(one_line("is no Unicode text", where, str(error)[:200], "save it as UTF-8")) from error
    except RecursionError as error:
        raise ScanRejected(one_line("is nested too deep", where, f"over {MAX_DEPTH} levels", _AGAIN)) from error
    except ValueError as error:
        raise ScanRejected(one_line("is no JSON file", where, str(error)[:200], _AGAIN)) from error
    if not isinstance(value, dict):
        why = f"found {type(value).__name__}"
        raise ScanRejected(one_line("holds no JSON object", where, why, "export it again"))
    if _deeper_than(value, MAX_DEPTH):
        raise ScanRejected(one_line("is nested too deep", where, f"over {MAX_DEPTH} levels", _AGAIN))
    return value


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"key {twice[:80]!r} stands twice in one object")
    return value


def _deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels):
        layer = [
            item
            for holder in layer
            for item in (holder.values() if isinstance(holder, dict) else holder)
            if isinstance(item, (dict, list))
        ]
        if not layer:
            return False
    return True
