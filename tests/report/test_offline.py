"""The reader of the tests is itself tested, on records made by hand."""

import struct

import pytest

from tests.report.offline import records

HEADER = b":W&B\x00\x00\x00"


def fragment(kind: int, payload: bytes) -> bytes:
    return b"crc!" + struct.pack("<HB", len(payload), kind) + payload


def test_fragments_are_joined_over_blocks_and_padding_is_skipped() -> None:
    block = 32 * 1024
    first = block - len(HEADER) - 7 - len(fragment(1, b"small"))
    data = HEADER + fragment(1, b"small") + fragment(2, b"a" * first)
    data += fragment(3, b"b" * (block - 7)) + fragment(4, b"c")
    left = 2 * block + block - len(data) - 7 - 3
    data += fragment(1, b"d" * left) + b"\x00" * 3 + fragment(1, b"next block")
    joined = b"a" * first + b"b" * (block - 7) + b"c"
    assert list(records(data)) == [b"small", joined, b"d" * left, b"next block"]


def test_what_is_no_log_is_refused() -> None:
    with pytest.raises(ValueError, match="starts with"):
        list(records(b"text"))
    with pytest.raises(ValueError, match="broken fragment at byte 7: type 9"):
        list(records(HEADER + fragment(9, b"x")))
    with pytest.raises(ValueError, match="broken fragment"):
        list(records(HEADER + fragment(1, b"cut short")[:-2]))
