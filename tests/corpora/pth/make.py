"""Makes the files of this folder with torch (2.13 was used); the tests only read them.

python make.py
"""

from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).parent


def tensors():
    """Every dtype with numbers in NumPy, and every kind of view."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    shared = torch.arange(20.0)
    result = OrderedDict()
    for name in ("float64", "float32", "float16", "bfloat16", "complex64", "complex128"):
        result[name] = base.to(getattr(torch, name))
    for name in ("int64", "int32", "int16", "int8"):
        result[name] = torch.tensor([-128, -1, 0, 1, 127]).to(getattr(torch, name))
    for name in ("uint64", "uint32", "uint16", "uint8"):
        result[name] = torch.tensor([0, 1, 128, 255]).to(getattr(torch, name))
    result["bool"] = torch.tensor([True, False, True])
    result["scalar"] = torch.tensor(2.5)
    result["empty"] = torch.zeros(0, 4)
    result["transposed"] = base.t()
    result["strided"] = torch.arange(50.0)[1::4]
    result["expanded"] = torch.tensor([[1.0], [2.0]]).expand(2, 3)
    result["shared_a"], result["shared_b"] = shared[:10], shared.view(4, 5)
    result["parameter"] = torch.nn.Parameter(base[0].clone())
    with_state = torch.nn.Parameter(base[1].clone())
    with_state.note = "kept by torch, passed over here"
    result["parameter_with_state"] = with_state
    with_attribute = base[2].clone()
    with_attribute.note = "kept by torch, passed over here"
    result["with_attribute"] = with_attribute
    result._metadata = OrderedDict({"": {"version": 1}})
    return result


def main():
    every = tensors()
    plain = {
        name: value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
        for name, value in every.items()
    }
    np.savez_compressed(HERE / "expected.npz", **{name: value.numpy() for name, value in plain.items()})
    torch.save(every, HERE / "zip.pth")
    torch.save(every, HERE / "zip_protocol5.pth", pickle_protocol=5)
    torch.save(every, HERE / "legacy.pth", _use_new_zipfile_serialization=False)
    some = {f"model.{name}": every[name] for name in ("float32", "bfloat16")}
    extras = {
        "epoch": 3, "loss": np.float64(1.5), "device": torch.device("cpu"), "shape": torch.Size([2]), "set": {1, 2},
        "bytes": b"\x00\xff", "dtype": torch.bfloat16, "layout": torch.strided, "list": [1, (2.5, None, True)],
        "large": 1 << 40, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}},
    }  # fmt: skip
    torch.save({"state_dict": some} | extras, HERE / "nested.pth")
    torch.save({"float8": torch.ones(4).to(torch.float8_e4m3fn), "float32": every["float32"]}, HERE / "float8.pth")
    torch.save({"conjugate": every["complex64"].conj()}, HERE / "conjugate.pth")
    torch.serialization.set_crc32_options(False)
    torch.save(every, HERE / "zip_without_checksums.pth")
    torch.serialization.set_crc32_options(True)


if __name__ == "__main__":
    main()
