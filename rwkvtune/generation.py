"""Text out of a model: one prompt or many at once, streamed, with stop strings, states that are used again, and measured.

The core reads tokens and draws them (`_rwkvcore.Model.step`, `_rwkvcore.draw`); this module decides which, and turns ids
into text.  Prompts of different lengths are read without padding: all of them together up to the end of the shortest, then
those that are left, and so on.  A text depends on its prompt, options and seed; the others of a batch share only the
reading of weights.
"""

import os
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np

from . import _rwkvcore
from .arrays import token_ids
from .prefix_cache import PrefixCache
from .sampling import SamplingOptions, token_id
from .state import RWKVState, to_core
from .text_stream import StopStrings, TextDecoder

_READ_AT_ONCE = 1024  # tokens, so that an interruption is noticed while a long prompt is read


@dataclass
class Generation:
    """One text.

    index: its number in the batch; prompts in order, `n` texts of each.  text: str, without the stop string; None without a
    tokenizer.  ids: list of the new ids, without the stop token.  finish_reason: "length", "stop" or "cancelled".
    stop: the string or the id that ended it, or None.  seed: gives this text again, also alone.
    prompt_tokens: of its prompt; cached_tokens: of these, those that the generator's cache knew.
    time_to_first_token: seconds from the call; None without tokens.  prefill_tokens_per_second: of all prompts of the call.
    decode_tokens_per_second: of this text, after the first token; None with fewer than two.
    state: `RWKVState` after prompt and ids where return_state asks for it.
    """

    index: int
    text: str | None
    ids: list = field(default_factory=list)
    finish_reason: str | None = None
    stop: Any = None
    seed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    time_to_first_token: float | None = None
    prefill_tokens_per_second: float | None = None
    decode_tokens_per_second: float | None = None
    state: Any = None


class Piece(NamedTuple):
    """What a token adds to a text.

    index: of the text.  token: the id, None where the text ends without one.  text: str, also empty, see `TextDecoder`; None
    without a tokenizer.  result: the whole `Generation` with the last piece of a text, else None.
    """

    index: int
    token: int | None
    text: str | None
    result: Generation | None


class Generator:
    """Writes with a model.

    model: `RWKV`.  tokenizer: anything with `encode` and `decode`; None = prompts and results are ids.
    cache_bytes: keep the states of prompts and texts for prompts that begin like them, in so much memory, see `PrefixCache`;
    0 = none.  sampling: fields of `SamplingOptions`, the defaults of `generate`.
    cache: the `PrefixCache`, or None.  One call at a time.

    >>> from rwkvtune import RWKV, Generator, ModelConfig
    >>> generator = Generator(RWKV(ModelConfig(model_type="x070", n_layer=1, n_embd=64, vocab_size=10)), temperature=0)
    >>> [len(result.ids) for result in generator.generate([[1, 2, 3], [4]], max_new_tokens=5)]
    [5, 5]
    """

    def __init__(self, model, tokenizer=None, cache_bytes=0, **sampling):
        self.model, self.tokenizer = model, tokenizer
        self.sampling = replace(SamplingOptions(), **sampling)
        self.cache = PrefixCache(cache_bytes) if cache_bytes else None

    def generate(self, prompt, max_new_tokens=256, *, n=1, seed=0, stop=(), stop_tokens=(), state=None, return_state=False,
                 stream=None, **sampling):  # fmt: skip
        """Continue a prompt, or several at once.

        prompt: text ("" = the beginning of a document, id 0) or ids; a list of texts or of lists of ids = several.
        n: texts per prompt.  seed: of the first text, the k-th has seed + k; a list has one per text; None = a new one.
        stop: text or texts before which a text ends, wherever tokens are cut.  stop_tokens: ids before which it ends.
        state: `RWKVState` before the prompt, of one sequence or of as many as there are prompts.
        return_state: results carry the state after their ids, which `state` continues.
        stream: a function called with each `Piece` (returning True ends that text), or True for an iterator over them.
        sampling: fields of `SamplingOptions` in place of the generator's.
        Returns a `Generation`, for several prompts or n > 1 a list of them.  Raises ValueError naming the argument.
        """
        options = replace(self.sampling, **sampling)
        several, prompts = self._prompts(prompt)
        run = _Run(self, prompts, _new_tokens(max_new_tokens), return_state)
        run.start_from(state)
        run.add_texts(_count(n), seed, options, (self._stop_strings(stop), _stop_tokens(stop_tokens)))
        if stream is True:
            return run.pieces()
        if stream is not None and not callable(stream):
            raise ValueError(f"stream is {stream!r}; allowed are None, True and a function of one piece")
        for piece in run.pieces():
            if stream is not None and stream(piece) and piece.result is None:
                run.texts[piece.index].cancelled = True
        results = [text.result for text in run.texts]
        return results if several or n > 1 else results[0]

    def _prompts(self, prompt):
        """(whether there are several, [int32 ids])."""
        if isinstance(prompt, str):
            return False, [self._encoded(prompt)]
        several = len(prompt) > 0 and (isinstance(prompt[0], str) or np.ndim(prompt[0]) > 0) if isinstance(prompt, (list, tuple)) else np.ndim(prompt) > 1
        if not several:
            return False, [self._checked("prompt_ids", prompt)]
        names = [f"prompt_ids of prompt {i}" for i in range(len(prompt))]
        return True, [self._encoded(one) if isinstance(one, str) else self._checked(name, one) for name, one in zip(names, prompt)]

    def _encoded(self, text):
        if self.tokenizer is None:
            raise ValueError(f"prompt is the text {text[:40]!r}, which needs a tokenizer: Generator(model, tokenizer), or give ids")
        return self._checked("prompt", self.tokenizer.encode(text) if text else [0])

    def _checked(self, name, ids):
        if np.ndim(ids) > 1:
            raise ValueError(f"{name} has shape {np.shape(ids)}; a prompt is a list of ids")
        return token_ids(ids, self.model.config.vocab_size, name)[0]

    def _stop_strings(self, stop):
        strings = tuple(stop) if hasattr(stop, "__iter__") and not isinstance(stop, str) else (stop,)
        if not all(isinstance(one, str) and one for one in strings):
            raise ValueError(f"stop is {stop!r}; it must be text or a list of texts, none of them empty")
        if strings and self.tokenizer is None:
            raise ValueError(f"stop is {stop!r}, which needs a tokenizer: Generator(model, tokenizer), or use stop_tokens")
        return strings


