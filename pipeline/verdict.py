"""The verdict over a result: derived from faults, figures, thresholds and a person's word, never computed anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.stepspec import StepSpec
from storage.manifest import Judgement, Manifest


def derive_verdict(
    spec: StepSpec,
    thresholds: Any,
    word: Judgement | None,
    *,
    figures: Mapping[str, Any],
    faults: Sequence[str],
    made: bool,
) -> dict[str, Any]:
    """The fields ``verdict``, ``reasons`` and ``judgement`` of a manifest.

    A person's word stands over the thresholds, the thresholds over the figures. A fault leaves no figures to judge, and
    nothing that a word could accept.

    Args:
        spec: the step.
        thresholds: of the step.
        word: a person's word over the scan, or None.
        figures: what the step measured.
        faults: what the step itself raised.
        made: whether there are outputs.
    """
    reasons = [*faults] if faults else spec.judge(figures, thresholds)
    heeded = word if word is not None and word.verdict in spec.heeds else None
    accepted = not reasons
    if heeded is not None and heeded.verdict == "reject":
        accepted = False
        reasons = [*reasons, f"rejected by {heeded.by}: {heeded.reason}"]
    elif heeded is not None and reasons:
        accepted = made
        if not made:
            reasons = [*reasons, f"accepted by {heeded.by}, but there is nothing that could be used"]
    return {"verdict": "accepted" if accepted else "rejected", "reasons": reasons, "judgement": heeded}


def judged_anew(spec: StepSpec, thresholds: Any, word: Judgement | None, manifest: Manifest) -> Manifest:
    """The same result under today's thresholds and today's word."""
    fields = derive_verdict(
        spec, thresholds, word, figures=manifest.figures, faults=manifest.faults, made=bool(manifest.outputs)
    )
    return manifest.model_copy(update=fields)
