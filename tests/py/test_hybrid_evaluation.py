"""evaluate_sequence_modeling, validation scores, long sequences."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from hybrid_helpers import RECIPES, TEXT, byte_tokenizer, small, write_text

from rwkvtune import evaluate_sequence_modeling
from rwkvtune.hybrid import ChunkedLoader, DataLoader, TextDataset, process_long_sequence, score
from rwkvtune.hybrid.evaluation import SENTENCES, Score

KEYS = {"loss", "perplexity", "next_token_accuracy", "tokens", "latency_ms", "sequence_results", "with_state_perplexity",
        "without_state_perplexity", "state_benefit_ratio", "state_chunk_size", "full_processing_perplexity",
        "full_processing_latency_ms", "chunked_processing_results"}  # fmt: skip


@pytest.fixture
def tokenizer(tmp_path):
    return byte_tokenizer(tmp_path)


def by_hand(model, ids):
    """(sum of the cross-entropy, right guesses) of one text, from the logits of one call, in float64."""
    z = model(ids[:-1]).logits[0].astype(np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    y = np.asarray(ids[1:])
    return -np.log(p[np.arange(len(y)), y]).sum(), int((z.argmax(axis=1) == y).sum())


@pytest.mark.parametrize("layers", RECIPES)
def test_every_number(tokenizer, layers):
    model, texts = small(layers), ["hello there", "a" * 30 + "b" * 10, TEXT[:150]]
    result = evaluate_sequence_modeling(model=model, tokenizer=tokenizer, chunk_size=16, texts=texts)
    assert set(result) == KEYS
    sums = [by_hand(model, tokenizer.encode(text)) for text in texts]
    counts = [len(text) - 1 for text in texts]
    loss = sum(total for total, _ in sums) / sum(counts)
    assert result["loss"] == pytest.approx(loss, rel=1e-5) and result["perplexity"] == pytest.approx(
        math.exp(loss), rel=1e-5
    )
    assert result["tokens"] == sum(counts) and result["next_token_accuracy"] == sum(right for _, right in sums) / sum(
        counts
    )
    for row, text, (total, _), count in zip(result["sequence_results"], texts, sums, counts, strict=True):
        assert (row["length"], row["tokens"]) == (len(text), count + 1) and row["latency_ms"] > 0
        assert row["loss"] == pytest.approx(total / count, rel=1e-5)
    longest = math.exp(sums[2][0] / counts[2])
    assert result["full_processing_perplexity"] == pytest.approx(longest, rel=1e-5)
    assert result["with_state_perplexity"] == pytest.approx(longest, rel=1e-5) and result["state_chunk_size"] == 16
    rows = result["chunked_processing_results"]
    assert [row["chunk_size"] for row in rows] == [4, 8, 16, 32]
    assert all(row["perplexity"] == pytest.approx(longest, rel=1e-5) and row["latency_ms"] > 0 for row in rows)
    assert all(
        row["speed_ratio"] == pytest.approx(result["full_processing_latency_ms"] / row["latency_ms"]) for row in rows
    )
    ratios = [row["memory_ratio"] for row in rows]
    assert ratios == sorted(ratios) and ratios[0] < ratios[2] == 1.0 < ratios[3]


def test_perplexity_weighs_tokens_not_sequences(tokenizer):
    """The mean of the sequences' perplexities is another number: short sequences would dominate it."""
    model, texts = small(), ["zq", TEXT[:200]]
    result = evaluate_sequence_modeling(model, tokenizer, texts=texts)
    rows = result["sequence_results"]
    weighted = math.exp(sum(row["loss"] * (row["tokens"] - 1) for row in rows) / sum(row["tokens"] - 1 for row in rows))
    assert result["perplexity"] == pytest.approx(weighted, rel=1e-9)
    assert abs(sum(row["perplexity"] for row in rows) / 2 - weighted) > 1e-3 * weighted


