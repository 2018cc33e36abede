"""A model without the rows of a subject: its codes, its lists of names, its manifest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.keys import subject_of
from pipeline.traces import Traces
from storage.errors import StorageConflict, one_line
from storage.manifest import Manifest, describe, rewrite
from storage.store import Store

if TYPE_CHECKING:
    from model.code_rows import NamedCodes

_CODES = ("config.json", "codes.safetensors")
_MARK = {"withdrawn": "rows of a subject"}
"""Among a model's inputs. No plan expects it, so a model that keeps its name is stale."""


def learned_from_withdrawn(manifest: Manifest) -> bool:
    """Whether a model was trained on somebody who was withdrawn since: codes are gone, weights can't forget."""
    return _MARK.keys() <= manifest.inputs.keys()


def without_codes(store: Store, path: str, manifest: Manifest, traces: Traces) -> Callable[[], None] | None:
    """Prepare to take a subject's rows out of a model. The weights of the networks stay as they are.

    What is prepared puts the new manifest first, which says what is to come, and then the files. If it is cut off, a
    repetition finds what is left to do and holds it against that manifest.

    Args:
        store: the workspace's.
        path: of the model's manifest.
        manifest: as it stands; it names the subject, or its files do.
        traces: of the subject.

    Returns:
        What does it, or None where the model has codes of nobody else.

    Raises:
        ConfigError: the model's files can't be understood.
        StorageConflict: they are damaged.
    """
    from model.code_rows import NamedCodes  # torch: loaded where a model is concerned alone

    if not all(name in manifest.outputs for name in _CODES):
        return None
    found = NamedCodes(*(store.get(manifest.outputs[name].path) for name in _CODES))
    subjects, scans = found.names()
    staying = {subject: subject for subject in subjects if subject != traces.subject}
    kept = {key: key for key in scans if subject_of(key) != traces.subject}
    if not staying:
        return None
    cut_off_between = found.rows() == (len(staying), len(kept)) != (len(subjects), len(scans))
    left = NamedCodes(found.keep_names(staying, kept), found.codes) if cut_off_between else found.keep(staying, kept)
    promised = not any(map(traces.in_text, manifest.inputs))
    for name, data in zip(_CODES, _both(left if promised else found), strict=True):
        where = manifest.outputs[name].path
        if describe(where, data) != manifest.outputs[name]:
            why, remedy = "its digest is not the manifest's", "remove the model's folder, then repeat"
            raise StorageConflict(one_line("is damaged", where, why, remedy))
    files = dict(zip(_CODES, _both(left), strict=True))
    for name, output in manifest.outputs.items():  # tables and curves, should they name somebody
        if name not in files and traces.in_data(output.path, data := store.get(output.path)):
            files[name] = traces.removed(output.path, data, "withdrawn") or b""
    told = {source: sha for source, sha in manifest.inputs.items() if not traces.in_text(source)}
    outputs = dict(manifest.outputs) | {name: describe(manifest.outputs[name].path, files[name]) for name in files}
    anew = manifest.model_copy(update={"inputs": told | _MARK, "outputs": outputs})

    def do() -> None:
        rewrite(store, path, anew)
        for name in sorted(files, key=lambda name: name == "config.json"):  # its names last: they tell what is left
            store.put(outputs[name].path, files[name])

    return do


def _both(files: NamedCodes) -> tuple[bytes, bytes]:
    return files.config, files.codes
