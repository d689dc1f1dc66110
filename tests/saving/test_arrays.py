from __future__ import annotations

import json

import numpy as np
import pytest

from hf_ravlm.errors import KnowledgeBaseCorruptError
from hf_ravlm.saving.arrays import open_arrays, write_arrays


ARRAYS = {
    "large": np.arange(300_000, dtype=np.float64),
    "rows": np.array([3, 5]),
    "empty": np.zeros((0, 4), np.float32),
    "bytes": np.arange(7, dtype=np.uint8),
}


def file_with(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_arrays_come_back_read_only_and_large_ones_are_mapped(tmp_path):
    write_arrays(tmp_path / "a", ARRAYS, {"made": [1]})
    arrays, description = open_arrays(tmp_path / "a")
    assert (arrays.keys(), description) == (ARRAYS.keys(), {"made": [1]})
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name])
        assert (array.dtype, array.flags.writeable) == (ARRAYS[name].dtype, False)
        assert isinstance(array, np.memmap) == (name == "large")
    write_arrays(tmp_path / "b", ARRAYS, {"made": [1]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    write_arrays(tmp_path / "c", {})
    assert open_arrays(tmp_path / "c") == ({}, {})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        file_with(b"[" * 5000),
        file_with([]),
        file_with({"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}, b"ab"),
        file_with({"a": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}, b"ab"),
        file_with({"a": {"dtype": "U8", "shape": [2**63, 4], "data_offsets": [0, 2]}}, b"ab"),
        file_with({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 2]}}, b"ab"),
        file_with({"a": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}, b"abc"),
        file_with({"a": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]}}, b"abc"),
        file_with({"a": {"dtype": "U8", "shape": [-2], "data_offsets": [0, 2]}}, b"ab"),
        file_with({"__metadata__": {"hf_ravlm": "[]"}}),
        file_with({"__metadata__": {"hf_ravlm": "{"}}),
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(KnowledgeBaseCorruptError, match="the stored arrays cannot be read"):
        open_arrays(tmp_path / "a")


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_arrays(tmp_path / "a")
