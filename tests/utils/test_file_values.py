from __future__ import annotations

import numpy as np

from pfray.utils.file_values import dequantize, quantize


def test_integer_inputs_and_outputs_go_through_scale_and_zero_point() -> None:
    detail = {"dtype": np.int8, "quantization": (0.5, 10)}
    stored = quantize(np.array([-1.0, 0.0, 0.3, 1000.0], np.float32), detail)
    assert stored.tolist() == [8, 10, 11, 127]
    assert dequantize(stored, detail).tolist() == [-1.0, 0.0, 0.5, 58.5]
