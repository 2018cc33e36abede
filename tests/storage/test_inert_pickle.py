"""Pickles are read as inert arrays; whatever else they hold is refused in one line and never run."""

import os
import pickle
import struct
import sys
import types
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.sparse as sp

from storage.errors import ConfigError
from storage.inert_pickle import as_array, read_inert_pickle


class _FakeCh:
    """Looks in a pickle like chumpy's array wrapper."""

    def __init__(self, x: np.ndarray) -> None:
        self.x = x
        self._itr, self._dirty_vars, self._depends_on_deps = None, set(), {}


class _FakeSelect:
    """Looks in a pickle like chumpy's selection of another wrapper's entries."""

    def __init__(self, a: object, idxs: np.ndarray, shape: tuple[int, ...]) -> None:
        self.a, self.idxs, self.preferred_shape = a, idxs, shape


@pytest.fixture
def chumpy() -> Iterator[types.SimpleNamespace]:
    """The two fakes, known to pickle under the names that chumpy's classes have."""
    before = {name: sys.modules.get(name) for name in ("chumpy", "chumpy.ch", "chumpy.reordering")}
    for name in before:
        sys.modules[name] = types.ModuleType(name)
    for cls, module, name in ((_FakeCh, "chumpy.ch", "Ch"), (_FakeSelect, "chumpy.reordering", "Select")):
        cls.__module__, cls.__qualname__, cls.__name__ = module, name, name
        setattr(sys.modules[module], name, cls)
    yield types.SimpleNamespace(Ch=_FakeCh, Select=_FakeSelect)
    for name, module in before.items():
        del sys.modules[name]
        if module is not None:
            sys.modules[name] = module


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", ["f8", "f4", "u4", "i8", ">f8", "b1"])
def test_numpy_arrays_come_back(protocol: int, dtype: str) -> None:
    told = np.arange(24).reshape(2, 3, 4).astype(dtype)
    data = pickle.dumps({"a": told, "f": np.asfortranarray(told), "n": [1, 2.5], "s": np.float64(3.5)}, protocol)
    found = read_inert_pickle(data, "x.pkl")
    for key in "af":
        np.testing.assert_array_equal(as_array(found[key], key, "x.pkl"), told)
    np.testing.assert_array_equal(as_array(found["n"], "n", "x.pkl"), [1, 2.5])
    assert as_array(found["s"], "s", "x.pkl") == 3.5


@pytest.mark.parametrize("form", ["csc_matrix", "csr_matrix", "coo_matrix", "csc_array"])
def test_sparse_matrices_become_dense(form: str) -> None:
    told = sp.random(7, 31, 0.2, format="coo", random_state=3)
    data = pickle.dumps({"J": getattr(sp, form)(told)}, 2)
    np.testing.assert_allclose(as_array(read_inert_pickle(data, "x")["J"], "J", "x"), told.toarray())


@pytest.mark.parametrize("protocol", [2, 4])
def test_chumpy_wrappers_are_looked_through(chumpy: types.SimpleNamespace, protocol: int) -> None:
    whole = np.arange(60.0).reshape(5, 3, 4)
    part = chumpy.Select(chumpy.Ch(whole), np.arange(12, 24), (1, 3, 4))
    found = read_inert_pickle(pickle.dumps({"whole": chumpy.Ch(whole), "part": part}, protocol), "x")
    np.testing.assert_array_equal(as_array(found["whole"], "whole", "x"), whole)
    np.testing.assert_array_equal(as_array(found["part"], "part", "x"), whole[1:2])


def test_strings_of_python_2_are_bytes() -> None:
    """What Python 2 wrote: content and dtype as 8-bit strings."""
    content = np.array([1.5, -2.0]).tobytes()
    reduce = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
    dtype = b"cnumpy\ndtype\n(U\x02f8I0\nI1\ntR(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
    array = reduce + b"(I1\n(I2\nt" + dtype + b"I00\n" + b"U" + bytes([len(content)]) + content + b"tb"
    data = b"\x80\x02}U\x01v" + array + b"s."
    assert pickle.loads(data, encoding="latin1")["v"].tolist() == [1.5, -2.0]
    assert as_array(read_inert_pickle(data, "x")["v"], "v", "x").tolist() == [1.5, -2.0]


