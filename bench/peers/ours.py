"""rwkvtune as an engine: training steps, reading a prompt, writing."""

from engine import peak_mib, serve


class Training:
    """settings: weights, threads, ids (an .npz)."""

    def __init__(self, settings):
        import numpy as np

        from rwkvtune import RWKV, Trainer, TrainingConfig, set_num_threads

        set_num_threads(settings["threads"])
        with np.load(settings["ids"]) as found:
            self.ids, self.targets = found["ids"], found["targets"]
        self.trainer = Trainer(RWKV.load(settings["weights"]), TrainingConfig(precision="fp32", micro_bsz=len(self.ids), grad_cp=0, weight_decay=0.001, l2wrap=False))

    def step(self):
        return self.trainer.step(self.ids, self.targets, lr=1e-4)

    def peak(self):
        return peak_mib()


class Inference:
    """settings: weights, precision, threads."""

    def __init__(self, settings):
        import numpy as np

        from rwkvtune import RWKV, set_num_threads

        set_num_threads(settings["threads"])
        self.np, self.model = np, RWKV.load(settings["weights"], precision=settings["precision"])

    def _last(self, ids, state=None):
        return self.model._core.forward(self.np.asarray([ids], self.np.int32), state, "last")

    def logits(self, ids):
        return self._last(ids)[0][0].tolist()

    def prefill(self, ids):
        self._last(ids)

    def decode(self, ids):
        state = None
        for token in ids:
            _, state = self._last([token], state)

    def peak(self):
        return peak_mib()


if __name__ == "__main__":
    serve(lambda settings: Training(settings) if "ids" in settings else Inference(settings))
