"""The type of a name in a configuration that becomes part of a path. Apart from the rule, which needs no pydantic."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from pipeline.keys import is_safe_name


def _check(name: str) -> str:
    if not is_safe_name(name):
        raise PydanticCustomError("name", "takes up to 64 letters, digits and ._-, the first a letter or digit")
    return name


SafeName = Annotated[str, AfterValidator(_check)]
