"""A run's summary in words: the headline, and what a reader must know before quoting it."""

from __future__ import annotations

import pytest

from pfray.reporting.remarks import chosen_text, headline, remarks, time_text
from pfray.reporting.summary import Summary
from tests.summaries import STORED, SUMMARY, summary

SLOW = (
    "Remedy: time both files on the device itself (pfray bench model.tflite teacher.tflite); where this one is slower "
    "there too, leave out some layers (learner.skip), or ask for the time itself (target.latency_ms)"
)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({"sparsity": 0.925, "max_drop": 0.01}, "92.5 % sparsity"),
        ({"params": "0.4x"}, "at most 0.4x params: 3,200,000 -> 810,000 (0.25x)"),
        ({"params": 800_000}, "at most 800,000 params: 3,200,000 -> 810,000 (0.25x)"),
        ({"macs": "0.5x"}, "at most 0.5x MACs: 11,600,000 -> 11,600,000 (1.00x)"),
        ({"bits": 4.0, "size_bytes": 60_000}, "at most 4 bits a weight, at most 60.0 kB size"),
        ({"latency_ms": "0.5x"}, "at most 0.5x latency: 6.10 ms -> 5.90 ms (0.97x)"),
        ({"latency_ms": 0.25}, "at most 0.250 ms latency: 6.10 ms -> 5.90 ms (0.97x)"),
        ({"params": "many", "joules": 3}, "at most many params: 3,200,000 -> 810,000 (0.25x), at most 3 joules"),
    ],
)
def test_the_headline_names_the_target_in_its_unit(target: dict, words: str) -> None:
    assert f"mobilenet_sparse: {words}, accuracy" in headline(Summary.parse({**SUMMARY, "target": target}))


def test_the_headline_tells_the_latency_that_was_measured_and_that_a_file_is_slower() -> None:
    assert headline(summary()).endswith(", packed file 12.9 MB -> 3.6 MB (0.28x), latency 6.10 ms -> 5.90 ms (0.97x)")
    slow = summary(exported={"latency_ms": 0.863, "teacher_latency_ms": 0.233})
    assert headline(slow).endswith(", latency 0.233 ms -> 0.863 ms (3.70x), slower than the original")
    aimed = summary(target={"latency_ms": 0.2}, exported={"latency_ms": 0.863, "teacher_latency_ms": 0.233})
    assert ": 0.233 ms -> 0.863 ms (3.70x), slower than the original, accuracy" in headline(aimed)
    assert "latency" not in headline(summary(exported=None))


def test_a_file_that_is_slower_is_told_with_its_operators_and_a_remedy() -> None:
    slow = {"latency_ms": 0.863, "teacher_latency_ms": 0.233,
            "slow_operators": [{"operator": "HARD_SWISH", "share": 0.412}, {"operator": "MUL", "share": 0.2}]}
    (note,) = remarks(summary(exported=slow, trials={"failed": 0}))
    assert note.startswith(
        "smaller but not faster: 0.863 ms against 0.233 ms. Its time goes to HARD_SWISH (41 %), MUL (20 %). Remedy: "
    )
    assert note.endswith("leave out the layers with these operators (learner.skip), or ask for the time itself "
                         "(target.latency_ms)")
    (note,) = remarks(summary(target={"latency_ms": "0.5x"}, exported=slow, trials={"failed": 0}))
    assert note.endswith("leave out the layers with these operators (learner.skip)")


def test_a_plan_that_was_compressed_further_is_told_with_the_time_it_has_to_meet() -> None:
    choice = {"origin": "uniform", "moved": "further"}
    run = summary(choice=choice, target={"latency_ms": "0.2x"}, limits={"latency_ms": 1.2}, searcher="uniform",
                  trials={"failed": 0, "best": 3}, exported={"latency_ms": 1.19})
    assert chosen_text(run) == "uniform (trial 3), compressed further to meet 1.20 ms"
    assert remarks(run) == ["the plan is 'uniform', compressed further to meet 1.20 ms, because its file took longer "
                            "than predicted"]
    assert chosen_text(summary(choice={"origin": "tpe"})) == "tpe (trial 3)"
    milder = summary(choice={"origin": "tpe", "moved": "less"}, limits={"latency_ms": 1.2})
    assert chosen_text(milder) == "tpe (trial 3), compressed less to use up 1.20 ms"


