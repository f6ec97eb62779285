"""The fuzzer of fuzz.py for a few seconds. `python3 tests/fuzz.py --seed N` takes longer."""

from __future__ import annotations

import pytest
from fuzz import TEMPLATES, Fuzzer, fuzz


@pytest.mark.parametrize("seed", [1, 2])
def test_no_request_of_a_seed_breaks_anything(seed: int) -> None:
    problems, counts = fuzz(seed, 1200, seconds=4)

    assert [] == problems
    assert sum(counts.values()) > 100
    assert counts[200] > sum(counts.values()) // 10  # many get past the signature
    assert counts[400] > 0
    assert counts[403] > 0


def test_a_seed_gives_the_same_requests_again() -> None:
    first, second = Fuzzer("127.0.0.1:1", 7), Fuzzer("127.0.0.1:1", 7)
    for fuzzer in (first, second):
        fuzzer.client.now = "20260101T000000Z"

    assert [first.request(n) for n in range(50)] == [second.request(n) for n in range(50)]
    assert len(TEMPLATES) > 35
