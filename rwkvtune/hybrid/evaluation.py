"""How well a model predicts sequences: loss, perplexity, accuracy, latency; whole, in chunks, with and without state."""

import json
import math
import time

import numpy as np

from ..arrays import IGNORED, ids_and_targets, token_ids
from ..config import whole_number
from .chunking import ChunkedLoader, targets_of
from .settings import setting

SENTENCES = (
    "A recurrent network reads a text token by token and keeps what it has read in a state of fixed size.",
    "Attention looks back at every earlier token, so its memory grows with the text, and its cost with the square of it.",
    "A model that has both kinds of layers can look up details with some of them and carry long contexts with the others.",
)
_REPEATS = 50  # of the first sentence: a long sequence with much to remember


def process_long_sequence(model, tokenizer, text, chunk_size=1024):
    """The logits of every token of a text of any length, read chunk by chunk with the state carried on.

    model: `rwkvtune.RWKV`; its `state` is afterwards the one after the text.  chunk_size: tokens of a chunk.
    Returns float32 array (1, T, V).  Raises ValueError (a text without tokens).
    """
    size, ids = whole_number("chunk_size", chunk_size), np.asarray(tokenizer.encode(text))
    if not ids.size:
        raise ValueError("the text has no tokens; give at least one")
    model.reset_state(batch_size=1)
    outputs = []
    for start in range(0, len(ids), size):
        logits, model.state = model.process_with_state(ids[None, start : start + size], model.state)
        outputs.append(logits)
    return np.concatenate(outputs, axis=1)


class Score:
    """Sums over predicted tokens: `loss` and `perplexity` (each token counts the same), `next_token_accuracy`, `tokens`."""

    def __init__(self):
        self.total, self.correct, self.tokens = 0.0, 0, 0

    def add(self, logits, targets):
        """logits (B,T,V), targets (B,T) with -100 where nothing counts."""
        counted = targets != IGNORED
        z, y = logits[counted].astype(np.float64), targets[counted]
        if not len(y):
            return
        top = z.max(axis=1, keepdims=True)
        self.total += float((np.log(np.exp(z - top).sum(axis=1)) + top[:, 0] - z[np.arange(len(y)), y]).sum())
        self.correct += int((z.argmax(axis=1) == y).sum())
        self.tokens += len(y)

    @property
    def loss(self):
        return self.total / self.tokens

    @property
    def perplexity(self):
        return math.exp(self.loss) if self.loss < 700 else math.inf

    def as_dict(self):
        """dict: loss (nats per token), perplexity, next_token_accuracy (0 to 1), tokens.  Raises ValueError without tokens."""
        if not self.tokens:
            raise ValueError("there is nothing to predict: every target is -100, or there are no batches")
        return {
            "loss": self.loss,
            "perplexity": self.perplexity,
            "next_token_accuracy": self.correct / self.tokens,
            "tokens": self.tokens,
        }


def score(model, loader, chunk_size=None):
    """dict of `Score.as_dict` over all batches of a loader.

    loader: iterable of batches, see `rwkvtune.hybrid.chunking.targets_of`; a `ChunkedLoader` as well.  chunk_size: tokens
    run at a time (default: the model's); the result does not depend on it.  Raises ValueError.
    """
    size, result = whole_number("chunk_size", chunk_size or model.chunk_size), Score()
    for batch in loader.loader if isinstance(loader, ChunkedLoader) else loader:
        ids, targets = ids_and_targets(*targets_of(batch), model.config.vocab_size)
        _score_sequence(model, ids, targets, size, result)
    return result.as_dict()


def _score_sequence(model, ids, targets, chunk_size, result, keep_state=True):
    """Adds the sequences to `result`; keep_state False: every chunk begins from nothing."""
    state = None
    for start in range(0, ids.shape[1], chunk_size):
        part = slice(start, start + chunk_size)
        logits, state = model.process_with_state(ids[:, part], state)
        result.add(logits, targets[:, part])
        if not keep_state:
            state = None


def _texts(args, texts):
    """The texts to evaluate on: given ones, or the built-in ones and those of args.sequence_modeling_benchmark_file."""
    if texts is not None:
        result = [texts] if isinstance(texts, str) else list(texts)
    else:
        result = [*SENTENCES, " ".join([SENTENCES[0]] * _REPEATS)]
        path = setting(args, "sequence_modeling_benchmark_file")
        if path:
            result += _read_texts(path)
    if not result:
        raise ValueError("texts is empty; give at least one text")
    for number, text in enumerate(result):
        if not isinstance(text, str):
            raise ValueError(f"texts[{number}] is a {type(text).__name__}; every text must be a str")
    return result


