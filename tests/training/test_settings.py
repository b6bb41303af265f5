"""Settings of a training as a file has them."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from pfray.training.settings import Finetune, Training
from pfray.utils.settings import as_written


@pytest.mark.parametrize(("written", "read"), [
    ("none", "none"), ("ema", "ema"), ("25%", 0.25), (0.25, 0.25), (" 5 % ", 0.05), ("100%", 1.0), (1, 1.0),
])  # fmt: skip
def test_an_average_is_none_ema_or_a_share_and_is_read_back_as_it_is_dumped(written, read):
    found = as_written(Finetune, {"average": written})
    assert found.average == read
    assert as_written(Finetune, found.model_dump(mode="json")) == found


@pytest.mark.parametrize("wrong", ["EMA", "half", "0%", "101%", 0, 1.5, True, None, [0.25], "0.25"])
def test_any_other_average_is_refused_with_what_is_allowed(wrong):
    with pytest.raises(ValidationError, match="is not allowed: none, ema, or the last share of the training, such as"):
        as_written(Training, {"average": wrong})


def test_weights_decay_more_after_compression_than_from_scratch():
    assert (Training().weight_decay, Finetune().weight_decay) == (1e-4, 5e-4)
    assert (Finetune().schedule, Finetune().average, Finetune().rungs) == ("cosine", "none", 0)
