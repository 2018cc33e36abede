"""Arrays out of a pickle that came from anywhere, without unpickling: nothing that the file names is ever looked up.

The opcodes are parsed by ``pickletools``, which executes nothing and holds every length against the bytes that are
there. A small machine of our own stacks up what they describe: numbers, text, lists, and notes of the calls that an
unpickler would make. Of these notes only arrays are understood: numpy's, scipy's sparse matrices, and the array
wrappers of chumpy, a library that FLAME's and SMPL's files still mention. Any other name ends the reading.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError, one_line

MAX_BYTES = 1024**3
MAX_OPCODES = 2_000_000
MAX_NESTING = 8
"""How deep wrappers may lie in one another before the array that they hold."""
REMEDY = "give the model's own file, or save its arrays with numpy.savez"

_PLAIN = {
    "object", "set", "frozenset", "list", "dict", "tuple", "bytearray", "bytes", "str", "unicode", "int", "long",
    "float", "bool", "slice", "complex", "NoneType",
}  # fmt: skip
_NUMPY = {"_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer", "matrix"} | {
    f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)
}
_SPARSE = {f"{kind}_{form}" for kind in ("csc", "csr", "coo") for form in ("matrix", "array")}
_DTYPES = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"}


@dataclass(frozen=True)
class _Name:
    """A class or function that the file names; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"

    @property
    def inert(self) -> bool:
        """Whether this is something that arrays are made of."""
        root = self.module.partition(".")[0]
        if root in ("builtins", "__builtin__"):
            return self.name in _PLAIN
        if root == "numpy":
            return self.name in _NUMPY
        if root == "scipy":
            return self.module.startswith("scipy.sparse") and self.name in _SPARSE
        if root in ("copyreg", "copy_reg"):
            return self.name in ("_reconstructor", "__newobj__")
        if root == "_codecs":
            return self.name == "encode"
        return root == "chumpy" or (root == "collections" and self.name in ("OrderedDict", "defaultdict"))


@dataclass
class _Call:
    """A call that an unpickler would make, and the state that it would set; neither is done."""

    callee: _Name
    args: tuple[Any, ...]
    state: Any = None


class _Refused(Exception):
    """Why a file is not read; turned into one line at the border of this module."""


_MARK = object()


