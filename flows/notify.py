"""Tell somebody outside, by a JSON document that is posted to the address in the workspace's settings."""

from __future__ import annotations

import json
import logging
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from storage.errors import ConfigError, one_line

log = logging.getLogger(__name__)

_SECONDS = 10.0


def notify(url: str, event: str, what: str, **facts: Any) -> bool:
    """Post a document. What listens there must not stop a run: a failure is logged.

    Args:
        url: where to; nothing is sent where it is empty.
        event: ``run-failed``, ``rejected-share``, ``promoted`` or ``not-promoted``.
        what: for people, one line.
        facts: plain values that go with it.

    Returns:
        Whether it was taken.

    Raises:
        ConfigError: the address is none of http or https.
    """
    if not url:
        return False
    if urlsplit(url).scheme not in ("http", "https"):
        raise ConfigError(one_line("is no address to post to", url, "service.notify_url", "give http:// or https://"))
    data = json.dumps({"event": event, "text": what, **facts}).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return bool(response.status < 300)
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        log.warning("%s: nobody was told of %s (%s)", url, event, error)
        return False
