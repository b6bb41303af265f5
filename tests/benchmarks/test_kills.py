from __future__ import annotations

from benchmarks import kills


def test_kills_are_the_same_for_a_seed_of_all_kinds_and_before_the_search_ends():
    planned = kills.schedule(20, trials=80, seed=0)
    assert planned == kills.schedule(20, trials=80, seed=0) != kills.schedule(20, trials=80, seed=1)
    assert {kind: sum(k == kind for _, k in planned) for kind in kills.SHARES} == kills.SHARES
    moments = [done for done, _ in planned]
    assert moments == sorted(moments)
    assert moments[0] >= 1
    assert moments[-1] < 72


def test_trials_that_are_lost_doubled_or_failed_are_counted():
    records = [{"trial": number, "plan": {"a": number}, "error": None} for number in (0, 1, 1, 3)]
    records[3]["error"] = "its worker died"
    assert kills.faults(records, trials=5, plans=5) == {"lost": 2, "doubled": 1, "failed": 1, "fewer plans": 2}
    assert kills.faults([{**records[0], "trial": 0}], trials=1, plans=1) == dict.fromkeys(
        ("lost", "doubled", "failed", "fewer plans"), 0
    )