def read_inert_pickle(data: bytes, where: str) -> dict[str, Any]:
    """The dictionary that a pickle holds, as inert values; ``as_array`` makes arrays of those that are some.

    Args:
        data: the whole file.
        where: its name, for messages.

    Raises:
        ConfigError: it is no pickle of a dictionary, is damaged, or names anything but arrays.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(one_line("is too large", where, f"over {MAX_BYTES} bytes", REMEDY))
    try:
        top = _run(data)
    except _Refused as why:
        raise ConfigError(one_line("is refused", where, str(why), REMEDY)) from why
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, struct.error, RecursionError) as error:
        why_ = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(one_line("is no pickle that can be read", where, why_, REMEDY)) from error
    told = top.state if isinstance(top, _Call) and isinstance(top.state, Mapping) else top
    if not isinstance(told, Mapping):
        raise ConfigError(one_line("holds no dictionary", where, f"found {type(told).__name__}", REMEDY))
    return {str(key): value for key, value in told.items()}


def as_array(node: Any, what: str, where: str) -> NDArray[Any]:
    """A numeric array of what ``read_inert_pickle`` found under a key; sparse matrices become dense.

    Raises:
        ConfigError: it is none, or its parts disagree in size.
    """
    try:
        return _array(node, MAX_NESTING)
    except _Refused as why:
        raise ConfigError(one_line(f"{what} is no array", where, str(why), REMEDY)) from why
    except (ValueError, IndexError, KeyError, TypeError, OverflowError, RecursionError) as error:
        why_ = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise ConfigError(one_line(f"{what} is a damaged array", where, why_, REMEDY)) from error


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    for count, (opcode, arg, _) in enumerate(pickletools.genops(data)):
        if count >= MAX_OPCODES:
            raise _Refused(f"it has over {MAX_OPCODES} steps")
        name = opcode.name
        if name == "STOP":
            break
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _VALUES:
            stack.append(arg)
        elif name in _PUTS:
            memo[len(memo) if name == "MEMOIZE" else int(arg)] = stack[-1]  # type: ignore[arg-type]
        elif name in _GETS:
            stack.append(memo[int(arg)])  # type: ignore[arg-type]
        elif name == "GLOBAL":
            module, _, attribute = str(arg).partition(" ")
            stack.append(_named(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_named(module, attribute))
        elif name not in ("PROTO", "FRAME"):
            step = _STEPS.get(name)
            if step is None:
                raise _Refused(f"it uses {name}, which no arrays need")
            step(stack)
    if len(stack) != 1:
        raise _Refused("it does not end in one value")
    return stack[0]


def _named(module: Any, attribute: Any) -> _Name:
    if not isinstance(module, str) or not isinstance(attribute, str):
        raise _Refused("it names something that is no text")
    name = _Name(module[:80], attribute[:80])
    if not name.inert:
        raise _Refused(f"it names {str(name)!r}, which is no array; nothing of it was run")
    return name


def _above_mark(stack: list[Any]) -> list[Any]:
    for at in range(len(stack) - 1, -1, -1):
        if stack[at] is _MARK:
            items = stack[at + 1 :]
            del stack[at:]
            return items
    raise _Refused("its stack has no mark")


def _pushed(make: Any, size: int | None = None) -> Any:
    """A step that replaces the topmost values, all above the mark by default, by what is made of them."""

    def step(stack: list[Any]) -> None:
        if size is None:
            items = _above_mark(stack)
        else:
            items = stack[len(stack) - size :] if size else []
            if len(items) != size:
                raise _Refused("its stack runs empty")
            del stack[len(stack) - size :]
        stack.append(make(items))

    return step


def _append(stack: list[Any], items: list[Any]) -> None:
    if isinstance(stack[-1], list):
        stack[-1].extend(items)
    elif not isinstance(stack[-1], _Call):  # a wrapped list; what it holds is no array
        raise _Refused("it appends to what is no list")


def _set_items(stack: list[Any], items: list[Any]) -> None:
    if isinstance(stack[-1], dict):
        stack[-1].update(_pairs(items))
    elif isinstance(stack[-1], _Call) and isinstance(stack[-1].state, dict | None):
        stack[-1].state = (stack[-1].state or {}) | _pairs(items)
    else:
        raise _Refused("it sets a key of what is no dictionary")


def _pairs(items: list[Any]) -> dict[Any, Any]:
    """Keys to values; keys other than text and numbers name no array and are left out."""
    return {k: v for k, v in zip(items[::2], items[1::2], strict=True) if type(k) in (str, bytes, int, float, bool)}


def _call(stack: list[Any]) -> None:
    args, callee = stack.pop(), stack.pop()
    if not isinstance(callee, _Name) or not isinstance(args, tuple):
        raise _Refused("it calls what is no name")
    stack.append(_Call(callee, args))


def _build(stack: list[Any]) -> None:
    state = stack.pop()
    if not isinstance(stack[-1], _Call):
        raise _Refused("it sets the state of what is no object")
    stack[-1].state = state


def _duplicate(stack: list[Any]) -> None:
    stack.append(stack[-1])


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
_VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_STEPS = {
    "POP": lambda stack: stack.pop(),
    "POP_MARK": _above_mark,
    "DUP": _duplicate,
    "EMPTY_LIST": _pushed(list, 0),
    "LIST": _pushed(list),
    "EMPTY_TUPLE": _pushed(tuple, 0),
    "TUPLE": _pushed(tuple),
    "TUPLE1": _pushed(tuple, 1),
    "TUPLE2": _pushed(tuple, 2),
    "TUPLE3": _pushed(tuple, 3),
    "EMPTY_DICT": _pushed(_pairs, 0),
    "DICT": _pushed(_pairs),
    "EMPTY_SET": _pushed(list, 0),
    "FROZENSET": _pushed(list),
    "APPEND": lambda stack: _append(stack, [stack.pop()]),
    "APPENDS": lambda stack: _append(stack, _above_mark(stack)),
    "ADDITEMS": lambda stack: _append(stack, _above_mark(stack)),
    "SETITEM": lambda stack: _set_items(stack, [stack.pop(), stack.pop()][::-1]),
    "SETITEMS": lambda stack: _set_items(stack, _above_mark(stack)),
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": _build,
}


def _array(node: Any, nesting: int) -> NDArray[Any]:
    if nesting == 0:
        raise _Refused("it is wrapped too deeply")
    if type(node) in (int, float, bool):
        return np.array(node, np.float64)
    if isinstance(node, list | tuple) and all(type(x) in (int, float, bool) for x in node):
        return np.array(node, np.float64)
    if not isinstance(node, _Call):
        raise _Refused(f"found {type(node).__name__}")
    root, name = node.callee.module.partition(".")[0], node.callee.name
    if root == "numpy" and name in ("_reconstruct", "_frombuffer", "scalar"):
        return _numpy_array(node, name)
    kind = _class_of(node)
    if kind.module.startswith("scipy.sparse") and isinstance(node.state, Mapping):
        return _dense(kind.name[:3], node.state, nesting)
    if kind.module.partition(".")[0] == "chumpy" and isinstance(node.state, Mapping):
        return _unwrapped(node.state, nesting)
    raise _Refused(f"found {kind}")


def _class_of(node: _Call) -> _Name:
    """The class that a call would make an object of: itself, or the first argument of ``copy_reg._reconstructor``."""
    first = node.args[0] if node.args else None
    return first if node.callee.name in ("_reconstructor", "__newobj__") and isinstance(first, _Name) else node.callee


def _numpy_array(node: _Call, name: str) -> NDArray[Any]:
    if name == "_frombuffer":  # buffer, dtype, shape, order
        buffer, dtype, shape, order = node.args
        return _filled(_bytes(buffer), _dtype(dtype), shape, order == "F")
    if name == "scalar":
        dtype, value = node.args
        return _filled(_bytes(value), _dtype(dtype), (), False)
    state = node.state
    if not isinstance(state, tuple) or len(state) < 4:
        raise _Refused("an array without content")
    shape, dtype, fortran, content = state[-4:]
    return _filled(_bytes(content), _dtype(dtype), shape, bool(fortran))


def _filled(content: bytes, dtype: np.dtype[Any], shape: Any, fortran: bool) -> NDArray[Any]:
    if not isinstance(shape, tuple) or len(shape) > MAX_NESTING:
        raise _Refused("its shape is none")
    if not all(type(n) is int and 0 <= n <= len(content) for n in shape):
        raise _Refused("its shape is none of an array of this size")
    size = dtype.itemsize
    for n in shape:
        size *= n
    if size != len(content):
        raise _Refused(f"{len(content)} bytes for an array of {size}")
    flat = np.frombuffer(content, dtype)
    return np.ascontiguousarray(flat.reshape(shape, order="F" if fortran else "C")).astype(dtype.newbyteorder("="))


def _bytes(node: Any) -> bytes:
    if isinstance(node, _Call) and node.callee.name in ("encode", "bytes", "bytearray"):
        node = node.args[0] if node.args else b""  # _codecs.encode(text, 'latin1'): how protocol 2 writes bytes
    if isinstance(node, bytes | bytearray):
        return bytes(node)
    if isinstance(node, str):
        return node.encode("latin-1")
    raise _Refused(f"content of type {type(node).__name__}")


def _dtype(node: Any) -> np.dtype[Any]:
    told = node.args[0] if isinstance(node, _Call) and node.callee.name == "dtype" and node.args else None
    text = told.decode("latin-1") if isinstance(told, bytes) else told
    if text not in _DTYPES:
        raise _Refused(f"the number type {str(text)[:20]!r}")
    order = node.state[1] if isinstance(node.state, tuple) and len(node.state) > 1 else "|"
    return np.dtype(text).newbyteorder(">" if order in (">", b">") else "<")


def _dense(form: str, state: Mapping[str, Any], nesting: int) -> NDArray[Any]:
    shape = state.get("_shape", state.get("shape"))
    values = _array(state["data"], nesting - 1)
    if not isinstance(shape, tuple) or len(shape) != 2 or not all(type(n) is int and n >= 0 for n in shape):
        raise _Refused("a sparse matrix without a shape")
    if shape[0] * shape[1] > MAX_BYTES // 8:
        raise _Refused(f"a sparse matrix of {shape[0]} x {shape[1]}")
    if form == "coo":
        places = state["coords"] if "coords" in state else (state["row"], state["col"])
        row, column = (_array(place, nesting - 1) for place in places)
    else:
        minor, ends = (_array(state[key], nesting - 1) for key in ("indices", "indptr"))
        major = np.searchsorted(ends, np.arange(len(minor)), side="right") - 1
        row, column = (major, minor) if form == "csr" else (minor, major)
    dense = np.zeros(shape)
    if len(values) and (min(row.min(), column.min()) < 0 or len(row) != len(values)):
        raise _Refused("a sparse matrix with entries outside of it")
    np.add.at(dense, (row, column), values)
    return dense


def _unwrapped(state: Mapping[str, Any], nesting: int) -> NDArray[Any]:
    """What a chumpy object stands for: a constant ``x``, or a selection ``idxs`` of another object ``a``."""
    if "a" in state and "idxs" in state:
        picked = _array(state["a"], nesting - 1).ravel()[_array(state["idxs"], nesting - 1).astype(np.int64).ravel()]
        shape = state.get("preferred_shape", (-1,))
        return picked.reshape(shape if isinstance(shape, tuple) else (-1,))
    if "x" in state:
        return _array(state["x"], nesting - 1)
    raise _Refused("a wrapper without an array")
