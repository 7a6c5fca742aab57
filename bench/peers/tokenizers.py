"""The tokenizer beside others on the same text: MB of UTF-8 a second, and whether the ids are the same.

    python bench/peers/tokenizers.py

Peers: a trie of dicts as one writes it in Python (below); pyrwkv-tokenizer (Rust) and tiktoken where they are installed.
All of them are timed in turn in this process; one thread, the best of several runs.
"""

from rwkvtune import set_num_threads
from rwkvtune.bench.text import python_sources
from rwkvtune.bench.timing import best_in_turn
from rwkvtune.data import GenericTokenizer


class TrieOfDicts:
    """Greedy longest match as one writes it in Python: a peer, and a check."""

    def __init__(self, tokens):
        self.root = {}
        for token_id, token in tokens:
            node = self.root
            for byte in token:
                node = node.setdefault(byte, {})
            node[None] = token_id

    def encode(self, text):
        data, ids, at = text.encode(), [], 0
        while at < len(data):
            node, i = self.root, at
            while i < len(data) and data[i] in node:
                node = node[data[i]]
                i += 1
                if None in node:
                    found, end = node[None], i
            ids.append(found)
            at = end
        return ids


def peers(tokenizer):
    """name -> function text -> ids, or None where it is not installed; and those whose vocabulary is another."""
    found = {"a trie of dicts in Python": TrieOfDicts(tokenizer._core.lines()).encode}
    try:
        import pyrwkv_tokenizer

        found["pyrwkv-tokenizer (Rust)"] = pyrwkv_tokenizer.RWKVTokenizer().encode
    except ImportError:
        found["pyrwkv-tokenizer (Rust)"] = None
    try:
        import tiktoken

        ranks = {bytes([byte]): byte for byte in range(256)}
        encoding = tiktoken.Encoding("bytes", pat_str=r"\s?\w+|[^\w\s]+|\s+", mergeable_ranks=ranks, special_tokens={})
        found["tiktoken, 256 bytes"] = encoding.encode_ordinary
    except ImportError:
        found["tiktoken, 256 bytes"] = None
    return found, ("tiktoken, 256 bytes",)


def main():
    set_num_threads(1)
    text, tokenizer = python_sources(1_000_000), GenericTokenizer("world")
    others, own_vocabulary = peers(tokenizer)
    ours = tokenizer.encode(text)
    for name, encode in others.items():
        if encode and name not in own_vocabulary and list(encode(text)) != ours:
            raise SystemExit(f"{name} finds other ids: nothing to compare")
    works = {"rwkvtune, an array": tokenizer.encode_array, "rwkvtune, a list": tokenizer.encode} | {name: work for name, work in others.items() if work}
    took = dict(zip(works, best_in_turn([lambda work=work: work(text) for work in works.values()], 10), strict=True))
    size = len(text.encode()) / 1e6
    print("| tokenizer | MB/s | rwkvtune's array / it |\n|---|---|---|")
    for name in [*works, *(name for name, work in others.items() if not work)]:
        figures = f"{size / took[name]:.1f} | {took[name] / took['rwkvtune, an array']:.1f}" if name in took else "not installed |"
        print(f"| {name} | {figures} |")


if __name__ == "__main__":
    main()