class _Runs:
    def __init__(self, call: object, *args: object) -> None:
        self.told = (call, args)

    def __reduce__(self) -> object:
        return self.told


MALICIOUS = {
    "system": _Runs(os.system, "touch pwned"),
    "eval": _Runs(eval, "open('pwned', 'w')"),
    "exec": _Runs(exec, "open('pwned', 'w')"),
    "import": _Runs(__import__, "os"),
    "getattr": _Runs(getattr, "x", "upper"),
    "numpy_load": _Runs(np.load, "/etc/passwd"),
    "fromfile": _Runs(np.fromfile, "/etc/passwd"),
    "nested": {"shapedirs": [{"x": (1, _Runs(os.system, "touch pwned"))}]},
    "as_an_argument": _Runs(np.dtype, _Runs(os.system, "touch pwned")),
    "huge_list": _Runs(bytearray, _Runs(pow, 10, 10**9)),
}


@pytest.mark.parametrize("name", MALICIOUS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_what_would_run_is_refused(name: str, protocol: int, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"v_template": MALICIOUS[name]}, protocol)
    with pytest.raises(ConfigError, match=r"^evil\.pkl: is refused") as caught:
        read_inert_pickle(data, "evil.pkl")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


_ARRAY = pickle.dumps({"a": np.arange(8.0)}, 2)
DAMAGED = {
    "empty": b"",
    "no_pickle": b"hello",
    "cut": _ARRAY[:60],
    "a_huge_string": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    "a_huge_bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.",
    "a_huge_memo": b"\x80\x02}r\xff\xff\xff\xff.",
    "an_empty_stack": b"\x80\x020.",
    "an_unknown_memo": b"\x80\x02h\x05.",
    "persistent": b"\x80\x02U\x01aQ.",
    "extension": b"\x80\x02\x82\x01.",
    "old_instance": b"(ios\nsystem\n.",
    "no_mark": b"\x80\x02t.",
    "a_list": pickle.dumps([1, 2], 2),
    "deep": b"\x80\x02" + b"(" * 50_000 + b"t" * 50_000 + b".",
    "a_long_number": b"L" + b"9" * 100_000 + b"L\n.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_end_in_one_line(name: str) -> None:
    if name == "a_huge_memo":
        assert read_inert_pickle(DAMAGED[name], "x.pkl") == {}
        return
    with pytest.raises(ConfigError, match=r"^x\.pkl: ") as caught:
        read_inert_pickle(DAMAGED[name], "x.pkl")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_an_array_can_promise_no_more_than_its_bytes() -> None:
    honest = pickle.dumps({"a": np.zeros(100)}, 4)
    for shape in ((10**9,), (101,), (100, 10**6)):
        lying = pickle.dumps({"a": np.zeros(100)}, 4).replace(b"Kd\x85", pickle.dumps(shape, 4)[11:-2] + b"\x94")
        assert lying != honest
        with pytest.raises(ConfigError):
            as_array(read_inert_pickle(lying, "x")["a"], "a", "x")
    wide = sp.csc_matrix((3, 3))
    wide._shape = (10**6, 10**6)
    with pytest.raises(ConfigError, match="sparse matrix of 1000000"):
        as_array(read_inert_pickle(pickle.dumps({"J": wide}, 2), "x")["J"], "J", "x")


def test_every_byte_changed_ends_in_one_line_or_an_array() -> None:
    rng = np.random.default_rng(0)
    whole = pickle.dumps({"a": np.arange(6.0), "b": sp.csc_matrix(np.eye(3)), "c": [1, 2]}, 2)
    messages = []
    for _ in range(1500):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), rng.integers(1, 4)):
            data[at] = rng.integers(256)
        try:
            found = read_inert_pickle(bytes(data), "x")
            for key, value in found.items():
                as_array(value, key, "x")
        except ConfigError as error:
            messages.append(str(error))
    assert len(messages) > 1000
    assert not any("\n" in message for message in messages)
