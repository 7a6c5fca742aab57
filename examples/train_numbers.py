"""Learn to count: each sequence begins anywhere and goes on by a step of 1 to 5, modulo 100."""

import numpy as np

from rwkvtune import DataConfig, IntegerTokenizer, ModelConfig, RWKVTrainingPipeline, TrainingConfig


def sequences(count, length):
    """(count, length) integers in [0, 100)."""
    start, step = np.random.default_rng(0).integers([[0], [1]], [[100], [6]], (2, count))
    return (start[:, None] + step[:, None] * np.arange(length)) % 100


def main(work_dir="sequences", count=2000, num_epochs=3):
    pipe = RWKVTrainingPipeline(
        work_dir,
        ModelConfig(model_type="x070", n_layer=2, n_embd=128, ctx_len=32),
        TrainingConfig(lr_init=3e-3, lr_final=3e-4, micro_bsz=16, precision="fp32", grad_cp=0),
        DataConfig(n_epochs_duplication=1),
        IntegerTokenizer(max_value=99),
    )
    data = None if pipe.data_prepared else sequences(count, 32)
    pipe.train(data, num_epochs=num_epochs, continue_training=True)
    prompt = [10, 13, 16, 19]
    ids = pipe.model.generate(pipe.tokenizer.encode_sequence(prompt), 8, temperature=0)
    print(prompt, "->", pipe.tokenizer.decode_sequence(ids))


if __name__ == "__main__":
    main()
