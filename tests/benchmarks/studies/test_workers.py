from __future__ import annotations

from typing import Any

from benchmarks.studies import workers


def square(piece: list[int]) -> dict[str, Any]:
    return {"square": piece[0] ** 2}


def test_pieces_that_are_done_are_not_done_again(tmp_path):
    path = tmp_path / "done.jsonl"
    path.write_text('{"piece": [3], "square": -1}\n{"piece": [2], "squ')
    records = workers.run_all(square, [[2], [3], [4]], path, processes=1)
    assert [record["square"] for record in records] == [4, -1, 16]
    assert workers.run_all(square, [[4], [3]], path, processes=1) == [records[2], records[1]]
