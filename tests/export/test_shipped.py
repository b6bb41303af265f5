"""How a model is shipped: floats as they are, an Int8Model as integers."""

from __future__ import annotations

import torch
from torch import nn

from pfray.export.shipped import shipped
from pfray.quantization import affine, qparams
from pfray.quantization.pt2e import int8_model


def test_a_float_model_is_copied_and_rounds_nothing():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).train()
    qparams.attach(model[0], qparams.QParams(3, *affine.fit(model[0].weight, 3, 3)))
    form = shipped(model)
    assert (form.rounds, form.quantizer, dict(form.operators())) == (False, None, {})
    assert set(form.weights()) == set(form.converted(folded=True).state_dict()) > {"0.weight", "0.bias"}
    assert set(form.converted().state_dict()) == {"0.weight", "0.bias"}
    assert not form.converted().training
    assert model.training
    assert "0.weight_bits" in model.state_dict()


def test_an_int8_model_ships_integers():
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    model = int8_model.prepare(nn.Sequential(nn.Linear(4, 3)).eval(), inputs, [inputs])
    form = shipped(model)
    assert form is model
    assert form.rounds
    assert form.quantizer is not None
    assert form.operators() == {"0": ("int8", "linear in integers")}
    assert form.weights()["0.weight"].dtype == torch.int8