def _read_texts(path):
    with open(path, encoding="utf-8-sig") as file:
        try:
            texts = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path}: not valid JSON ({error}); it must hold a list of texts") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path}: it must hold a list of texts")
    return texts


def _encode(tokenizer, text, vocab_size):
    ids = np.asarray(tokenizer.encode(text))
    if ids.size < 2:
        raise ValueError(f"the text {text[:40]!r} has {ids.size} tokens; two are needed to predict one")
    ids = token_ids(ids, vocab_size, "tokens")
    return np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:])


def _timed(model, sequences, chunk_size, keep_state=True):
    """(Score over all sequences, milliseconds of all); chunk_size None: each sequence whole."""
    result, began = Score(), time.perf_counter()
    for ids, targets in sequences:
        _score_sequence(model, ids, targets, chunk_size or ids.shape[1], result, keep_state)
    return result, 1e3 * (time.perf_counter() - began)


def evaluate_sequence_modeling(model, tokenizer, chunk_size=1024, args=None, texts=None):
    """How well, how fast and in how much memory a model predicts texts.

    model: `rwkvtune.RWKV`.  tokenizer: of the model.  chunk_size: tokens of a chunk.  texts: list of str (default: three
    built-in sentences, the first of them 50 times over, and the list in the JSON file `args.sequence_modeling_benchmark_file`).
    Returns dict; perplexities weigh every token the same, latencies are wall milliseconds:
      loss, perplexity, next_token_accuracy, tokens, latency_ms (mean of a sequence): in chunks of chunk_size
      sequence_results: list of {length (characters), tokens, loss, perplexity, latency_ms}
      with_state_perplexity, without_state_perplexity, state_benefit_ratio (loss without / loss with): the longest
        sequence in at least two chunks of state_chunk_size tokens, the state carried on or dropped between them
      full_processing_perplexity, full_processing_latency_ms: the longest sequence in one piece
      chunked_processing_results: for a quarter, half, one and two times chunk_size {chunk_size, perplexity, latency_ms,
        speed_ratio (full / chunked latency), memory_ratio (bytes of activations and state of such a chunk / of chunk_size)}
    Raises ValueError (a text of fewer than two tokens, or outside the vocabulary), OSError.
    """
    size = whole_number("chunk_size", chunk_size)
    texts = _texts(args, texts)
    sequences = [_encode(tokenizer, text, model.config.vocab_size) for text in texts]
    total, rows = Score(), []
    for text, sequence in zip(texts, sequences):
        one, latency = _timed(model, [sequence], size)
        rows.append(
            {
                "length": len(text),
                "tokens": sequence[0].shape[1] + 1,
                "loss": one.loss,
                "perplexity": one.perplexity,
                "latency_ms": latency,
            }
        )
        total.total, total.correct, total.tokens = (
            total.total + one.total,
            total.correct + one.correct,
            total.tokens + one.tokens,
        )
    longest = max(sequences, key=lambda sequence: sequence[0].shape[1])
    return {
        **total.as_dict(), "latency_ms": sum(row["latency_ms"] for row in rows) / len(rows), "sequence_results": rows,
        **_state_benefit(model, longest, size), **_chunked_against_full(model, longest, size),
    }  # fmt: skip


def _state_benefit(model, sequence, chunk_size):
    size = min(chunk_size, max(1, sequence[0].shape[1] // 2))
    kept, _ = _timed(model, [sequence], size)
    dropped, _ = _timed(model, [sequence], size, keep_state=False)
    return {"state_chunk_size": size, "with_state_perplexity": kept.perplexity, "without_state_perplexity": dropped.perplexity,
            "state_benefit_ratio": dropped.loss / kept.loss if kept.loss else math.inf}  # fmt: skip


def _chunked_against_full(model, sequence, chunk_size):
    full, full_latency = _timed(model, [sequence], None)
    rows, memory = [], _chunk_bytes(model, chunk_size)
    for size in (max(1, chunk_size // 4), max(1, chunk_size // 2), chunk_size, 2 * chunk_size):
        part, latency = _timed(model, [sequence], size)
        rows.append({"chunk_size": size, "perplexity": part.perplexity, "latency_ms": latency, "speed_ratio": full_latency / latency,
                     "memory_ratio": _chunk_bytes(model, size) / memory})  # fmt: skip
    return {
        "full_processing_perplexity": full.perplexity,
        "full_processing_latency_ms": full_latency,
        "chunked_processing_results": rows,
    }


def _chunk_bytes(model, size):
    plan = model.plan(1, size, training=False)
    return plan["activations"] + plan["state"]
