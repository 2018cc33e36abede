"""What has to be done, and why: a pure function of the manifests, the configuration and the keys that are known."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline.inputs import Book, canonical_key, expected_inputs, model_name, resolve
from pipeline.keys import subject_of
from pipeline.stepspec import Need, StepSpec
from pipeline.verdict import judged_anew
from storage.manifest import Manifest

Kind = Literal["compute", "judge", "withdraw"]


@dataclass(frozen=True)
class Action:
    """One thing to do.

    Attributes:
        step: name of the step.
        key: SUBJECT/EXPRESSION, or the model's name.
        kind: ``compute``; ``judge``: only the verdict is written anew; ``withdraw``: nothing may stand there any more.
        why: in words.
        ready: nothing that it reads is about to change.
        minutes: rough cost on 2 cores.
        megabytes: rough size of what it makes.
    """

    step: str
    key: str
    kind: Kind
    why: str
    ready: bool = True
    minutes: float = 0.0
    megabytes: float = 0.0


def decide(book: Book, spec: StepSpec, key: str) -> Action | None:
    """What a step has to do for one key if all that it reads stays as it is, or None where its result is fresh."""
    manifest = book.manifest(spec.name, key)
    if not _has_work(book, spec, key):
        if manifest is None:
            return None
        return Action(spec.name, key, "withdraw", _no_more(book, spec))
    if manifest is None:
        return _compute(book, spec, key, "never computed")
    if why := _stale(book, spec, key, manifest):
        return _compute(book, spec, key, why)
    word = book.judgement(key) if spec.scope == "scan" else None
    anew = judged_anew(spec, book.config.thresholds_of_step(spec.name), word, manifest)
    if anew != manifest:
        return Action(spec.name, key, "judge", _other_verdict(manifest, anew))
    return None


def plan(book: Book, until: str | None = None, arriving: Collection[str] = ()) -> list[Action]:
    """All that has to be done, in an order in which it can be done.

    Args:
        book: the workspace's manifests; it is not changed.
        until: the last step to look at; all of them when None.
        arriving: keys of scans that are about to be taken in, anew or for the first time.

    Returns:
        The actions, step by step, a subject's canonical scan before its others. What reads a result that is about to
        change is listed as following it; it may turn out to be fresh once that is done.
    """
    ahead = _Ahead(book, arriving)
    actions: list[Action] = []
    for spec in book.steps.values():
        if spec.run is not None:
            for key in _keys(ahead, spec):
                action = ahead.decide(spec, key)
                if action is not None:
                    actions.append(action)
        if spec.name == until:
            break
    return actions


def keys_in_order(book: Book) -> list[str]:
    """All scans' keys by subject, the canonical one of each first."""
    ordered = []
    for subject, keys in itertools.groupby(book.scans(), subject_of):
        canonical = canonical_key(book, subject)
        ordered += sorted(keys, key=lambda key: (key != canonical, key))
    return ordered


