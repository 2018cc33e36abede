"""Croissant 1.0 metadata of a release: its files and records as machines read them (JSON-LD, schema.org, mlcommons)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from pipeline.release_config import ReleaseConfig
from pipeline.release_documents import SCANS_PATH, SPLITS_PATH, ReleasedScans
from pipeline.release_words import described
from storage.manifest import Output

CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
_TERMS = (
    "citeAs", "column", "equivalentProperty", "extract", "field", "fileObject", "fileProperty", "fileSet", "format",
    "includes", "isLiveDataset", "jsonPath", "key", "md5", "parentField", "path", "personalSensitiveInformation",
    "recordSet", "references", "regex", "repeated", "replace", "samplingRate", "separator", "source", "subField",
    "transform",
)  # fmt: skip
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "sc": "https://schema.org/",
    "cr": "http://mlcommons.org/croissant/",
    "dct": "http://purl.org/dc/terms/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "conformsTo": "dct:conformsTo",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "examples": {"@id": "cr:examples", "@type": "@json"},
} | {term: f"cr:{term}" for term in _TERMS}
"""The terms of the specification that a description may use."""

_FORMATS = {
    ".json": "application/json",
    ".md": "text/markdown",
    ".npz": "application/octet-stream",
    ".safetensors": "application/octet-stream",
}
_SETS = (
    ("clean-meshes", "clean/*/*/mesh.ply", "Cleaned scans: the capture's own frame, mm."),
    ("watertight-meshes", "clean/*/*/watertight.ply", "Closed companions of the cleaned scans, same frame."),
    ("registrations", "registrations/*/*/mesh.ply", "The template's vertices in each scan: head frame, mm."),
    ("frames", "registrations/*/*/frame.json", "T_world_from_head and throat plane of each scan."),
    ("samples", "samples.zarr/**", "Training samples as Zarr 3 groups: head frame, mm."),
)
_FIELDS = (
    ("key", "sc:Text", "SUBJECT/EXPRESSION, the subject by its pseudonym."),
    ("subject", "sc:Text", "Pseudonym of the person."),
    ("expression", "sc:Text", "What the person did, as the session names it."),
    ("canonical", "sc:Boolean", "Whether it is the person's canonical scan."),
    ("split", "sc:Text", "train or held_out; the same for all scans of a person."),
    ("licence", "sc:Text", "Under which the scan may be used."),
    ("layout", "sc:Text", "How it was captured."),
    ("rig", "sc:Text", "Pseudonym of the rig."),
)


def describe_release(
    config: ReleaseConfig, version: str, published: str, scans: ReleasedScans, files: Sequence[Output]
) -> bytes:
    """Encode ``croissant.json``. Same release, same bytes.

    Args:
        config: what the maker tells.
        version: MAJOR.MINOR.PATCH.
        published: ISO 8601 date, perhaps the year alone.
        scans: what is released.
        files: the release's files so far, sorted by path.
    """
    licences = sorted({scan.licence for scan in scans.scans})
    document: dict[str, Any] = {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": config.name,
        "description": described(config, scans),
        "version": version,
        "license": licences if len(licences) > 1 else licences[0],
        "url": config.url or f"urn:nphm:{config.name}:{version}",
        "creator": {"@type": "sc:Organization", "name": config.creator or config.name},
        "datePublished": published,
        "inLanguage": "en",
        "isLiveDataset": False,
        "keywords": ["3D heads", "head scans", "registration", "signed distance", "parametric model"],
        "personalSensitiveInformation": "Shapes of living people's heads, under pseudonyms and with their consent.",
        "distribution": [*_file_objects(files), *_file_sets(files)],
        "recordSet": [_splits(), _scans()],
    }
    if config.citation:
        document["citeAs"] = config.citation
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def _file_objects(files: Iterable[Output]) -> list[dict[str, Any]]:
    """One for each file that stands for itself: documents, the template and the model."""
    return [
        {
            "@type": "cr:FileObject",
            "@id": file.path,
            "name": file.path,
            "contentUrl": file.path,
            "contentSize": f"{file.bytes} B",
            "encodingFormat": _FORMATS[file.path[file.path.rfind(".") :]],
            "sha256": file.sha256,
        }
        for file in files
        if "/" not in file.path or file.path.startswith("model/")
    ]


def _file_sets(files: Sequence[Output]) -> list[dict[str, Any]]:
    """One for each kind of file that there are many of."""
    tops = {file.path.partition("/")[0] for file in files}
    return [
        {
            "@type": "cr:FileSet",
            "@id": name,
            "name": name,
            "description": meaning,
            "encodingFormat": "application/json" if pattern.endswith(".json") else "application/octet-stream",
            "includes": pattern,
        }
        for name, pattern, meaning in _SETS
        if pattern.partition("/")[0] in tops
    ]


def _scans() -> dict[str, Any]:
    fields = []
    for name, kind, meaning in _FIELDS:
        field: dict[str, Any] = {
            "@type": "cr:Field",
            "@id": f"scans/{name}",
            "name": f"scans/{name}",
            "description": meaning,
            "dataType": kind,
            "source": {"fileObject": {"@id": SCANS_PATH}, "extract": {"jsonPath": f"$.scans[*].{name}"}},
        }
        if name == "split":
            field["references"] = {"field": {"@id": "splits/name"}}
        fields.append(field)
    return {
        "@type": "cr:RecordSet",
        "@id": "scans",
        "name": "scans",
        "description": "One record a scan.",
        "key": {"@id": "scans/key"},
        "field": fields,
    }


def _splits() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "splits",
        "name": "splits",
        "description": f"The two sides that people are on, as {SPLITS_PATH} lists them.",
        "dataType": "cr:Split",
        "key": {"@id": "splits/name"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": "splits/name",
                "name": "splits/name",
                "description": "train or held_out.",
                "dataType": "sc:Text",
            }
        ],
        "data": [{"splits/name": "train"}, {"splits/name": "held_out"}],
    }


def find_faults(document: Any) -> list[str]:
    """What in a Croissant document breaks the rules of the specification that a reader relies on; empty if nothing.

    Args:
        document: as ``storage.jsonfile.read_json`` gives it, which bounds how deep it is nested.
    """
    if not isinstance(document, dict):
        return ["is no JSON object"]
    faults = []
    if document.get("conformsTo") != CONFORMS_TO:
        faults.append(f"conformsTo is {document.get('conformsTo')!r}, not {CONFORMS_TO}")
    context = document.get("@context")
    if not isinstance(context, dict) or context.get("cr") != CONTEXT["cr"]:
        faults.append("@context does not name the Croissant vocabulary")
    missing = [name for name in ("@type", "name", "description", "license", "url", "version") if not document.get(name)]
    if missing:
        faults.append(f"lacks {', '.join(missing)}")
    nodes = list(_nodes(document))
    faults += [f"has an @id that is no text: {node['@id']!r:.80}" for node in nodes if not _is_text(node, "@id")]
    named = [node for node in nodes if "@id" in node and _is_text(node, "@id")]
    ids = Counter(node["@id"] for node in named if "@type" in node)
    twice = sorted(name for name, count in ids.items() if count > 1)
    if twice:
        faults.append(f"uses an @id twice: {', '.join(twice)}")
    lost = sorted({node["@id"] for node in named if set(node) == {"@id"}} - set(ids))
    if lost:
        faults.append(f"refers to what is not there: {', '.join(lost)}")
    for node in nodes:
        if node.get("@type") == "cr:FileObject" and not (node.get("contentUrl") and node.get("sha256")):
            faults.append(f"{node.get('@id')} lacks contentUrl or sha256")
        elif node.get("@type") == "cr:FileSet" and not node.get("includes"):
            faults.append(f"{node.get('@id')} lacks includes")
        elif node.get("@type") == "cr:RecordSet" and not node.get("field"):
            faults.append(f"{node.get('@id')} has no field")
    return faults


def _is_text(node: dict[str, Any], name: str) -> bool:
    """Whether an entry is text, or absent."""
    return isinstance(node.get(name, ""), str)


def _nodes(value: Any) -> Iterable[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for name, inner in value.items():
            if name != "@context":
                yield from _nodes(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _nodes(inner)
