"""Which subjects train and which are held out: drawn at first sight, then kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from storage.digest import digest_json

PATH = "splits.json"


def draw_splits(kept: Mapping[str, str], subjects: Iterable[str], share: float, seed: int) -> dict[str, str]:
    """Give every new subject its split, so that the share of held-out ones comes as near as it can.

    Args:
        kept: the splits drawn before; none of them changes.
        subjects: all subjects known now.
        share: of subjects to hold out.
        seed: of the run; it decides the order in which new subjects are held out.

    Returns:
        ``train`` or ``held_out`` by subject, sorted.
    """
    new = sorted(set(subjects) - set(kept), key=lambda subject: digest_json([seed, "split", subject]))
    wanted = int(share * (len(kept) + len(new)) + 0.5)
    missing = max(0, wanted - sum(split == "held_out" for split in kept.values()))
    drawn = {subject: "held_out" if place < missing else "train" for place, subject in enumerate(new)}
    return dict(sorted({**kept, **drawn}.items()))
