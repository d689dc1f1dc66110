"""Rows of different length: the flat array against plain lists, in memory and from a file, whole and damaged."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_ravlm.errors import InvalidInputError, KnowledgeBaseCorruptError
from hf_ravlm.pipelines.ragged_array import RaggedArray, RaggedPart, write_ragged


def random_lists(num_rows: int = 50, longest: int = 9, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 1000, rng.integers(0, longest + 1)).tolist() for _ in range(num_rows)]


def part_of(lists: list[list[int]]) -> RaggedPart:
    return RaggedPart(np.array(sum(lists, []), np.int32), np.array([len(row) for row in lists], np.int64))


def stored(tmp_path, lists, **description):
    path = tmp_path / "rows.safetensors"
    write_ragged(path, [part_of(lists[:20]), part_of(lists[20:])], len(lists), description)
    return path


def test_gather_copies_every_row_and_nothing_else():
    lists = random_lists()
    ragged = RaggedArray.from_parts([part_of(lists)])
    rows = np.random.default_rng(1).integers(-1, len(lists), (6, 4))
    padded, mask = ragged.gather(rows, np.int64, pad_value=-7)
    longest = max(len(lists[row]) for row in rows.flat if row >= 0)
    assert padded.shape == mask.shape == (6, 4, longest)
    assert padded.dtype == np.int64
    for place in np.ndindex(6, 4):
        wanted = lists[rows[place]] if rows[place] >= 0 else []
        assert padded[place].tolist() == wanted + [-7] * (longest - len(wanted))
        assert mask[place].tolist() == [True] * len(wanted) + [False] * (longest - len(wanted))


def test_rows_of_vectors_keep_their_width():
    values = np.arange(12, dtype=np.uint16).reshape(4, 3)
    padded, mask = RaggedArray(values, np.array([0, 1, 4])).gather(np.array([[0, 1]]))
    assert padded.tolist() == [[[[0, 1, 2], [0, 0, 0], [0, 0, 0]], values[1:].tolist()]]
    assert mask.sum() == 4


@pytest.mark.parametrize("rows", [np.array([[-1, -1]]), np.zeros((2, 0), np.int64), np.array([[1]])])
def test_nothing_to_gather_is_one_masked_place(rows):
    padded, mask = RaggedArray(np.array([5], np.int32), np.array([0, 1, 1])).gather(rows)
    assert padded.shape == (*rows.shape, 1)
    assert not mask.any()


@pytest.mark.parametrize("row", [2, -2, 10**12])
def test_a_row_that_is_not_there_is_refused_and_never_another_one(row):
    with pytest.raises(InvalidInputError, match="Expected -1 to 1"):
        RaggedArray(np.array([5], np.int32), np.array([0, 1, 1])).gather(np.array([[0, row]]))


def test_take_keeps_the_rows_asked_for_in_their_order():
    lists = random_lists()
    rows = np.array([7, 3, 3, 49, 0])
    taken = RaggedArray.from_parts([RaggedArray.from_parts([part_of(lists)]).take(rows)])
    assert [taken[row].tolist() for row in range(5)] == [lists[row] for row in rows]
    assert len(RaggedArray.from_parts([taken.take(np.zeros(0, np.int64))])) == 0


def test_a_file_gives_back_what_was_streamed_into_it(tmp_path):
    lists = random_lists()
    opened, description = RaggedArray.open(stored(tmp_path, lists, made_by="test"))
    assert [opened[row].tolist() for row in range(len(lists))] == lists
    assert description == {"made_by": "test"}
    assert [path.name for path in tmp_path.iterdir()] == ["rows.safetensors"]


def test_a_file_is_ordinary_safetensors_and_its_bytes_depend_on_content_alone(tmp_path):
    lists = random_lists()
    path = stored(tmp_path, lists, made_by="test")
    first = path.read_bytes()
    loaded = load_file(path)
    assert loaded["values"].tolist() == sum(lists, [])
    assert loaded["offsets"].diff().tolist() == [len(row) for row in lists]
    opened, description = RaggedArray.open(path)
    write_ragged(path, [opened.part()], len(opened), description)  # over the file that is mapped
    assert path.read_bytes() == first
    assert opened[0].tolist() == lists[0]


def test_bits_of_bfloat16_are_named_so_in_the_file(tmp_path):
    numbers = torch.randn(5, 2).bfloat16()
    part = RaggedPart(numbers.view(torch.uint16).numpy(), np.array([2, 3]))
    write_ragged(tmp_path / "s", [part], 2, {})
    assert torch.equal(load_file(tmp_path / "s")["values"], numbers)
    opened, _ = RaggedArray.open(tmp_path / "s")
    assert torch.equal(torch.from_numpy(opened[1].copy()).view(torch.bfloat16), numbers[2:])


def test_opening_maps_the_file_instead_of_reading_it(tmp_path):
    path = tmp_path / "big.safetensors"
    write_ragged(path, [RaggedPart(np.zeros(50_000_000, np.int32), np.array([50_000_000]))], 1, {})
    before = _resident_bytes()
    opened, _ = RaggedArray.open(path)
    assert opened.values[49_999_999] == 0
    assert _resident_bytes() - before < 50_000_000  # of 200 MB
    with pytest.raises(ValueError, match="read-only"):
        opened.values[0] = 1


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("memory is counted on Linux only")


def test_no_rows_at_all(tmp_path):
    write_ragged(tmp_path / "none", [], 0, {})
    assert len(RaggedArray.open(tmp_path / "none")[0]) == len(RaggedArray.from_parts([])) == 0


@pytest.mark.parametrize("num_rows", [49, 51])
def test_a_wrong_number_of_rows_leaves_no_file(tmp_path, num_rows):
    with pytest.raises(InvalidInputError, match=f"50 rows came instead of {num_rows}"):
        write_ragged(tmp_path / "x", [part_of(random_lists())], num_rows, {})
    assert not list(tmp_path.iterdir())


def test_parts_of_different_width_are_refused(tmp_path):
    parts = [RaggedPart(np.zeros((1, width), np.uint16), np.array([1])) for width in (3, 4)]
    with pytest.raises(InvalidInputError, match="same width"):
        write_ragged(tmp_path / "x", parts, 2, {})
    with pytest.raises(InvalidInputError, match="same width"):
        RaggedArray.from_parts(parts)


@pytest.mark.parametrize(
    ("offsets", "fault"),
    [([0, 2], "run from 0 to 2"), ([1, 3], "run from 1"), ([0, 3, 2, 3], "fall"), ([], "shape"), ([[0, 3]], "shape")],
)
def test_offsets_that_lead_astray_are_refused(offsets, fault):
    with pytest.raises(InvalidInputError, match=fault):
        RaggedArray(np.zeros(3, np.int32), np.array(offsets, np.int64))


def test_a_damaged_file_is_refused(tmp_path):
    path = stored(tmp_path, random_lists())
    whole = path.read_bytes()
    header_length = 8 + int.from_bytes(whole[:8], "little")
    falling = bytearray(whole)
    falling[header_length + 8 : header_length + 16] = (10**9).to_bytes(8, "little")
    for damaged in (b"", whole[:7], whole[: len(whole) // 2], whole[:-1], whole + b"\0", bytes(falling)):
        path.write_bytes(damaged)
        with pytest.raises(KnowledgeBaseCorruptError, match="build them again"):
            RaggedArray.open(path)


def test_another_safetensors_file_is_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({"vectors": np.zeros((2, 2), np.float32)}, tmp_path / "v")
    with pytest.raises(KnowledgeBaseCorruptError, match=r"arrays \['vectors'\]"):
        RaggedArray.open(tmp_path / "v")
    save_file({"values": np.zeros(2, np.int32), "offsets": np.array([0, 2])}, tmp_path / "v")
    with pytest.raises(KnowledgeBaseCorruptError):
        RaggedArray.open(tmp_path / "v")
