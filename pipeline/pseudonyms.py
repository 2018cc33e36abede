"""Names that tell nothing: keyed digests of subjects' ids, stable over a workspace's releases.

The key is drawn once a workspace and kept in it, under ``private/``; no release holds it. Without the key a pseudonym
can't be traced back, not even by trying all ids that a studio might have used.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets

from storage.errors import StorageConflict, one_line
from storage.store import Store

PRIVATE = "private"
"""The folder of a workspace that no release and no report ever shows."""
SECRET_PATH = f"{PRIVATE}/pseudonyms.key"

_KEY_BYTES = 32
_LETTERS = 10
_PSEUDONYM = re.compile(rf"s[a-z2-7]{{{_LETTERS}}}")


class Pseudonyms:
    """Keyed digests under one workspace's key.

    Args:
        key: 32 random bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def of(cls, store: Store) -> Pseudonyms:
        """The pseudonyms of a workspace; its key is drawn at the first call.

        Raises:
            StorageConflict: the key's file is damaged.
        """
        if not store.exists(SECRET_PATH):
            store.put(SECRET_PATH, secrets.token_hex(_KEY_BYTES).encode())
        known = cls.known(store)
        assert known is not None, "the key was just put"
        return known

    @classmethod
    def known(cls, store: Store) -> Pseudonyms | None:
        """The pseudonyms of a workspace, or None where no key was drawn yet.

        Raises:
            StorageConflict: the key's file is damaged.
        """
        try:
            told = store.get(SECRET_PATH)
        except FileNotFoundError:
            return None
        if re.fullmatch(rb"[0-9a-f]{%d}" % (2 * _KEY_BYTES), told) is None:
            remedy = "bring back its copy; with another key every pseudonym changes"
            raise StorageConflict(one_line("is damaged", f"{store.url}/{SECRET_PATH}", "no key", remedy))
        return cls(bytes.fromhex(told.decode()))

    def digest(self, purpose: str, text: str) -> str:
        """64 hexadecimal digits that stand for a text; another purpose gives others."""
        return hmac.new(self._key, f"{purpose}\0{text}".encode(), hashlib.sha256).hexdigest()

    def subject(self, subject: str) -> str:
        """A subject's pseudonym: ``s`` and ten letters or digits."""
        digest = bytes.fromhex(self.digest("subject", subject))
        return "s" + base64.b32encode(digest).decode().lower()[:_LETTERS]

    def scan(self, key: str) -> str:
        """SUBJECT/EXPRESSION under the subject's pseudonym."""
        subject, _, expression = key.partition("/")
        return f"{self.subject(subject)}/{expression}"

    def rig(self, rig: str) -> str:
        """A rig's pseudonym; its own name may hold a serial number."""
        return "rig-" + self.digest("rig", rig)[:6]


def is_pseudonym(name: str) -> bool:
    """Whether a name has the form of a subject's pseudonym."""
    return _PSEUDONYM.fullmatch(name) is not None
