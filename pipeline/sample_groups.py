"""The scans' groups in ``samples.zarr``: put, taken away, looked over. One group has one writer."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.sample_format import SAMPLES_ROOT
from storage.manifest import Manifest, Output, describe
from storage.shards import group_metadata
from storage.store import Store

_PARENT = group_metadata({"frame": "head", "units": "mm"})
"""Metadata of the groups above the scans' groups: the same bytes whichever scan writes them."""


def group_path(key: str) -> str:
    """Where a scan's group lies."""
    return f"{SAMPLES_ROOT}/{key}"


def lists_group(manifest: Manifest) -> bool:
    """Whether a manifest of the sample step vouches for a stored group."""
    root = f"{group_path(manifest.key)}/"
    return any(output.path.startswith(root) for output in manifest.outputs.values())


def put_group(store: Store, key: str, objects: Mapping[str, bytes]) -> dict[str, Output]:
    """Put a scan's group, its own metadata last, so that plain Zarr readers too see it whole or not at all.

    The caller has withdrawn the manifest that lists the old one.

    Args:
        objects: bytes by path inside the group.

    Returns:
        What a manifest says of them, by path inside the group.
    """
    folder = group_path(key)
    store.delete(f"{folder}/zarr.json")
    for stray in store.list(folder):
        if stray.removeprefix(f"{folder}/") not in objects:
            store.delete(stray)
    for parent in _parents(key):
        if store.stat(parent) is None or store.get(parent) != _PARENT:
            store.put(parent, _PARENT)
    made = {}
    for path in sorted(objects, key=lambda path: (path == "zarr.json", path)):
        store.put(f"{folder}/{path}", objects[path])
        made[path] = describe(f"{folder}/{path}", objects[path])
    return made


def remove_group(store: Store, key: str) -> None:
    """Take a scan's group away, and its subject's when that holds nothing more. No other scan is touched."""
    folder = group_path(key)
    store.delete(f"{folder}/zarr.json")
    for path in store.list(folder):
        store.delete(path)
    subject = folder.rpartition("/")[0]
    if store.list(subject) == [f"{subject}/zarr.json"]:
        store.delete(f"{subject}/zarr.json")
    store.prune(subject)


def find_damaged_parents(store: Store) -> list[str]:
    """Tell, in a line each, which metadata above the scans' groups is not as it was written.

    No manifest lists it, for many scans share it, and no loader reads it: plain Zarr does. It is put back with the next
    scan below it.
    """
    subjects = {path.split("/")[1] for path in store.list(SAMPLES_ROOT) if path.count("/") > 2}
    lines = []
    for parent in sorted({parent for subject in subjects for parent in _parents(subject)}):
        found = store.get(parent) if store.exists(parent) else None
        if found != _PARENT:
            lines.append(f"{parent} {'is missing' if found is None else 'was changed'}")
    return lines


def _parents(key: str) -> tuple[str, str]:
    return f"{SAMPLES_ROOT}/zarr.json", f"{SAMPLES_ROOT}/{key.partition('/')[0]}/zarr.json"
