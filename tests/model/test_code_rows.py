"""Rows of codes, taken out, reordered and renamed."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from model.checkpoint import decode, encode
from model.code_rows import NamedCodes
from storage.errors import ConfigError

SUBJECTS, SCANS = ("a", "b", "c"), ("a/1", "a/2", "c/1", "c/2")


def some_codes(subjects=SUBJECTS, scans=SCANS) -> NamedCodes:
    rng = torch.Generator().manual_seed(0)
    rows = {"identity": torch.randn(3, 5, generator=rng), "expression": torch.randn(4, 2, generator=rng)}
    rows["appearance"] = torch.randn(3, 4, generator=rng)
    config = json.dumps({"subjects": subjects, "scans": scans, "format": 1}, indent=1, sort_keys=True).encode()
    return NamedCodes(config, encode(rows, {"kept": [1]}))


def test_all_kept_under_their_names_changes_no_byte():
    codes = some_codes()
    assert codes.keep({s: s for s in SUBJECTS}, {s: s for s in SCANS}) == codes
    assert codes.names() == (SUBJECTS, SCANS)
    assert codes.rows() == (3, 4)


def test_rows_follow_their_names():
    codes = some_codes()
    kept = codes.keep({"c": "p1", "a": "p2"}, {"c/2": "p1/2", "a/1": "p2/1"})
    assert kept.names() == (("p1", "p2"), ("p1/2", "p2/1"))
    (before, _), (after, values) = decode(codes.codes), decode(kept.codes)
    assert np.array_equal(after["identity"], before["identity"][[2, 0]])
    assert np.array_equal(after["expression"], before["expression"][[3, 0]])
    assert np.array_equal(after["appearance"], before["appearance"][[2, 0]])
    assert values == {"kept": [1]}
    assert json.loads(kept.config)["format"] == 1
    assert codes.keep_names({"c": "p1", "a": "p2"}, {"c/2": "p1/2", "a/1": "p2/1"}) == kept.config
    none = codes.keep({}, {})
    assert none.rows() == (0, 0)


def test_damage_is_told():
    with pytest.raises(ConfigError, match="names"):
        some_codes(subjects=("a", "b")).keep({"a": "a"}, {})
    strange = NamedCodes(some_codes().config, encode({"identity": torch.zeros(3, 5), "secrets": torch.zeros(3, 5)}))
    with pytest.raises(ConfigError, match="holds no codes of a model"):
        strange.keep({}, {})
    for broken in (b"{", b"[]", b'{"subjects": [1], "scans": []}', b"{}"):
        with pytest.raises(ConfigError, match="is damaged"):
            NamedCodes(broken, b"").names()
    with pytest.raises(ConfigError, match="no checkpoint"):
        NamedCodes(some_codes().config, b"junk").rows()