def _new_tokens(value):
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value < 2**31:
        raise ValueError(f"max_new_tokens is {value!r}; it must be an integer from 0 to 2147483647")
    return int(value)


def _stop_tokens(value):
    return {token_id("stop_tokens", token) for token in (value if hasattr(value, "__iter__") else [value])}


def _count(n):
    if isinstance(n, bool) or not hasattr(n, "__index__") or n < 1:
        raise ValueError(f"n is {n!r}; it must be an integer of at least 1")
    return int(n)


def _seeds(seed, count):
    """One seed for each of `count` texts."""
    if seed is None:
        seed = int.from_bytes(os.urandom(4), "little")
    seeds = [seed + k for k in range(count)] if hasattr(seed, "__index__") else list(seed) if hasattr(seed, "__iter__") else []
    if len(seeds) != count or not all(hasattr(one, "__index__") for one in seeds):
        raise ValueError(f"seed is {seed!r}; it must be an integer, None, or a list of {count} integers, one per text")
    return [int(one) for one in seeds]


class _Text:
    """A text that is being written."""

    def __init__(self, result, sampler, decoder, stops):
        self.result, self.sampler, self.cancelled = result, sampler, False
        self._decoder, (strings, self._stop_tokens) = decoder, stops
        self._stop, self._parts, self._last = StopStrings(strings), [], None

    def accept(self, token, now, start, limit):
        """The `Piece` that a drawn token makes.  now, start: seconds; limit: tokens of a whole text."""
        result = self.result
        if token in self._stop_tokens:
            return self.end("stop", token)
        result.ids.append(token)
        if result.time_to_first_token is None:
            result.time_to_first_token, self._first = now - start, now
        self._last = now
        text = None if self._decoder is None else self._stop.push(self._decoder.push(token))
        if self._stop.found:
            return self.end("stop", self._stop.found, token, text)
        if len(result.ids) >= limit:
            return self.end("length", None, token, text)
        if text:
            self._parts.append(text)
        return Piece(result.index, token, text, None)

    def end(self, reason, stop=None, token=None, text=""):
        """The last `Piece`, with what was held back."""
        result = self.result
        result.finish_reason, result.stop = reason, stop
        if self._decoder is not None:
            text += self._stop.push(self._decoder.finish()) + self._stop.finish()
            result.text = "".join([*self._parts, text])
        else:
            text = None
        if len(result.ids) > 1 and self._last > self._first:
            result.decode_tokens_per_second = (len(result.ids) - 1) / (self._last - self._first)
        return Piece(result.index, token, text, result)


class _Batch:
    """Texts whose next tokens are drawn and read together: row i of each of these is of texts[i]."""

    def __init__(self, texts, state, logits):
        self.texts, self.state, self.logits = texts, state, logits
        self.samplers = [text.sampler for text in texts]
        self.tokens = np.zeros((len(texts), 1), np.int32)

    def drop(self, row):
        """Put the last text into the row of one that has ended."""
        text, last = self.texts.pop(), len(self.texts)
        sampler = self.samplers.pop()
        if row != last:
            self.texts[row], self.samplers[row] = text, sampler
            self.state.put(row, self.state, last)
            self.logits.move(row, last)
            self.tokens[row] = self.tokens[last]


