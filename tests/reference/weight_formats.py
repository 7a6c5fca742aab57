"""Weights of each format as float64, from the bytes alone (csrc/base/quant.h describes them)."""

import numpy as np

BLOCK = 32
ROUNDING = {"bf16": 2.0**-8, "fp16": 2.0**-11}  # half of the spacing, relative


def decode(form, array):
    """float64 array of the numbers; quantised: array is uint8 (rows, bytes of a row)."""
    if form == "bf16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if form in ("fp32", "fp16"):
        return array.astype(np.float64)
    value_bytes = BLOCK if form == "int8" else BLOCK // 2
    blocks = array.shape[1] // (value_bytes + 2)
    scales = np.ascontiguousarray(array[:, blocks * value_bytes :]).view("<f2").astype(np.float64)
    values = array[:, : blocks * value_bytes].reshape(len(array), blocks, value_bytes)
    if form == "int8":
        values = values.view(np.int8).astype(np.float64)
    else:
        values = np.concatenate([values & 15, values >> 4], axis=2).astype(np.float64) - 8
    return (scales[:, :, None] * values).reshape(len(array), blocks * BLOCK)
