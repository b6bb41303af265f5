"""A training of a benchmark that was stopped ends with the weights of one that was not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.checkpointed import fit_on
from pfray.training.settings import Training
from tests.small import chain, equal, make_task


class Stop(Exception):
    pass


def test_a_stopped_training_goes_on_from_its_last_whole_epoch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    training, task, checkpoint = Training(epochs=3, batch_size=20, warmup_epochs=0), make_task(), tmp_path / "it.pt"
    whole, stopped, last = chain(), chain(), chain()
    fit_on(whole, task, training, tmp_path / "other.pt", "whole", seed=0)

    def stop(step: int) -> None:
        if step == 8:  # of 3 epochs of 3 steps
            raise Stop

    with pytest.raises(Stop):
        fit_on(stopped, task, training, checkpoint, "stopped", seed=0, hook=stop)
    capsys.readouterr()
    seconds = fit_on(last, task, training, checkpoint, "last", seed=0)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["  last: epoch 3"]
    assert equal(last.state_dict(), whole.state_dict())
    assert seconds >= torch.load(checkpoint, weights_only=True)["seconds"] > 0
    again = chain()
    fit_on(again, task, training, checkpoint, "again", seed=0)  # nothing is left to train
    assert equal(again.state_dict(), whole.state_dict())
    assert capsys.readouterr().out == ""
