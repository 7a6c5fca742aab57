"""Read a long text piece by piece and keep the state: the logits are those of one long run."""

import numpy as np

from rwkvtune import RWKV, ModelConfig


def main():
    model = RWKV(ModelConfig(model_type="x070", n_layer=2, n_embd=128, vocab_size=257))
    for value in model.named_parameters().values():  # fresh weights do not use their state yet
        value += 0.02 * np.random.default_rng(value.size).standard_normal(value.shape, np.float32)
    ids = np.random.default_rng(0).integers(0, 257, (1, 1000))
    whole = model(ids).logits
    state, pieces = None, []
    for start in range(0, 1000, 300):
        logits, state = model.process_with_state(ids[:, start : start + 300], state)
        pieces.append(logits)
    print("largest difference:", np.abs(np.concatenate(pieces, axis=1) - whole).max())
    print("state of one sequence:", {name: value.shape for name, value in state.to_numpy().items()})


if __name__ == "__main__":
    main()
