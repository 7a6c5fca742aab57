"""Text out of token ids that come one at a time: only whole characters, and nothing of a stop string."""

import codecs

from .data.tokenizers import GenericTokenizer


class TextDecoder:
    """Turns ids into text as they come; all that `push` and `finish` return, joined, is `tokenizer.decode(ids)`.

    tokenizer: None gives the ids themselves between spaces.  With the bytes of a `GenericTokenizer`, a character is returned
    once all of its bytes are there.  Of other tokenizers an id is decoded after the one before it, so that what stands
    between two of them is found.
    """

    def __init__(self, tokenizer):
        self._tokenizer, self._ids, self._before = tokenizer, [], ""
        by_bytes = isinstance(tokenizer, GenericTokenizer)
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace") if by_bytes else None

    def push(self, token):
        """The text that is complete with this id, often but not always one token's."""
        if self._utf8:
            return self._utf8.decode(self._tokenizer.decodeBytes([token]))
        if self._tokenizer is None:
            text, self._before = f"{self._before}{token}", " "
            return text
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if len(text) <= len(self._before) or text.endswith("\ufffd"):
            return ""
        text = text[len(self._before) :]
        self._ids = self._ids[-1:]
        self._before = self._tokenizer.decode(self._ids)
        return text

    def finish(self):
        """What is left where no id follows: U+FFFD for a character that never became whole."""
        if self._utf8:
            return self._utf8.decode(b"", True)
        return self._tokenizer.decode(self._ids)[len(self._before) :] if self._ids else ""


class StopStrings:
    """Text up to the first of some strings, wherever its pieces are cut.

    What could be the beginning of one of them is held back until it is told apart.  Of several strings the one that is
    complete first counts, the longest where two end together.
    """

    def __init__(self, strings):
        self._strings, self._held, self.found = tuple(strings), "", None

    def push(self, text):
        """The text that is certain by now; `found` is the string that ended it, or None."""
        self._held += text
        if not self._strings or self.found:
            return self._release(0 if self.found else len(self._held))
        ends = [(at + len(stop), at, stop) for stop in self._strings if (at := self._held.find(stop)) >= 0]
        if ends:
            _, at, self.found = min(ends)
            return self._release(at)
        return self._release(len(self._held) - max(map(self._overlap, self._strings)))

    def finish(self):
        """What was held back, where no text follows."""
        return "" if self.found else self._release(len(self._held))

    def _release(self, size):
        text, self._held = self._held[:size], self._held[size:]
        return text

    def _overlap(self, stop):
        """Characters at the end of the text that are the beginning of `stop`."""
        return next((size for size in range(min(len(stop) - 1, len(self._held)), 0, -1) if self._held.endswith(stop[:size])), 0)
