"""Which GPUs CUDA_VISIBLE_DEVICES leaves, as CUDA reads it."""

from __future__ import annotations

import pytest

from rl_cluster.gpus import chosen

UUIDS = ["GPU-8a2f", "GPU-8b11", "GPU-90aa"]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("0,2", [0, 2]),
        (" 2 , 0", [2, 0]),
        ("", []),
        ("-1", []),
        ("1,7,0", [1]),
        ("GPU-90", [2]),
        ("GPU-8b11,0", [1]),
        ("GPU-8", []),
        ("1,1", []),
        ("GPU-90,GPU-90aa", []),
        ("GPU-90,GPU-8b", [2, 1]),
        ("NoDevFiles", []),
    ],
)
def test_gpus_are_chosen_by_number_or_by_how_their_uuid_begins(
    asked: str, found: list[int]
) -> None:
    assert chosen(asked, UUIDS) == found
