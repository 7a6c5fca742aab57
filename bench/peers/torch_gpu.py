"""PyTorch on a GPU, for bench/gpu.py: prints as JSON the rate of a matrix product, the time of the RWKV-7 recurrence by a kernel of
the usual form (a thread per value, its row of the state in registers: wkv7_torch.cu), and the speed of training 12 x 768 with it in bfloat16."""

import json
import statistics
import sys
from pathlib import Path

DEVICE = "cuda"


def timed(torch, work, times=10, skip=3):
    """Median milliseconds by events."""
    found = []
    for _ in range(times + skip):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end))
    return statistics.median(found[skip:])


def cuda_op():
    """The recurrence as a differentiable function of (r, d, k, v, a, b), (B,T,H,64) in bfloat16, T a multiple of 16."""
    import torch
    from torch.utils.cpp_extension import load

    op = load("rwkv7_recurrence_cuda", [str(Path(__file__).with_name("wkv7_torch.cu"))], extra_cuda_cflags=["-O3", "--use_fast_math"])

    class Recurrence(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *rows):
            rows = [row.to(torch.bfloat16).contiguous() for row in rows]
            y, z, states = op.forward(*rows)
            ctx.save_for_backward(*rows, z, states)
            return y

        @staticmethod
        def backward(ctx, dy):
            return tuple(op.backward(*ctx.saved_tensors, dy.contiguous()))

    return Recurrence.apply


def draw(torch, B, T, H, N=64):
    """Inputs of the recurrence."""
    torch.manual_seed(0)
    r, k, v, key, rate, s = (torch.randn(B, T, H, N, device=DEVICE) for _ in range(6))
    key = torch.nn.functional.normalize(key, dim=-1)
    return [x.to(torch.bfloat16) for x in (r, torch.exp(-0.6065306597126334 * torch.sigmoid(2 * s - 3)), k, v, -key, key * torch.sigmoid(rate))]


def check(torch, op):
    """That the kernel computes what a loop over tokens does, with its gradients."""
    from torch_rwkv7 import loop

    rows = [x.requires_grad_() for x in draw(torch, 1, 32, 2)]
    exact = [x.detach().double().cpu().requires_grad_() for x in rows]
    y, want = op(*rows), loop(*exact)
    dy = torch.randn_like(want)
    y.backward(dy.cuda().to(torch.bfloat16))
    want.backward(dy)
    for got, truth in zip([y, *(x.grad for x in rows)], [want, *(x.grad for x in exact)]):
        error = (got.double().cpu() - truth).pow(2).mean().sqrt() / truth.pow(2).mean().sqrt()
        if not error < 0.05:
            raise AssertionError(f"the kernel of the peer is off by {error:.3g}")


def weights(layers, width, vocab):
    """name -> shape of an RWKV-7 model."""
    ranks = {"w": max(32, round(1.8 * width**0.5 / 32) * 32), "v": max(32, round(1.3 * width**0.5 / 32) * 32), "g": max(32, round(0.6 * width**0.8 / 32) * 32)}
    ranks["a"] = ranks["w"]
    yield from (("emb.weight", (vocab, width)), ("head.weight", (vocab, width)))
    for name in ("ln_out", "blocks.0.ln0", *(f"blocks.{i}.{part}" for i in range(layers) for part in ("ln1", "ln2", "att.ln_x"))):
        yield from ((f"{name}.weight", (width,)), (f"{name}.bias", (width,)))
    for i in range(layers):
        at = f"blocks.{i}.att."
        yield from ((f"{at}x_{z}", (width,)) for z in "rwkvag")
        yield from ((f"{at}{z}.weight", (width, width)) for z in ("receptance", "key", "value", "output"))
        for z, rank in ranks.items():
            yield from (((f"{at}{z}1", (width, rank)), (f"{at}{z}2", (rank, width)), (f"{at}{z}0", (width,))))
        yield from ((f"{at}{z}", (width,)) for z in ("k_k", "k_a"))
        yield f"{at}r_k", (width // 64, 64)
        yield from ((f"blocks.{i}.ffn.x_k", (width,)), (f"blocks.{i}.ffn.key.weight", (4 * width, width)), (f"blocks.{i}.ffn.value.weight", (width, 4 * width)))


def part_of(torch, model, name):
    """A part of a layer, compiled once for all layers: its parameters are arguments, under their names within the part."""
    from torch_rwkv7 import Torch

    class Part(Torch):
        def __init__(self, parameters):
            self.torch, self.p = torch, parameters

    compiled = torch.compile(lambda parameters, *rows: getattr(Torch, name)(Part(parameters), *rows, ""), dynamic=False)

    def call(*arguments):
        *rows, at = arguments
        return compiled({key[len(at) :]: value for key, value in model.p.items() if key.startswith(at)}, *rows)

    return call


def trainer(torch, op, layers, width, batch, length, vocab):
    """A function that takes one step: the model of torch_rwkv7.py in bfloat16, its elementwise parts compiled, fused AdamW."""
    from torch_rwkv7 import Torch

    model = Torch.__new__(Torch)
    model.torch, model.op, model.n_layer = torch, op, layers
    model.p = {name: torch.nn.Parameter(0.02 * torch.randn(shape, device=DEVICE, dtype=torch.bfloat16)) for name, shape in weights(layers, width, vocab)}
    model.layers = [tuple(part_of(torch, model, part) for part in ("_time_inputs", "_time_output", "_channel_mix"))] * layers
    model.optimizer = torch.optim.AdamW(model.p.values(), lr=1e-4, betas=(0.9, 0.99), eps=1e-18, fused=True)
    model.batch = [torch.randint(0, vocab, (batch, length), device=DEVICE) for _ in range(2)]
    return model.step


def main():
    """After each figure a line with all there are so far, and what is missing."""
    found = {"missing": "anything"}
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import torch

        n = 8192
        x, w = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
        found |= {"matmul": 2 * n**3 / timed(torch, lambda: x @ w.T) * 1e3, "missing": "wkv7 and training: compiling took too long"}
        print(json.dumps(found), flush=True)
        op = cuda_op()
        check(torch, op)
        rows, dy = [row.requires_grad_() for row in draw(torch, 8, 4096, 64)], draw(torch, 8, 4096, 64)[0]
        found |= {"wkv7": timed(torch, lambda: op(*rows).backward(dy), 5, 2), "missing": "training: compiling took too long"}
        print(json.dumps(found), flush=True)
        step = trainer(torch, op, 12, 768, 16, 512, 65536)
        found |= {"training": 16 * 512 / timed(torch, step, 6, 3) * 1e3, "missing": None}
    except Exception as error:  # the figures that are there count
        found["missing"] = f"{found['missing'].partition(':')[0]}: {type(error).__name__}: {error}"
    print(json.dumps(found))


if __name__ == "__main__":
    main()
