"""Windows of text files, loaders, chunks."""

from types import SimpleNamespace

import numpy as np
import pytest
from hybrid_helpers import TEXT, byte_tokenizer, write_text

from rwkvtune.hybrid import (
    ChunkedLoader,
    DataLoader,
    TextDataset,
    apply_chunking,
    setup_train_dataloader,
    setup_val_dataloader,
)
from rwkvtune.hybrid.chunking import next_tokens, targets_of


@pytest.fixture
def tokenizer(tmp_path):
    return byte_tokenizer(tmp_path)


def test_windows_hold_every_token_once(tokenizer, tmp_path):
    dataset = TextDataset(tokenizer, write_text(tmp_path), block_size=100)
    ids = np.asarray(tokenizer.encode(TEXT))
    assert len(dataset) == -(-len(ids) // 100) and len(ids) % 100
    items = [dataset[i] for i in range(len(dataset))]
    assert all(item["input_ids"].shape == item["labels"].shape == (100,) for item in items)
    labels = np.concatenate([item["labels"] for item in items])
    assert np.array_equal(labels[labels != -100], ids) and np.array_equal(dataset.tokens, ids)
    tail = items[-1]
    assert (tail["labels"][len(ids) % 100 :] == -100).all() and (tail["input_ids"][len(ids) % 100 :] == 0).all()
    assert np.array_equal(np.where(tail["labels"] == -100, 0, tail["labels"]), tail["input_ids"])
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_overlapping_windows(tokenizer, tmp_path):
    dataset = TextDataset(tokenizer, write_text(tmp_path), block_size=100, stride=50)
    ids = np.asarray(tokenizer.encode(TEXT))
    assert np.array_equal(dataset[3]["input_ids"], ids[150:250])
    covered = (len(dataset) - 1) * 50 + 100
    assert covered >= len(ids) > covered - 50


@pytest.mark.parametrize("length, windows", [(2, 1), (99, 1), (100, 1), (101, 1), (102, 2), (201, 2), (202, 3)])
def test_number_of_windows(tokenizer, tmp_path, length, windows):
    dataset = TextDataset(tokenizer, write_text(tmp_path, text="a" * length), block_size=100)
    assert len(dataset) == windows and (targets_of(dataset[windows - 1])[1] != -100).any()


def test_several_files_are_parted_by_the_end_of_document(tokenizer, tmp_path):
    paths = [write_text(tmp_path, "one.txt", "ab"), write_text(tmp_path, "two.txt", "c")]
    assert TextDataset(tokenizer, paths, block_size=8).tokens.tolist() == [98, 99, 0, 100]


def test_wrong_files_and_sizes(tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        TextDataset(tokenizer, tmp_path / "nowhere.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="latin.txt: not UTF-8"):
        TextDataset(tokenizer, tmp_path / "latin.txt")
    with pytest.raises(ValueError, match="empty.txt: 0 tokens"):
        TextDataset(tokenizer, write_text(tmp_path, "empty.txt", ""))
    path = write_text(tmp_path)
    for options, words in (({"block_size": 0}, "block_size is 0"), ({"block_size": 1}, "block_size is 1"), ({"stride": 2000}, "stride 2000"),
                           ({"chunk_size": 0}, "chunk_size is 0")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            TextDataset(tokenizer, path, **options)


def test_loader_shuffles_from_its_seed_and_loses_nothing(tokenizer, tmp_path):
    dataset = TextDataset(tokenizer, write_text(tmp_path), block_size=100)

    def rows(loader, epoch=0):
        loader.set_epoch(epoch)
        return [tuple(row) for batch in loader for row in batch["input_ids"].tolist()]

    in_order = rows(DataLoader(dataset, 4))
    first = rows(DataLoader(dataset, 4, shuffle=True, seed=1))
    assert len(in_order) == len(dataset) and len(DataLoader(dataset, 4)) == -(-len(dataset) // 4)
    assert first != in_order and sorted(first) == sorted(in_order)
    assert first == rows(DataLoader(dataset, 4, shuffle=True, seed=1))
    assert first != rows(DataLoader(dataset, 4, shuffle=True, seed=2)) and first != rows(
        DataLoader(dataset, 4, shuffle=True, seed=1), epoch=1
    )


def test_loader_by_step_is_the_endless_sequence(tokenizer, tmp_path):
    loader = DataLoader(TextDataset(tokenizer, write_text(tmp_path), block_size=100), 4, shuffle=True, seed=1)
    steps = [loader(step)[0] for step in range(2 * len(loader))]
    for epoch in range(2):
        loader.set_epoch(epoch)
        for step, batch in zip(steps[epoch * len(loader) :], loader):
            assert np.array_equal(step, batch["input_ids"])
    ids, targets = loader(0)
    assert np.array_equal(targets[:, :-1], ids[:, 1:]) and (targets[:, -1] == -100).all()


def test_identity_tells_data_apart(tokenizer, tmp_path):
    def identity(text=TEXT, **options):
        return DataLoader(
            TextDataset(tokenizer, write_text(tmp_path, "t.txt", text), block_size=100), **{"batch_size": 4, **options}
        ).identity()

    assert identity() == identity()
    assert (
        identity() != identity("other " + TEXT)
        and identity() != identity(seed=3)
        and identity() != identity(batch_size=2)
    )


def test_labels_shift_by_one_unless_they_are_shifted():
    assert next_tokens([[1, 2, 3]]).tolist() == [[2, 3, -100]]
    ids, targets = targets_of({"input_ids": [[1, 2, 3]], "labels": [[1, -100, 3]]})
    assert ids.tolist() == [[1, 2, 3]] and targets.tolist() == [[-100, 3, -100]]
    assert targets_of({"input_ids": [1, 2]})[1].tolist() == [[2, -100]]
    assert targets_of({"input_ids": [[1, 2]], "labels": [[2, 7]], "labels_shifted": True})[1].tolist() == [[2, 7]]
    assert targets_of(([1, 2], [2, 3]))[1].tolist() == [[2, 3]]
    with pytest.raises(ValueError, match='"labels" have shape'):
        targets_of({"input_ids": [[1, 2]], "labels": [[1]]})
    with pytest.raises(ValueError, match="a batch is"):
        targets_of({"ids": [1]})


@pytest.mark.parametrize("chunk_size", [1, 3, 10, 99, 100, 1000])
def test_chunks_are_consecutive_and_lose_no_target(tokenizer, tmp_path, chunk_size):
    loader = DataLoader(TextDataset(tokenizer, write_text(tmp_path), block_size=100), 4)
    batches, chunks = list(loader), list(ChunkedLoader(loader, chunk_size))
    assert sum(chunk["reset_state"] for chunk in chunks) == sum(chunk["last_chunk"] for chunk in chunks) == len(batches)
    assert all(chunk["input_ids"].shape[1] <= chunk_size for chunk in chunks)
    groups, per_batch = [], -(-100 // chunk_size)
    for start in range(0, len(chunks), per_batch):
        groups.append(chunks[start : start + per_batch])
        assert [chunk["reset_state"] for chunk in groups[-1]] == [True] + [False] * (per_batch - 1)
        assert [chunk["start"] for chunk in groups[-1]] == list(range(0, 100, chunk_size))
    for batch, group in zip(batches, groups, strict=True):
        for name, want in zip(("input_ids", "labels"), targets_of(batch)):
            assert np.array_equal(np.concatenate([chunk[name] for chunk in group], axis=1), want)


def test_chunked_loader_is_still_its_loader(tokenizer, tmp_path):
    loader = DataLoader(TextDataset(tokenizer, write_text(tmp_path), block_size=100), 4)
    chunked = apply_chunking(apply_chunking(loader, 50), 20)
    assert chunked.loader is loader and chunked.chunk_size == 20 and chunked.dataset is loader.dataset
    with pytest.raises(ValueError, match="chunk_size is 0"):
        apply_chunking(loader, 0)


def test_loaders_of_a_script(tokenizer, tmp_path):
    args = SimpleNamespace(train_file=write_text(tmp_path), val_file=write_text(tmp_path, "val.txt", TEXT[:700]), max_seq_length=64,
                           batch_size=3, rwkv_chunk_size=16, seed=5)  # fmt: skip
    train, val = setup_train_dataloader(args, tokenizer), setup_val_dataloader(args, tokenizer)
    assert (
        train.shuffle
        and not val.shuffle
        and train.seed == 5
        and train.batch_size == 3
        and train.dataset.block_size == 64
    )
    assert len(val.dataset) == 11
    chunked = setup_train_dataloader(args, tokenizer, None, batch_size=2, use_rwkv_chunking=True)
    assert isinstance(chunked, ChunkedLoader) and (chunked.chunk_size, chunked.batch_size) == (16, 2)
    assert setup_train_dataloader(args, tokenizer, use_rwkv_chunking=True, chunk_size=8).chunk_size == 8
    with pytest.raises(ValueError, match="val_file is not given"):
        setup_val_dataloader(SimpleNamespace(), tokenizer)
    with pytest.raises(ValueError, match="batch_size is -1"):
        DataLoader(train.dataset, -1)
    with pytest.raises(ValueError, match="dataset is empty"):
        DataLoader([], 1)
