"""Tell somebody outside, by a JSON document that is posted to the address in the workspace's settings."""

from __future__ import annotations

import http.client
import json
import logging
import urllib.request
from typing import Any

log = logging.getLogger(__name__)

_SECONDS = 10.0


def notify(url: str, event: str, what: str, **facts: Any) -> bool:
    """Post a document. What listens there must not stop a run: a failure is logged.

    Args:
        url: where to, as ``ServiceConfig`` has checked it; nothing is sent where it is empty.
        event: ``run-failed``, ``rejected-share``, ``promoted`` or ``not-promoted``.
        what: for people, one line.
        facts: plain values that go with it.

    Returns:
        Whether it was taken.
    """
    if not url:
        return False
    data = json.dumps({"event": event, "text": what, **facts}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return bool(response.status < 300)
    except (OSError, http.client.HTTPException) as error:
        log.warning("%s: nobody was told of %s (%s)", url, event, error)
        return False