def test_a_metric_goes_by_its_name_and_in_its_own_sign() -> None:
    metric = {"name": "mse", "higher_is_better": False, "is_share": False}
    run = summary(metric=metric, teacher={"accuracy": -0.0123}, compressed={"accuracy": -0.014},
                  uniform={"accuracy": -0.0139}, allocate=None, target={"max_drop": 0.001}, trials={"failed": 0})
    assert "mse 0.0123 -> 0.014 (lower is better)" in headline(run)
    assert remarks(run) == [
        "the searched plan did not beat the uniform plan: 0.014 against 0.0139 on the test split",
        "the goal is missed: mse is worse by 0.0017, 0.001 allowed (target.max_drop)",
    ]
    named = summary(metric={"name": "top-5"})
    assert "top-5 97.8 % -> 97.5 %" in headline(named)


def test_a_baseline_that_is_the_chosen_plan_is_no_rival() -> None:
    run = summary(shared={"uniform": "compressed"}, uniform={"accuracy": 0.975}, trials={"failed": 0})
    assert remarks(run) == []


def test_the_time_of_this_attempt_is_told_beside_the_total() -> None:
    assert time_text(summary(seconds={"data": 0.4})) == "284 s."
    assert time_text(Summary.parse({"seconds": {"load": 2.0, "search": 300.0}, "own_seconds": {"load": 2.0}})) == (
        "2 s in the last attempt, 302 s with the interrupted ones before."
    )
    assert time_text(Summary.parse({"seconds": {"load": 2.0}, "own_seconds": {"load": 2.0}})) == "2 s."


def test_nothing_is_held_back_when_the_result_is_good() -> None:
    assert remarks(summary(trials={"failed": 0})) == []


@pytest.mark.parametrize(
    ("changes", "remark"),
    [
        ({"exported": {"latency_ms": 6.2}}, "smaller but not faster: 6.20 ms against 6.10 ms"),
        ({"exported": {"latency_ms": 6.1}}, "smaller but not faster: 6.10 ms against 6.10 ms"),
        ({"exported": {"latency_ms": 0.0612, "teacher_latency_ms": 0.06}},
         "smaller but not faster: 0.061 ms against 0.060 ms"),
        ({"exported": {"latency_ms": 7.0}, "compressed": {"size_bytes": 13e6}},
         f"neither smaller nor faster: 7.00 ms against 6.10 ms. {SLOW}"),
        ({"exported": {"latency_ms": 7.0}, "compressed": {"size_bytes": None}},
         f"not faster: 7.00 ms against 6.10 ms. {SLOW}"),
        ({"exported": None, "compressed": {"latency_ms": 9.0}, "teacher": {"latency_ms": 8.0}},
         f"smaller but not faster: 9.00 ms against 8.00 ms. {SLOW}"),
        ({"compressed": {"accuracy": 0.971}, "allocate": {"accuracy": 0.97}},
         "the searched plan did not beat the uniform plan: 97.10 % against 97.10 % on the test split"),
        ({"compressed": {"accuracy": 0.95}, "allocate": {"accuracy": 0.94}},
         "the searched plan did not beat the uniform plan: 95.00 % against 97.10 % on the test split"),
        ({"compressed": {"accuracy": 0.972}},
         "the searched plan did not beat the allocate plan: 97.20 % against 97.30 % on the test split"),
        ({"choice": {"origin": "allocate"}},
         "no searched plan scored better than 'allocate', which needs no search"),
        ({"choice": {"origin": "allocate", "gave_up": True}},
         "no searched plan scored clearly better than 'allocate', which needs no search, so the search ended early "
         "(search.patience)"),
        ({"choice": {"origin": "searched", "within_error": 7, "standard_error": 0.0134}},
         "the best 7 plans are within one standard error (0.013) of the best score, so the choice among them is close "
         "to chance. More search.validation_images tell them apart"),
        ({"target": {"max_drop": 0.002}}, "the goal is missed: 0.30 points lost, 0.20 allowed (target.max_drop)"),
    ],
)  # fmt: skip
def test_what_a_reader_must_know_is_said(changes: dict, remark: str) -> None:
    assert remarks(summary(**changes, trials={"failed": 0})) == [remark]


def test_the_only_plan_of_a_target_was_not_searched_in_vain() -> None:
    choice = {"origin": "allocate"}
    assert remarks(summary(choice=choice, trials={"finished": 1, "failed": 0})) == []
    assert len(remarks(summary(choice=choice, trials={"finished": 2, "failed": 0}))) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"exported": {"latency_ms": 6.0}},
        {"exported": {"latency_ms": None}},
        {"exported": None},
        {"uniform": {"accuracy": None}},
        {"uniform": None},
        {"target": {"max_drop": 0.01}},
    ],
)
def test_remarks_are_silent_where_nothing_is_wrong_or_known(changes: dict) -> None:
    assert remarks(summary(**changes, trials={"failed": 0})) == []


