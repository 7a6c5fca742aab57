"""Conversations in the form that RWKV's chat models are trained on: "User: ...", blank line, "Assistant: ..."."""

import re


class Chat:
    """A conversation, kept as ids, so that what was written is continued as it was written.

    generator: `Generator` with a tokenizer of bytes; with cache_bytes a turn reads only what is new.  system: text before the
    first turn.  user, assistant: the names.  seed: of the first reply, the next one has seed + 1 and so on.
    A reply ends before the user's name after a blank line, and before id 0, the end of a document.
    """

    def __init__(self, generator, system="", user="User", assistant="Assistant", seed=0):
        if generator.tokenizer is None:
            raise ValueError("generator has no tokenizer, which a conversation needs: Generator(model, tokenizer)")
        self.generator, self.user, self.assistant, self.seed = generator, user, assistant, seed
        self._ids, self._lead = [0], f"System: {_plain(system)}\n\n{user}:" if system else f"{user}:"

    def say(self, text, max_new_tokens=1000, **options):
        """The reply to `text`, a `Generation`, whose text begins with a space as a rule.

        options: as in `Generator.generate`, stream=function among them; not stream=True.
        Blank lines in `text` are taken out: they would end the turn.
        """
        if options.get("stream") is True:
            raise ValueError("stream is True; a conversation takes a function of a piece")
        generator, end = self.generator, f"\n\n{self.user}:"
        prompt = self._ids + list(generator.tokenizer.encode(f"{self._lead} {_plain(text)}\n\n{self.assistant}:"))
        reply = generator.generate(prompt, max_new_tokens, **{"seed": self.seed, "stop": end, "stop_tokens": [0], **options})
        self.seed += 1
        if reply.stop == end and generator.tokenizer.decode(reply.ids).endswith(end):
            self._ids, self._lead = prompt + reply.ids, ""  # the next turn has begun
        else:
            cut = isinstance(reply.stop, str)  # inside of a token
            self._ids, self._lead = prompt + (list(generator.tokenizer.encode(reply.text)) if cut else reply.ids), end
        return reply


def _plain(text):
    """One turn's text: plain line ends, no blank lines, nothing around it."""
    return re.sub(r"\n{2,}", "\n", text.replace("\r\n", "\n")).strip()
