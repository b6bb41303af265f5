"""Progress of an unfinished run, for a user who continues it."""

from __future__ import annotations

from pathlib import Path

from pfray.storage.run_folder import TRAINING, RunFolder, curve_of
from pfray.utils.files import read_records

TEACHER = "teacher"
SUFFIX = ".safetensors"


def progress(run: RunFolder) -> str:
    """Finished stages in words: ``the teacher, 12 trials, the training of uniform; compressed is at epoch 3``.

    Damaged files, which are reported where they are used, are counted as far as they can be read.
    """
    training = run.path / TRAINING
    weights = [path.name.removesuffix(SUFFIX) for path in sorted(training.glob(f"*{SUFFIX}")) if path.is_file()]
    trained = [name for name in weights if not name.endswith(".start") and name != TEACHER]
    done = ["the teacher"] if run.teacher.is_file() or TEACHER in weights else []
    for file, what in ((run.trials, "trial"), (run.rescored_trials, "repeated measurement")):
        if count := _lines(file):
            done.append(f"{count} {what}{'s' * (count > 1)}")
    if trained:
        done.append(f"the training of {', '.join(trained)}")
    begun = [
        f"{path.name} is at epoch {epochs}"
        for path in sorted(training.glob("*"))
        if path.name not in weights and (epochs := _lines(curve_of(path), "epoch"))
    ]
    return "; ".join([", ".join(done) or "nothing finished", *begun])


def _lines(path: Path, key: str = "trial") -> int:
    try:
        return sum(key in record for record in read_records(path)[0]) if path.is_file() else 0
    except OSError:
        return 0
