"""From what a user names to a model's codes: subjects and scans it was trained on, its mean, random ones, fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as decode_safetensors

from model import HeadModel
from model.code_draw import draw_expression, draw_identity
from model.head_model import CANONICAL
from pipeline.fit_document import CODES_FILE
from storage.bounded import read_bounded
from storage.errors import ConfigError, one_line

_MEAN, _RANDOM = "mean", "random"
_MAX_BYTES = 64 << 20
"""Of a fit's codes."""


@dataclass(frozen=True)
class NamedExpression:
    """An expression as the model takes it.

    Attributes:
        name: what the user calls it.
        code: (F,), or "canonical".
    """

    name: str
    code: str | NDArray[np.float32]


def identity_of(head: HeadModel, told: str, seed: int) -> str | NDArray[np.float32]:
    """The identity that a user means: a subject's id, which has its own colours too, or a code (D,).

    Args:
        head: the model.
        told: a subject's id, ``mean``, ``random``, or the folder of a fit's results.
        seed: of what is drawn.

    Raises:
        ConfigError: the model knows no such subject, or the folder is none of a fit to this model.
    """
    if told == _MEAN:
        return head.identity_mean
    if told == _RANDOM:
        return draw_identity(head.identity_codes, head.identity_field.layout, np.random.default_rng([seed, 0]))
    if told not in head.subjects and (Path(told) / CODES_FILE).is_file():
        return head.identity_code(_fitted(Path(told))["identity"])
    head.identity_code(told)  # which says what is wrong with it
    return told


def expressions_of(head: HeadModel, told: Sequence[str], seed: int) -> list[NamedExpression]:
    """The expressions that a user means, in their order.

    Args:
        head: the model.
        told: each SUBJECT/NAME, SUBJECT for all that the model knows of it, ``canonical``, ``random``, the folder of a
            fit's results for all of its scans, or FOLDER/NAME for one of them.
        seed: of what is drawn.

    Raises:
        ConfigError: the model knows no such scan, or the folder is none of a fit to this model.
    """
    found: list[NamedExpression] = []
    for place, one in enumerate(told):
        if one == CANONICAL:
            found.append(NamedExpression(one, CANONICAL))
        elif one == _RANDOM:
            drawn = draw_expression(head.expression_codes, np.random.default_rng([seed, 1, place]))
            found.append(NamedExpression(one, drawn))
        elif one in head.subjects:
            own = [key for key in head.scans if key.startswith(f"{one}/")]
            found += [NamedExpression(key, head.expression_code(key)) for key in own]
        elif one not in head.scans and (fitted := _of_a_fit(one)):
            found += [NamedExpression(name, head.expression_code(code)) for name, code in fitted.items()]
        else:
            found.append(NamedExpression(one, head.expression_code(one)))
    return found


def _of_a_fit(told: str) -> dict[str, NDArray[np.float32]]:
    """Expressions of a fit by name: all of a folder, or the one behind its last slash; nothing where there is no fit.

    Raises:
        ConfigError: the folder has no such expression.
    """
    for folder, name in ((Path(told), None), (Path(told).parent, Path(told).name)):
        if not (folder / CODES_FILE).is_file():
            continue
        codes = {key.partition("/")[2]: code for key, code in _fitted(folder).items() if key.startswith("expression/")}
        if name is None:
            return codes
        if name not in codes:
            why = f"{folder} has {', '.join(codes)}"
            raise ConfigError(one_line("no such scan in the fit", told, why, "name one of these"))
        return {name: codes[name]}
    return {}


def _fitted(folder: Path) -> dict[str, NDArray[np.float32]]:
    path = folder / CODES_FILE
    try:
        codes = decode_safetensors(read_bounded(path, _MAX_BYTES))
    except SafetensorError as error:
        why = str(error).splitlines()[0]
        raise ConfigError(one_line("is damaged", str(path), why, "fit again with 'nphm fit'")) from error
    if "identity" not in codes:
        raise ConfigError(one_line("holds no identity", str(path), "it is no fit's", "fit with 'nphm fit'"))
    return codes
