"""The `rwkv` package (pip install rwkv, needs PyTorch) as an engine, float32 on the CPU."""

import os

from engine import peak_mib, serve


class Package:
    """settings: weights (a .pth), threads."""

    def __init__(self, settings):
        os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
        import torch

        torch.set_num_threads(settings["threads"])
        from rwkv.model import RWKV

        self.model = RWKV(model=settings["weights"].removesuffix(".pth"), strategy="cpu fp32")

    def logits(self, ids):
        return self.model.forward(ids, None)[0].float().tolist()

    def prefill(self, ids):
        self.model.forward(ids, None)

    def decode(self, ids):
        state = None
        for token in ids:
            _, state = self.model.forward([token], state)

    def peak(self):
        return peak_mib()


if __name__ == "__main__":
    serve(Package)
