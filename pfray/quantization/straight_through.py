"""Training weights that stay quantized: the straight-through estimator, as a hook after each optimizer step.

Notation: a layer has a latent float weight V and shows the model W = Q(V). The estimator takes the gradient at W for
that at V (Bengio et al. 2013; Hubara et al. 2016). So after a step of any linear optimizer that has moved W by D,

    V <- V + D,    W <- Q(V)

which needs no other module, parameter or backward pass: only the weight decay differs, as it is that of W.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pfray.quantization.qparams import Lattice, lattice_of


class StraightThrough:
    """The hook of a quantized model's training. A subclass may move the lattice too.

    layers: quantized layers, by name. latents: their float weights. The state is in the latents and in the layers'
    buffers; a checkpoint keeps the first by ``state_dict``, and the second with the model.
    """

    def __init__(self, layers: Mapping[str, nn.Module], latents: Mapping[str, Tensor]) -> None:
        self.layers, self.latents = dict(layers), dict(latents)
        # What each weight was before the step.
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
        return self.lattice(name).quantize(self.latents[name])

    def lattice(self, name: str) -> Lattice:
        """The layer's, as its buffers say."""
        found = lattice_of(dict(self.layers[name].named_buffers(recurse=False)), "weight")
        assert found is not None, "a quantized layer"
        return found

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.latents)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, latent in self.latents.items():
            latent.copy_(state[name])
