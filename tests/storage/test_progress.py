from __future__ import annotations

from pfray.storage.progress import progress
from pfray.storage.run_folder import RunFolder


def test_a_run_killed_before_its_first_result_has_nothing_finished(tmp_path):
    assert progress(RunFolder(tmp_path)) == "nothing finished"


def test_finished_stages_and_the_training_under_way_are_named(tmp_path):
    run = RunFolder(tmp_path)
    for folder in ("search", "rescore", "training/compressed", "training/uniform"):
        (tmp_path / folder).mkdir(parents=True)
    run.teacher.touch()
    run.trials.write_text('{"trial": 0}\n{"trial": 1}\n{"tri')
    run.rescored_trials.write_text('{"trial": 1}\n')
    run.trained("uniform").touch()
    run.start("compressed").touch()
    for name, epochs in (("uniform", 2), ("compressed", 3)):
        lines = [f'{{"epoch": {epoch + 1}, "loss": 1.0}}\n' for epoch in range(epochs)]
        (run.training(name) / "curve.jsonl").write_text("".join(lines))
    assert progress(run) == (
        "the teacher, 2 trials, 1 repeated measurement, the training of uniform; compressed is at epoch 3"
    )


def test_damage_is_left_to_those_who_read_the_files(tmp_path):
    (tmp_path / "search" / "trials.jsonl").mkdir(parents=True)
    (tmp_path / "training").write_text("a file")
    assert progress(RunFolder(tmp_path)) == "nothing finished"
