"""The checkpoints of a training that is under way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.training_curves import JSON_LINES, TENSORBOARD, encode_line, event, event_file_start
from storage.digest import digest_bytes
from storage.errors import StorageConflict, one_line
from storage.store import Store

FOLDER = "checkpoints"
"""Of a workspace."""
_KEPT_CHECKPOINTS = 2
_DIGITS = 32
"""Of a checkpoint's SHA-256 in its name."""


class Checkpoints:
    """The last checkpoints of a training that is under way; those of other data or settings are never taken up.

    Each holds the best weights so far too, where there is something to tell them by. The training curve lies beside
    them, for TensorBoard to watch.

    Args:
        store: the workspace's store.
        key: the model's name; of a baseline MODEL/METHOD.
        digest: of all that the training depends on.
    """

    def __init__(self, store: Store, key: str, digest: str) -> None:
        self._store, self._all = store, f"{FOLDER}/{key}"
        self._own = f"{self._all}/{digest[:16]}"
        self._curve = bytearray()
        self._events = bytearray(event_file_start())

    def save(self, name: str, data: bytes) -> None:
        """Keep a checkpoint and the curve up to it; names sort by progress and end in a digest; the oldest ones go."""
        stem, _, ending = name.rpartition(".")
        self._store.put(f"{self._own}/{stem}.{digest_bytes(data)[:_DIGITS]}.{ending}", data)
        self._store.put(f"{self._own}/curve/{JSON_LINES}", bytes(self._curve))
        self._store.put(f"{self._own}/curve/{TENSORBOARD}", bytes(self._events))
        for path in self._kept()[:-_KEPT_CHECKPOINTS]:
            self._store.delete(path)

    def record(self, line: Mapping[str, Any]) -> None:
        """Add a line to the curve, which is written with the next checkpoint."""
        self._curve += encode_line(line)
        self._events += event(line)

    def newest(self) -> bytes | None:
        """The checkpoint to go on from, or None.

        Raises:
            StorageConflict: it was changed after it was written.
        """
        from model.checkpoint import decode  # torch: loaded by the steps that need it alone

        kept = self._kept()
        if not kept:
            return None
        data = self._store.get(kept[-1])
        if digest_bytes(data)[:_DIGITS] != kept[-1].split(".")[-2]:
            why, remedy = "its digest is not the one in its name", "delete it; training goes on from the one before"
            raise StorageConflict(one_line("checkpoint is damaged", f"{self._store.url}/{kept[-1]}", why, remedy))
        for line in decode(data, kept[-1])[1]["curve"]:
            self.record(line)
        return data

    def clear(self) -> None:
        """Remove all checkpoints of the model, once it is published."""
        for path in self._store.list(self._all):
            self._store.delete(path)

    def _kept(self) -> list[str]:
        return [path for path in self._store.list(self._own) if path.endswith(".safetensors")]