def test_the_remarks_name_what_the_file_rounds_and_what_stays_float() -> None:
    notes = remarks(summary(exported={"stored": STORED}))
    assert [note for note in notes if ".tflite" in note] == [
        "float in the .tflite, d: with int8's nearest levels the outputs <differ>",
        "the .tflite rounds to 8 bits what its int4 layers read: a",
        "the .tflite has int8's levels nearest to the model's, not the same: b",
    ]
    assert not any(".tflite" in note for note in remarks(summary()))


@pytest.mark.parametrize(("limit", "size", "told"), [
    (3_000_000, 3_100_000, None), (3_000_000, 3_200_000, ("3.2 MB", "3.0 MB")),
    (6_400_000, 6_700_000, None), (6_400_000, 6_900_000, ("6.9 MB", "6.4 MB")),
])  # fmt: skip
def test_a_packed_file_that_is_larger_than_the_target_is_told(limit, size, told) -> None:
    run = summary(target={"size_bytes": "0.5x"}, limits={"size_bytes": limit}, compressed={"size_bytes": size})
    notes = [note for note in remarks(run) if "size_bytes" in note]
    starts = [f"the packed file has {told[0]}, target.size_bytes is {told[1]}: it counts parameters"] if told else []
    assert [note[: len(start)] for note, start in zip(notes, starts, strict=True)] == starts


@pytest.mark.parametrize(("stored", "said"), [(4.9, False), (5.1, True)])
def test_bits_of_all_parameters_are_told_where_many_stay_float(stored, said) -> None:
    stored_bits = stored * SUMMARY["compressed"]["params"]
    notes = remarks(summary(target={"bits": 4}, limits={"bits": 4}, compressed={"stored_bits": stored_bits}))
    expected = "4 bits hold for the layers that are quantized; all parameters have 5.1 on average, as the others stay "
    assert (f"{expected}float" in notes) == said


def test_operators_without_an_int8_kernel_are_remarked_and_layers_left_out_on_purpose_are_not() -> None:
    stored = {f"act{i}": {"bits": None, "type": "float", "reason": "no int8 kernel for silu"} for i in range(6)}
    stored["fc"] = {"bits": None, "type": "float", "reason": "left out by the plan or by learner.skip"}
    notes = remarks(summary(exported={"stored": stored}))
    expected = "float in the .tflite, act0, act1, act2 and 3 more: no int8 kernel for silu"
    assert [note for note in notes if ".tflite" in note] == [expected]


def test_a_target_that_rounded_counts_do_not_use_up_is_explained_with_the_setting() -> None:
    costs = {"teacher": {"macs": 1000.0}, "compressed": {"macs": 410.0}}
    rounded = {
        **SUMMARY, "target": {"macs": "0.5x"}, "limits": {"macs": 500.0}, "costs": costs,
        "choice": {"origin": "tpe", "rounding": {"learner.round_to": 8}},
    }  # fmt: skip
    assert (
        "0.41x MACs of 0.50x that the target allows, because counts are kept in multiples of learner.round_to=8, which "
        "are fast to compute. A smaller one comes nearer to the target"
    ) in remarks(Summary.parse(rounded))
    for change in (
        {"costs": {**costs, "compressed": {"macs": 480.0}}}, {"objective": "amc"}, {"choice": {"rounding": {}}},
        {"choice": {"rounding": 8}}, {"limits": {"macs": 500.0, "latency_ms": 1.0}},
    ):  # fmt: skip
        assert not [text for text in remarks(Summary.parse({**rounded, **change})) if "multiples" in text]


def test_a_training_that_takes_what_the_trial_had_is_told_with_the_remedy() -> None:
    def told(before: float | None, after: float, trained: bool = True) -> list[str]:
        choice = {"origin": "tpe", "accuracy": before, "trained": trained}
        notes = remarks(summary(choice=choice, teacher={"accuracy": 0.95}, compressed={"accuracy": after}))
        return [note for note in notes if "harm" in note]

    assert told(0.98, 0.51) == [
        "the training did harm: accuracy was 98.0 % in the plan's trial, on validation samples, and is 51.0 % after "
        "it. Remedy: a smaller finetune.lr, or more finetune.epochs"
    ]
    # 5 % of the teacher's 0.95 may be chance.
    assert told(0.98, 0.94) == told(0.98, 0.51, trained=False) == told(None, 0.51) == []
