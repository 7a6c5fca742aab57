"""`rwkvtune bench`: every subject runs on a small model, and what it prints is what it measured."""

import json

import pytest

from rwkvtune.bench import SUBJECTS, Options, Table, measure
from rwkvtune.bench.shapes import in_products, random_model, split
from rwkvtune.cli import main

SMALL = ["--n_layer", "1", "--n_embd", "32", "--head_size_a", "32", "--vocab_size", "65", "--ctx_len", "16", "--micro_bsz", "2"]


def bench(tmp_path, *argv):
    """What a run of the command wrote as JSON."""
    path = tmp_path / "bench.json"
    assert main(["bench", *argv, *SMALL, "--seconds", "0", "--quick", "--json", str(path)]) == 0
    return json.loads(path.read_text())


@pytest.mark.parametrize("subject", ["train", "prefill", "decode", "load"])
def test_subjects_of_a_model(tmp_path, capsys, subject):
    found = bench(tmp_path, subject, "--precisions", "fp32", "int4")
    (table,) = found["tables"][subject]
    assert table["title"] in capsys.readouterr().out
    assert found["machine"]["limits"]["sgemm_gflops"] > 0
    for row in table["rows"]:
        assert set(row) & set(table["columns"])
        assert all(value > 0 for value in row.values() if isinstance(value, float)), row
    rates = {"train": "tokens_per_second", "prefill": "tokens_per_second", "decode": "tokens_per_second", "load": "whole_ms"}
    assert rates[subject] in table["rows"][0]


def test_shares_are_rates_over_limits(tmp_path):
    tables = bench(tmp_path, "train", "prefill", "decode", "--precisions", "fp32")["tables"]
    for subject, rate, limit in (("train", "gflops", "sgemm_gflops"), ("prefill", "gflops", "sgemm_gflops"), ("decode", "gbs", "read_gbs")):
        for row in tables[subject][0]["rows"]:
            assert row["share"] == pytest.approx(row[rate] / row[limit])


def test_recurrence_of_every_version_and_instruction_set():
    from rwkvtune import info

    before = info()
    rows = measure("wkv", Options(seconds=0, threads=before["threads"]))[0].rows
    assert len(rows) == 3 * len(before["isa_available"]) and all(row["backward"] > 0 for row in rows)
    assert (info()["isa"], info()["threads"]) == (before["isa"], before["threads"])


def test_tokenize_with_bytes(capsys):
    assert main(["bench", "tokenize", "--quick", "--seconds", "0", "--vocab", "bytes"]) == 0
    assert "encode into an array" in capsys.readouterr().out


def test_chart(tmp_path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "chart.png"
    bench(tmp_path, "prefill", "--precisions", "fp32", "--chart", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert main(["bench", "wkv", "--seconds", "0", "--chart", str(path)]) == 2


def test_table():
    table = Table("a title", {"name": "name", "rate": "rate", "share": "of all"}, [{"name": "x", "rate": 1234.5, "share": 0.5}, {"name": "longer"}], "share", ("a note",))
    assert table.text().splitlines() == ["a title", "  name     rate  of all", "  x       1,234     50%", "  longer      -       -", "  a note"]


def test_numbers_in_products():
    config, _ = split({"n_layer": 2, "n_embd": 64, "vocab_size": 10})
    model = random_model(config)
    layers, head = in_products(model)
    sizes = {name: value.size for name, value in model.named_parameters().items()}
    square = sum(size for name, size in sizes.items() if name.endswith(("key.weight", "value.weight", "receptance.weight", "output.weight")))
    ranks = sum(size for name, size in sizes.items() if name[-2:] in ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2"))
    assert (layers, head) == (square + ranks, sizes["head.weight"])
    assert all(value.any() for name, value in model.named_parameters().items() if name.endswith("weight") and value.squeeze().ndim == 2)


def test_subjects_are_described():
    assert list(SUBJECTS) == ["train", "prefill", "decode", "tokenize", "prepare", "wkv", "load", "scaling"]