class _Run:
    """One call of `Generator.generate`."""

    def __init__(self, generator, prompts, limit, return_state):
        self.model, self.tokenizer, self._core = generator.model, generator.tokenizer, generator.model._core
        self.prompts, self.limit, self.return_state, self.texts = prompts, limit, return_state, []
        self._cache, self._grows, self._tokens_read = generator.cache, "attention" in generator.model.config.kinds, 0

    def start_from(self, state):
        """state: `RWKVState` or arrays, of one sequence or one per prompt, or None."""
        if state is None:
            self._starts = None
            return
        if not isinstance(state, RWKVState):
            state = RWKVState.from_numpy(state)
        shared = state.batch_size == 1
        core = to_core(state, self._core, 1 if shared else len(self.prompts))
        self._starts, self._cache = [core if shared else core.take([i]) for i in range(len(self.prompts))], None

    def add_texts(self, n, seed, options, stops):
        vocab_size, seeds = self.model.config.vocab_size, iter(_seeds(seed, n * len(self.prompts)))
        for prompt in self.prompts:
            for _ in range(n):
                result = Generation(len(self.texts), None if self.tokenizer is None else "", seed=next(seeds), prompt_tokens=len(prompt))
                decoder = None if self.tokenizer is None else TextDecoder(self.tokenizer)
                self.texts.append(_Text(result, options.sampler(vocab_size, result.seed & 2**64 - 1, prompt), decoder, stops))
        self._n = n

    # ---- reading prompts ----

    def _batches(self):
        """The prompts, read, and the texts that follow them.

        Attention's memory has one length per state: with it, only prompts of one length are read and continued together.
        """
        groups = {}
        for i, prompt in enumerate(self.prompts):
            groups.setdefault(len(prompt) if self._grows else 0, []).append(i)
        return [self._batch(group) for group in groups.values()]

    def _batch(self, group):
        """The `_Batch` of the texts after the prompts with these numbers; each prompt is read once."""
        rows, row_of = {}, []
        for i in group:
            key = (self.prompts[i].tobytes(), None if self._starts is None else id(self._starts[i]))
            row_of.append(rows.setdefault(key, (len(rows), i))[0])
        state, logits, order = self._read_prompts([i for _, i in rows.values()])
        texts = [text for i in group for text in self.texts[i * self._n : (i + 1) * self._n]]
        at = [order.index(row) for row in row_of for _ in range(self._n)]
        if at != list(range(len(order))):
            state, logits = state.take(at), logits.take(at)
        return _Batch(texts, state, logits)

    def _read_prompts(self, numbers):
        """(state, logits, order) after the prompts with these numbers; order[i] is the place in `numbers` of row i.

        The last tokens are read together, by one step: so the state in front of them can be kept, and is what the same prompt
        and a longer one can both go on from.  One prompt that nothing is kept of is read in one go.
        """
        prompts = [self.prompts[i] for i in numbers]
        last = 1 if self._cache is not None or len(prompts) > 1 else 0
        bodies = [prompt[: len(prompt) - last] for prompt in prompts]
        known = self._known(bodies, numbers)
        order = sorted(range(len(prompts)), key=lambda i: known[i][0] - len(bodies[i]))
        state = self._joined([known[i][1] for i in order])
        logits = self._core.new_logits(len(prompts))
        self._read_bodies([bodies[i][known[i][0] :] for i in order], state, None if last else logits)
        if self._cache is not None:
            state.narrow(len(order))
            for row, i in enumerate(order):
                self._cache.put(bodies[i], state.take([row]))
        if last:
            self._read(np.stack([prompts[i][-1:] for i in order]), state, logits)
        return state, logits, order

    def _known(self, bodies, numbers):
        """[(tokens that need not be read, state after them)] of prompts; what they all begin with is read here, once."""
        if self._starts is not None:
            return [(0, self._starts[i]) for i in numbers]
        common = _common(bodies) if len(bodies) > 1 else 0
        size, state, cached = self._prefix(bodies[0][:common], 0, None, 0)
        if size < common or state is None:
            size, state = common, self._read_on(bodies[0], size, common, state)
        known = []
        for i, body in zip(numbers, bodies):
            alone = len(bodies) == 1 or not self._grows
            at, after, found = self._prefix(body, size, state, cached) if alone else (size, state, cached)
            known.append((at, after))
            for text in self.texts[i * self._n : (i + 1) * self._n]:
                text.result.cached_tokens = found
        return known

    def _prefix(self, ids, size, state, cached):
        """The same three with more of `ids` where the cache knows more of them: tokens, the state after them, and how many of
        them were found in the cache."""
        if self._cache is None or len(ids) <= size:
            return size, state, cached
        found, kept = self._cache.find(ids)
        if found > size:
            size, state, cached = found, kept, found
        branch = self._cache.branch(ids, size)
        if branch:
            size, state = branch, self._read_on(ids, size, branch, state)
        return size, state, cached

    def _read_on(self, ids, size, end, state):
        """The state after ids[:end] from that after ids[:size], None = the beginning; kept in the cache."""
        state = self._core.new_state(1) if state is None else state.take([0])
        if end > size:
            self._read(ids[None, size:end], state, None)
            if self._cache is not None:
                self._cache.put(ids[:end], state)
        return state

    def _joined(self, states):
        """A state that may be changed, of the sequences of states of one."""
        joined = states[0].take([0] * len(states))
        for row, state in enumerate(states[1:], 1):
            joined.put(row, state, 0)
        return joined

    def _read_bodies(self, bodies, state, logits):
        """Read lists of ids into the rows of a state: the longest come first, and those that end fall away at the end."""
        rows, read = len(bodies), 0
        while rows:
            size = len(bodies[rows - 1])
            if size > read:
                self._read(np.stack([body[read:size] for body in bodies[:rows]]), state, logits)
            read = max(read, size)
            while rows and len(bodies[rows - 1]) <= read:
                rows -= 1

    def _read(self, ids, state, logits):
        """Read ids (rows, T) into the first rows of a state; logits: where those of the last token go, or None."""
        size = max(1, _READ_AT_ONCE // len(ids))
        for at in range(0, ids.shape[1], size):
            part = np.ascontiguousarray(ids[:, at : at + size])
            self._core.step(part, state, logits if at + size >= ids.shape[1] else None)
        self._tokens_read += ids.size

    # ---- writing ----

    def pieces(self):
        """Iterator over the `Piece`s of all texts as they come."""
        start = perf_counter()
        batches = self._batches()
        seconds = perf_counter() - start
        for text in self.texts:
            text.result.prefill_tokens_per_second = self._tokens_read / seconds
        if self.limit == 0:
            for batch in batches:
                yield from self._without_tokens(batch)
            return
        while batches:
            for batch in batches:
                yield from self._next_tokens(batch, start)
            batches = [batch for batch in batches if batch.texts]

    def _without_tokens(self, batch):
        for text in batch.texts[:]:
            piece = text.end("length")
            self._leave(batch, text, 0)
            yield piece

    def _next_tokens(self, batch, start):
        """One token for every text of a batch; those that end leave it, after their last token was read if its state is wanted."""
        _rwkvcore.draw(batch.samplers, batch.logits, batch.tokens)
        now, ended = perf_counter(), []
        for text, token in zip(batch.texts[:], batch.tokens[:, 0].tolist()):
            piece = text.accept(token, now, start, self.limit)
            if piece.result is None:
                yield piece
                if text.cancelled:
                    text.end("cancelled")
                    ended.append((text, None))
            elif piece.token is None:
                self._leave(batch, text, len(text.result.ids))
                yield piece
            else:
                ended.append((text, piece))
        if not self.return_state:
            yield from self._dismiss(batch, ended, unread=1)
        if batch.texts:
            self._core.step(batch.tokens[: len(batch.texts)], batch.state, batch.logits)
        if self.return_state:
            yield from self._dismiss(batch, ended, unread=0)

    def _dismiss(self, batch, ended, unread):
        """ended: [(text, its last piece, or None for nobody)]; unread: how many of its last tokens the state is without."""
        for text, piece in ended:
            self._leave(batch, text, len(text.result.ids) - unread)
            if piece:
                yield piece

    def _leave(self, batch, text, read):
        """A text that has ended leaves the batch; `read`: how many of its tokens its state is after."""
        row = next(row for row, other in enumerate(batch.texts) if other is text)
        if self.return_state:
            text.result.state = self._state(batch, row)
        if self._cache is not None:
            ids = np.array(text.result.ids[:read], np.int32)
            self._cache.put(np.concatenate([self.prompts[text.result.index // self._n], ids]), batch.state.take([row]))
        batch.drop(row)

    def _state(self, batch, row):
        return RWKVState(batch.state.take([row]), self._core)


def _common(prompts):
    """Ids that all prompts begin with."""
    size = min(map(len, prompts))
    same = (np.stack([prompt[:size] for prompt in prompts]) == prompts[0][:size]).all(axis=0)
    return size if same.all() else int(same.argmin())
