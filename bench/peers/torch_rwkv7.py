"""RWKV-7 in PyTorch, float32 on the CPU, as an engine: training steps with the recurrence as a loop or as a compiled op."""

from pathlib import Path

from engine import peak_mib, serve


def loop(r, d, k, v, a, b):
    """The recurrence token by token, as reference implementations write it; all (B,T,H,N)."""
    import torch

    state, rows = torch.zeros(*r.shape[:1], r.shape[2], r.shape[3], r.shape[3]), []
    for t in range(r.shape[1]):
        z = state @ a[:, t].unsqueeze(-1)
        state = state * d[:, t].unsqueeze(-2) + z @ b[:, t].unsqueeze(-2) + v[:, t].unsqueeze(-1) @ k[:, t].unsqueeze(-2)
        rows.append((state @ r[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(rows, 1)


def compiled_op():
    """The same as a differentiable function around wkv7.cpp, compiled at first use."""
    import torch
    from torch.utils.cpp_extension import load

    op = load("rwkv7_recurrence", [str(Path(__file__).with_name("wkv7.cpp"))], extra_cflags=["-O3", "-march=native", "-ffast-math", "-fopenmp"])

    class Recurrence(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *rows):
            rows = [row.contiguous() for row in rows]
            y, z, states = op.forward(*rows)
            ctx.save_for_backward(*rows, z, states)
            return y

        @staticmethod
        def backward(ctx, dy):
            return tuple(op.backward(*ctx.saved_tensors, dy.contiguous()))

    return Recurrence.apply


class Torch:
    """settings: weights (a .pth), threads, batch, op ("loop" or "compiled"), compile (torch.compile around the layers)."""

    def __init__(self, settings):
        import torch

        torch.set_num_threads(settings["threads"])
        torch.set_flush_denormal(True)
        self.torch, self.op = torch, loop if settings["op"] == "loop" else compiled_op()
        self.p = {name: torch.nn.Parameter(value.float()) for name, value in torch.load(settings["weights"]).items()}
        self.n_layer = 1 + max(int(name.split(".")[1]) for name in self.p if name.startswith("blocks."))
        self.before = self.behind = None
        self.layers = [(self._time_inputs, self._time_output, self._channel_mix)] * self.n_layer
        if settings.get("compile"):
            self.layers = [tuple(torch.compile(part) for part in self.layers[0])] * self.n_layer
        matrices = [p for name, p in self.p.items() if p.squeeze().ndim == 2 and name.endswith("weight")]
        others = [p for name, p in self.p.items() if not (p.squeeze().ndim == 2 and name.endswith("weight"))]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.001}, {"params": others, "weight_decay": 0.0}],
                                           lr=1e-4, betas=(0.9, 0.99), eps=1e-18, fused=True)  # fmt: skip
        self.batch = None if "ids" not in settings else [torch.from_numpy(part).long() for part in _batch(settings["ids"])]

    def _norm(self, x, name):
        return self.torch.nn.functional.layer_norm(x, x.shape[-1:], self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def _shifted(self, x):
        return self.torch.nn.functional.pad(x, (0, 0, 1, -1)) - x

    def _time_inputs(self, x, v_first, at):
        torch, F = self.torch, self.torch.nn.functional
        p = lambda name: self.p[f"{at}{name}"].squeeze()  # noqa: E731
        xx = self._shifted(x)
        r, w, k, v, a, g = (x + xx * p(f"x_{name}") for name in "rwkvag")
        rank = lambda row, name, inner=lambda u: u: inner(row @ p(f"{name}1")) @ p(f"{name}2")  # noqa: E731
        r, k, raw = r @ p("receptance.weight").T, k @ p("key.weight").T, v @ p("value.weight").T
        decay = torch.exp(-0.6065306597126334 * torch.sigmoid(p("w0") + rank(w, "w", torch.tanh)))
        if v_first is None:
            v = v_first = raw
        else:
            v = raw + (v_first - raw) * torch.sigmoid(p("v0") + rank(v, "v"))
        rate, gate = torch.sigmoid(p("a0") + rank(a, "a")), rank(g, "g", torch.sigmoid)
        heads = lambda row: row.view(*row.shape[:2], -1, 64)  # noqa: E731
        kk = F.normalize(heads(k * p("k_k")), dim=-1)
        k = k * (1 + (rate - 1) * p("k_a"))
        return heads(r), heads(decay), heads(k), heads(v), -kk, kk * heads(rate), gate, v_first

    def _time_output(self, y, r, k, v, gate, at):
        B, T, H, N = y.shape
        weight, bias = self.p[f"{at}ln_x.weight"], self.p[f"{at}ln_x.bias"]
        out = self.torch.nn.functional.group_norm(y.reshape(B * T, H * N), H, weight, bias, 64e-5).view(B, T, H * N)
        bonus = ((r * k * self.p[f"{at}r_k"]).sum(-1, keepdim=True) * v).view(B, T, H * N)
        return ((out + bonus) * gate) @ self.p[f"{at}output.weight"].T

    def _channel_mix(self, x, at):
        k = x + self._shifted(x) * self.p[f"{at}x_k"].squeeze()
        return self.torch.relu(k @ self.p[f"{at}key.weight"].T) ** 2 @ self.p[f"{at}value.weight"].T

    def forward(self, ids):
        x, v_first = self._norm(self.p["emb.weight"][ids], "blocks.0.ln0"), None
        for i, (inputs, output, channel_mix) in enumerate(self.layers):
            r, d, k, v, a, b, gate, v_first = inputs(self._norm(x, f"blocks.{i}.ln1"), v_first, f"blocks.{i}.att.")
            x = x + output(self.op(r, d, k, v, a, b), r, k, v, gate, f"blocks.{i}.att.")
            x = x + channel_mix(self._norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.ffn.")
        return self._norm(x, "ln_out") @ self.p["head.weight"].T

    def step(self):
        """One optimizer step: (loss, gradient norm)."""
        ids, targets = self.batch
        logits = self.forward(ids)
        loss = self.torch.nn.functional.cross_entropy(logits.view(-1, logits.shape[-1]), targets.view(-1))
        loss.backward()
        norm = self.torch.nn.utils.clip_grad_norm_([p for p in self.p.values() if p.grad is not None], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item(), norm.item()

    def logits(self, ids):
        with self.torch.no_grad():
            return self.forward(self.torch.tensor([ids]))[0, -1].tolist()

    def peak(self):
        return peak_mib()


def _batch(path):
    import numpy as np

    with np.load(path) as found:
        return found["ids"], found["targets"]


if __name__ == "__main__":
    serve(Torch)
