"""When a model is trained anew, and whether the new one takes the last one's place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.inputs import Book, canonical_key
from pipeline.keys import subject_of, subjects_of

_SPREAD = 2.0
"""Standard errors that count as noise: a difference beyond them is chance in one case of twenty."""


@dataclass(frozen=True)
class Comparison:
    """A new model against the last one on the same held-out scans.

    Attributes:
        candidate_mm, last_mm: mean errors over the scans that both could be fitted to.
        difference_mm: mean of the scans' differences; positive where the new one is worse.
        noise_mm: what a difference has to exceed to be more than chance.
        scans: how many were compared.
        candidate_failures, last_failures: scans that could not be fitted.
        promote: whether the new one takes the last one's place.
        why: in words.
    """

    candidate_mm: float | None
    last_mm: float | None
    difference_mm: float | None
    noise_mm: float | None
    scans: int
    candidate_failures: int
    last_failures: int
    promote: bool
    why: str


def compare(
    candidate: Mapping[str, float | None], last: Mapping[str, float | None], noise_floor_mm: float
) -> Comparison:
    """Tell whether a model is no worse than another by more than the noise of the figure.

    Scans of one person err together, so the noise is the standard error of the mean over persons, of the differences
    scan by scan: what makes a scan hard is the same for both and falls out.

    Args:
        candidate, last: error by scan, mm; None where a fit failed.
        noise_floor_mm: a difference up to this is noise in any case.
    """
    both = sorted(set(candidate) & set(last))
    failures = [sum(errors[key] is None for key in both) for errors in (candidate, last)]
    fitted = [key for key in both if candidate[key] is not None and last[key] is not None]
    if not fitted:
        why = "no scan of the held-out set could be compared"
        return Comparison(None, None, None, None, 0, failures[0], failures[1], False, why)
    new = np.array([candidate[key] for key in fitted], np.float64)
    old = np.array([last[key] for key in fitted], np.float64)
    people = np.array([subject_of(key) for key in fitted])
    noise = max(noise_floor_mm, _SPREAD * _standard_error(new - old, people))
    difference = float((new - old).mean())
    if failures[0] > failures[1]:
        why, promote = f"{failures[0]} held-out scans can't be fitted, {failures[1]} with the last model", False
    elif difference > noise:
        why, promote = f"{difference:.3f} mm worse than the last model, noise {noise:.3f} mm", False
    else:
        why, promote = f"{difference:+.3f} mm against the last model, noise {noise:.3f} mm", True
    means = float(new.mean()), float(old.mean())
    return Comparison(*means, difference, noise, len(fitted), failures[0], failures[1], promote, why)


def _standard_error(differences: np.ndarray, people: np.ndarray) -> float:
    """Standard error of the mean over scans that fall into groups of one person each."""
    names = np.unique(people)
    if len(names) < 2:
        groups = differences - differences.mean()
    else:
        groups = np.array([(differences[people == name] - differences.mean()).sum() for name in names])
    count = len(groups)
    if count < 2:
        return 0.0
    return float(np.sqrt((groups**2).sum() * count / (count - 1)) / len(differences))


def new_subjects(book: Book, last: str) -> list[str]:
    """Training subjects whose canonical scan was sampled and that the last model was not trained on."""
    trained = book.manifest("train", last)
    known = {told.split("/")[1] for told in trained.inputs if told.startswith("sample/")} if trained else set()
    found = []
    for subject in subjects_of(book.scans()):
        key = canonical_key(book, subject)
        sampled = book.manifest("sample", key) if key is not None else None
        if subject not in known and book.split(subject) == "train" and sampled is not None and sampled.accepted:
            found.append(subject)
    return found
