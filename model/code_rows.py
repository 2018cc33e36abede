"""Rows of a model's codes, taken out, put in another order or named anew, over the model folder's files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from model.checkpoint import decode, encode
from storage.errors import ConfigError, one_line

_TABLES = {"identity": "subjects", "expression": "scans", "appearance": "subjects"}
"""The tables in ``codes.safetensors``, and where ``config.json`` names their rows."""


@dataclass(frozen=True)
class NamedCodes:
    """The two files of a model folder that know of subjects.

    Attributes:
        config: ``config.json``, which names the rows.
        codes: ``codes.safetensors``, which holds them.
    """

    config: bytes
    codes: bytes

    def names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The subjects and the scans that the config names.

        Raises:
            ConfigError: the config is damaged.
        """
        told = self._told()
        return tuple(told["subjects"]), tuple(told["scans"])

    def rows(self) -> tuple[int, int]:
        """How many identity and expression codes there are.

        Raises:
            ConfigError: the codes are damaged.
        """
        tables, _ = decode(self.codes, "codes.safetensors")
        return len(tables["identity"]), len(tables["expression"])

    def keep(self, subjects: Mapping[str, str], scans: Mapping[str, str]) -> NamedCodes:
        """The same codes without the rows of others, under new names and in these names' order.

        Args:
            subjects: the new name of each subject that stays.
            scans: the new name of each scan that stays.

        Returns:
            Files that a model folder may hold. Same input, same bytes; named as before, the kept rows' bits stay.

        Raises:
            ConfigError: a file is damaged, or names and rows disagree.
        """
        told = self._told()
        tables, values = decode(self.codes, "codes.safetensors")
        if not {"identity", "expression"} <= set(tables) <= set(_TABLES):
            why = f"it has {', '.join(sorted(tables)) or 'nothing'}"
            raise ConfigError(one_line("holds no codes of a model", "codes.safetensors", why, "train the model again"))
        before = {kind: list(told[kind]) for kind in ("subjects", "scans")}
        for table in sorted(tables):
            renamed = subjects if _TABLES[table] == "subjects" else scans
            names = before[_TABLES[table]]
            if len(names) != len(tables[table]):
                why = f"{len(tables[table])} {table} codes for {len(names)} names"
                raise ConfigError(one_line("codes and names disagree", "model folder", why, "train the model again"))
            kept = sorted((renamed[name], row) for row, name in enumerate(names) if name in renamed)
            told[_TABLES[table]] = [name for name, _ in kept]
            tables[table] = tables[table][torch.tensor([row for _, row in kept], dtype=torch.int64)]
        config = json.dumps(told, indent=1, sort_keys=True).encode()
        return NamedCodes(config, encode(tables, values))

    def keep_names(self, subjects: Mapping[str, str], scans: Mapping[str, str]) -> bytes:
        """The config alone, as ``keep`` makes it, for codes whose rows are the kept ones already.

        Raises:
            ConfigError: the config is damaged.
        """
        told = self._told()
        for kind, renamed in (("subjects", subjects), ("scans", scans)):
            told[kind] = sorted(renamed[name] for name in told[kind] if name in renamed)
        return json.dumps(told, indent=1, sort_keys=True).encode()

    def _told(self) -> dict[str, list[str]]:
        try:
            told: dict[str, list[str]] = json.loads(self.config)
            for name in ("subjects", "scans"):
                if not all(isinstance(one, str) for one in told[name]):
                    raise TypeError(f"{name} are no list of names")
        except (ValueError, KeyError, TypeError) as error:
            why = str(error).splitlines()[0]
            raise ConfigError(one_line("is damaged", "config.json", why, "train the model again")) from error
        return told