def test_without_state_chunks_begin_from_nothing(tokenizer):
    model, text = small(), TEXT[:101]
    result = evaluate_sequence_modeling(model, tokenizer, chunk_size=20, texts=text)
    ids = np.asarray(tokenizer.encode(text))
    total = 0.0
    for start in range(0, 100, 20):
        out = model(ids[None, start : start + 20], ids[None, start + 1 : start + 21])
        total += 20 * out.loss
    dropped = total / 100
    assert result["without_state_perplexity"] == pytest.approx(math.exp(dropped), rel=1e-5)
    assert result["state_benefit_ratio"] == pytest.approx(dropped / math.log(result["with_state_perplexity"]), rel=1e-6)
    assert result["without_state_perplexity"] != pytest.approx(result["with_state_perplexity"], rel=1e-4)


def test_built_in_texts_and_a_file_of_more(tokenizer, tmp_path):
    model = small()
    plain = evaluate_sequence_modeling(model, tokenizer, chunk_size=512)
    lengths = [row["length"] for row in plain["sequence_results"]]
    assert lengths == [*map(len, SENTENCES), 50 * (len(SENTENCES[0]) + 1) - 1]
    (tmp_path / "more.json").write_text(json.dumps(["one more", "and another"]))
    args = SimpleNamespace(sequence_modeling_benchmark_file=str(tmp_path / "more.json"))
    assert len(evaluate_sequence_modeling(model, tokenizer, 512, args)["sequence_results"]) == 6


def test_errors_are_raised(tokenizer, tmp_path):
    model = small()
    for texts, words in (
        ([], "texts is empty"),
        (["a"], "has 1 tokens; two are needed"),
        (["fine", ""], "has 0 tokens"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluate_sequence_modeling(model, tokenizer, texts=texts)
    with pytest.raises(ValueError, match="chunk_size is 0"):
        evaluate_sequence_modeling(model, tokenizer, chunk_size=0)
    with pytest.raises(ValueError, match="token ids are in"):
        evaluate_sequence_modeling(small(vocab_size=50), tokenizer, texts=["xyz"])
    for content in ("{not json", '{"a": 1}', "[1, 2]"):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ValueError, match="bad.json.*list of texts"):
            evaluate_sequence_modeling(
                model, tokenizer, args=SimpleNamespace(sequence_modeling_benchmark_file=tmp_path / "bad.json")
            )
    with pytest.raises(FileNotFoundError, match="nowhere"):
        evaluate_sequence_modeling(
            model, tokenizer, args=SimpleNamespace(sequence_modeling_benchmark_file=tmp_path / "nowhere.json")
        )


@pytest.mark.parametrize("layers", RECIPES)
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1024])
def test_score_does_not_depend_on_chunks(tokenizer, tmp_path, layers, chunk_size):
    model = small(layers)
    loader = DataLoader(TextDataset(tokenizer, write_text(tmp_path, text=TEXT[:350]), block_size=100), 3)
    want = Score()
    for batch in loader:
        targets = np.full_like(batch["labels"], -100)
        targets[:, :-1] = batch["labels"][:, 1:]
        want.add(model(batch["input_ids"]).logits, targets)
    for form in (loader, ChunkedLoader(loader, 13)):
        got = score(model, form, chunk_size)
        assert got["tokens"] == want.tokens == 3 * 99 + 49
        assert (
            got["loss"] == pytest.approx(want.loss, rel=1e-5)
            and got["next_token_accuracy"] == want.correct / want.tokens
        )
    with pytest.raises(ValueError, match="nothing to predict"):
        score(model, [])


@pytest.mark.parametrize("layers", RECIPES)
@pytest.mark.parametrize("chunk_size", [1, 16, 17, 1000])
def test_long_sequence(tokenizer, layers, chunk_size):
    model, text = small(layers), TEXT[:90]
    ids = np.asarray(tokenizer.encode(text))
    want = model(ids).logits
    got = process_long_sequence(model, tokenizer, text, chunk_size=chunk_size)
    assert got.shape == (1, 90, 257) and got.dtype == np.float32
    assert np.allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())
    following, _ = model.process_with_state(ids[0], model.state)  # model.state is the one after the text
    assert np.allclose(
        following[0, 0], model(np.append(ids, ids[0])).logits[0, -1], rtol=0, atol=2e-5 * np.abs(want).max()
    )
    with pytest.raises(ValueError, match="no tokens"):
        process_long_sequence(model, tokenizer, "")
