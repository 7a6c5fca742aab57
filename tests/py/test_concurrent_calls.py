"""Calls of one model from several threads: each gives what it gives alone."""

import threading

import numpy as np
from helpers import assert_same_bits, small_model, some_ids


def test_calls_that_share_the_memory_of_the_model():
    """What a training forward saves is copied before another call, of another size, can take its place."""
    model = small_model()
    ids = {length: np.ascontiguousarray(some_ids(2, length), np.int32) for length in (3, 17, 40)}
    alone = {length: model._core.activations(x) for length, x in ids.items()}
    used = [name for name in alone[3] if name.startswith("blocks.1.")]  # the first layer leaves rows of its table unwritten
    failures = []

    def work(length):
        try:
            for _ in range(30):
                now = model._core.activations(ids[length])
                for name in used:
                    assert_same_bits(now[name], alone[length][name], name)
                assert model._core.allocated()["activations"] > 0
        except AssertionError as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(length,)) for length in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
