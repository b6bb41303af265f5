"""Small models of every wiring that a channel graph meets, all with weights and statistics that are not trivial.

``ZOO`` maps a name to a function that gives (model in evaluation mode, example inputs).
"""

from tests.zoo import networks, streams, stubborn, wirings  # noqa: F401 (they put their models into the list)
from tests.zoo.parts import ZOO, Concat, Example, Residual, conv, head, randomize

__all__ = ["ZOO", "Concat", "Example", "Residual", "conv", "head", "randomize"]
