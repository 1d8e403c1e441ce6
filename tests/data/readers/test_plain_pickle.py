"""A pickle is a program; of refer's pickles only plain values are believed."""

import collections
import datetime
import os
import pickle
import pickletools
import subprocess

import numpy as np
import pytest
from python2_pickle import Unicode, dump

from sca_hf.data.readers.refer import load_plain_pickle


PLAIN = [
    {"raw": "man", "sent": Unicode("caf\u00e9 \u732b"), "ids": [1, -2, 300, 70000, 2**40, 2**70], "f": 1.5, "n": None}
]


@pytest.fixture
def load(tmp_path):
    def load(data):
        (tmp_path / "refs(unc).p").write_bytes(data)
        return load_plain_pickle(tmp_path / "refs(unc).p")

    return load


@pytest.mark.parametrize("protocol", [0, 2])
def test_pickles_of_python_2_are_read(load, protocol):
    data = dump([*PLAIN, *PLAIN, {"yes": True}], protocol)
    codes = {opcode.name for opcode, _, _ in pickletools.genops(data)}
    assert codes >= ({"STRING", "UNICODE", "GET"} if protocol == 0 else {"SHORT_BINSTRING", "BINUNICODE", "BINGET"})
    assert load(data) == [*PLAIN, *PLAIN, {"yes": True}]


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_byte_strings_of_python_2_are_text(load, protocol, encoding):
    assert load(dump([{"raw": "café"}], protocol, encoding)) == [{"raw": "café"}]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_python_3_are_read(load, protocol):
    value = [{"a": (1, 2.5), "b": {3}, "c": None, "d": "é", "e": frozenset("x")}]
    assert load(pickle.dumps(value, protocol)) == value


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def evil_pickles(mark):
    yield pickle.dumps(Evil(os.system, f"touch {mark}"), 0), "posix.system"
    yield pickle.dumps([1, {"a": Evil(subprocess.Popen, ["touch", str(mark)])}], 4), "subprocess.Popen"
    yield b"cos\nsystem\n(S'touch %s'\ntR." % bytes(mark), "os.system"
    yield b"(S'touch %s'\nios\nsystem\n." % bytes(mark), "os.system"  # INST
    yield b"c__builtin__\neval\n(S'open(%r, \"w\")'\ntR." % str(mark).encode(), "__builtin__.eval"
    yield pickle.dumps(Evil(getattr, set, "__class__"), 4), "builtins.getattr"
    yield pickle.dumps(Evil(exec, f"open({str(mark)!r}, 'w')"), 5), "builtins.exec"
    # A dotted name under an admitted one.
    yield b"\x80\x04\x8c\x08builtins\x8c\x0dset.__class__\x93.", "builtins.set.__class__"


def test_a_malicious_pickle_is_named_and_not_run(tmp_path, load):
    mark = tmp_path / "was-run"
    for data, name in evil_pickles(mark):
        with pytest.raises(ValueError, match=rf"refs\(unc\)\.p is not a pickle of plain values: it loads {name},"):
            load(data)
        assert not mark.exists()
    # The first of them does run where nobody looks.
    pickle.loads(next(evil_pickles(mark))[0])
    assert mark.exists()


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (np.float64(1), "numpy"),
        (np.arange(3), "numpy"),
        (collections.OrderedDict(a=1), "collections.OrderedDict"),
        (datetime.date(2014, 1, 1), "datetime.date"),
        (Unicode("x"), "python2_pickle.Unicode"),
    ],
)
def test_other_classes_are_named(load, value, name):
    with pytest.raises(ValueError, match=f"it loads {name}"):
        load(pickle.dumps([value]))


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"(lp1\n(dp2\nS'a'\n", b"\x80\x02]q\x01(K", b"\x80\x09.", b"h\x05.", b"Psomething\n.", b"(t0R."],
)
def test_a_damaged_file_is_an_error_that_names_it(load, data):
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p is not a pickle of plain values"):
        load(data)