class _Ahead:
    """A book as it will stand when the actions decided so far are done, as far as that can be known."""

    def __init__(self, book: Book, arriving: Collection[str]) -> None:
        self.book = book
        self.config = book.config
        self.steps = book.steps
        self.computed: set[tuple[str, str]] = {("ingest", key) for key in arriving}
        self.judged: dict[tuple[str, str], Manifest | None] = {}
        self.model_key: str | None = None
        self._scans = sorted({*book.scans(), *arriving})
        self._of_subject = {s: list(keys) for s, keys in itertools.groupby(self._scans, subject_of)}
        self.judgement = book.judgement
        self.split = book.split
        self.template_digest = book.template_digest
        self.damage = book.damage

    def scans(self) -> list[str]:
        return self._scans

    def scans_of(self, subject: str) -> list[str]:
        return self._of_subject.get(subject, [])

    def manifest(self, step: str, key: str) -> Manifest | None:
        at = (step, key)
        return self.judged[at] if at in self.judged else self.book.manifest(step, key)

    def decide(self, spec: StepSpec, key: str) -> Action | None:
        at = (spec.name, key)
        for need in spec.needs if is_wanted(self.book, spec) else ():
            if self._moves(need, key, self.computed):
                self.computed.add(at)
                return replace(_compute(self, spec, key, f"follows {need.step}"), ready=False)
        action = decide(self, spec, key)
        if action is None:
            return None
        if action.kind == "compute":
            self.computed.add(at)
        elif action.kind == "withdraw":
            self.judged[at] = None
        else:
            manifest = self.manifest(*at)
            assert manifest is not None
            word = self.judgement(key)
            self.judged[at] = judged_anew(spec, self.config.thresholds_of_step(spec.name), word, manifest)
        waits = any(self._moves(need, key, self.judged) for need in spec.needs)
        return replace(action, ready=not waits)

    def _moves(self, need: Need, key: str, moving: Iterable[tuple[str, str]]) -> bool:
        if not moving:
            return False
        return any((need.step, source) in moving for _, source in resolve(self, need, key))


def _keys(ahead: _Ahead, spec: StepSpec) -> Iterator[str]:
    if spec.scope == "scan":
        yield from keys_in_order(ahead)
        return
    if ahead.model_key is None:
        ahead.model_key = model_name(ahead)
    yield ahead.model_key


def is_wanted(book: Book, spec: StepSpec) -> bool:
    """Whether the settings ask for a step at all."""
    return spec.wanted is None or spec.wanted(book.config.of_step(spec.name))


def _no_more(book: Book, spec: StepSpec) -> str:
    if not is_wanted(book, spec):
        return "the settings do not ask for it any more"
    return f"{spec.needs[0].step} has no accepted result any more"


def _has_work(book: Book, spec: StepSpec, key: str) -> bool:
    """Whether the step is wanted, and the first need, and every need of the scan's own, has a result to be read."""
    if not is_wanted(book, spec):
        return False
    for place, need in enumerate(spec.needs):
        if place > 0 and need.over != "own":
            continue
        found = (book.manifest(need.step, source) for _, source in resolve(book, need, key))
        if not any(manifest is not None and need.takes(manifest) for manifest in found):
            return False
    return True


def _stale(book: Book, spec: StepSpec, key: str, manifest: Manifest) -> str:
    if manifest.step_version != spec.version:
        return f"step version {manifest.step_version} -> {spec.version}"
    if manifest.config_digest != book.config.digest_of_step(spec.name):
        now = book.config.resolved(spec.name)
        changed = ", ".join(_differing(manifest.config, now)) or "its digest"
        return f"config changed: {changed}"
    expected = expected_inputs(book, spec, key)
    if expected != manifest.inputs:
        return _other_inputs(manifest.inputs, expected)
    return book.damage(manifest) or ""


def _differing(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name in sorted(set(old) | set(new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differing(before, after, f"{prefix}{name}.")
        elif before != after:
            yield prefix + name


def _other_inputs(old: Mapping[str, str], new: Mapping[str, str]) -> str:
    said = [f"input {name} changed" for name in new if name in old and old[name] != new[name]]
    said += [f"input {name} is new" for name in new if name not in old]
    said += [f"input {name} is gone" for name in old if name not in new]
    more = f" and {len(said) - 1} more" if len(said) > 1 else ""
    return said[0] + more


def _other_verdict(old: Manifest, new: Manifest) -> str:
    if old.verdict != new.verdict:
        return f"{old.verdict} -> {new.verdict}: {'; '.join(new.reasons) or 'within the thresholds'}"
    return "other reasons for the same verdict"


def _compute(book: Book, spec: StepSpec, key: str, why: str) -> Action:
    minutes = spec.minutes if spec.expect is None else spec.expect(book.config.of_step(spec.name))
    return Action(spec.name, key, "compute", why, minutes=minutes, megabytes=spec.megabytes)
