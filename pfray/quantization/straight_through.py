"""Training of weights that stay quantized: the straight-through estimator, as a hook after each optimizer step.

Notation: a layer has a latent float weight V and shows the model W = Q(V). The estimator uses the gradient at W as the
gradient at V (Bengio et al. 2013; Hubara et al. 2016). After a step of any linear optimizer that has moved W by D,

    V <- V + D,    W <- Q(V)

which needs no further module, parameter or backward pass. Only the weight decay differs: it acts on W.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pfray.quantization.qparams import QParams, qparams_of


class StraightThrough:
    """The hook of a quantized model's training. A subclass may move the levels too.

    layers: quantized layers, by name. latents: their float weights. ``state_dict`` holds both the latents and the
    levels, so that averages of a training's weights (``training/averaging.py``) are quantized after they are averaged.
    """

    def __init__(self, layers: Mapping[str, nn.Module], latents: Mapping[str, Tensor]) -> None:
        self.layers, self.latents = dict(layers), dict(latents)
        # Each weight before the step.
        self.shown: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, step: int) -> None:
        for name, layer in self.layers.items():
            weight = layer.get_parameter("weight")
            if name in self.shown:
                weight.copy_(self.moved(name, weight - self.shown[name], step))
            self.shown[name] = weight.detach().clone()

    def moved(self, name: str, change: Tensor, step: int) -> Tensor:
        """The layer's weight after a step that changed it by ``change``."""
        self.latents[name] += change
        return self.qparams(name).quantize(self.latents[name])

    def qparams(self, name: str) -> QParams:
        """Quantization parameters of the layer, from its buffers."""
        found = qparams_of(dict(self.layers[name].named_buffers(recurse=False)), "weight")
        assert found is not None, "a quantized layer"
        return found

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.latents, **self._levels()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])
        for name, layer in self.layers.items():
            weight = layer.get_parameter("weight")
            weight.copy_(self.qparams(name).quantize(self.source(name)))
        self.shown.clear()

    def source(self, name: str) -> Tensor:
        """The float weight that the layer's weight is quantized from."""
        return self.latents[name]

    def _levels(self) -> dict[str, Tensor]:
        """Ranges and codebooks of the layers, by the names of their buffers."""
        return {
            f"{name}.{key}": buffer
            for name, layer in self.layers.items()
            for key, buffer in layer.named_buffers(recurse=False)
            if key in ("weight_low", "weight_step", "weight_codebook")
        }
