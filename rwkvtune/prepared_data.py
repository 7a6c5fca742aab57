"""What the data of a work directory are cut from and checked for."""

import os
import re
import shutil

from .errors import FormatError

SCRATCH = ".preparing-"  # how the names of directories begin that are needed while data are prepared
_LEFT_OVER = re.compile(r"\..+\.[0-9a-f]{12}\.(tmp|old)|.+\.(bin|idx)\.\d+\.\d+\.tmp")


def text_documents(text, most=0):
    """Split a text into documents at its blank lines.

    text: str.  most: 0 = one document per paragraph; otherwise whole paragraphs together while they stay within so
    many characters.  Returns list of str; joined with blank lines they are the text again, outer blank lines aside.
    """
    paragraphs = [paragraph for paragraph in re.split(r"\n(?:[ \t]*\n)+", text.strip("\n")) if paragraph.strip()]
    documents = []
    for paragraph in paragraphs:
        if documents and most and len(documents[-1]) + 2 + len(paragraph) <= most:
            documents[-1] += "\n\n" + paragraph
        else:
            documents.append(paragraph)
    return documents


def check_name(name, holding_out):
    """Raises ValueError where data cannot have this name.  holding_out: some of them become the validation data."""
    if not isinstance(name, str) or not name or name != os.path.basename(name) or name.startswith("."):
        raise ValueError(f"data_name is {name!r}; it must be a plain file name without ending, such as 'train'")
    if name == "val" and holding_out:
        raise ValueError("data_name 'val' is the name of the held-out data; choose another, or val_fraction=0")


def remove_left_overs(directory):
    """Delete what a preparation left in a directory when its process was killed."""
    for path in directory.iterdir():
        if path.name.startswith(SCRATCH):
            shutil.rmtree(path, ignore_errors=True)
        elif _LEFT_OVER.fullmatch(path.name):
            path.unlink(missing_ok=True)


def copy_file(source, file):
    """Append the file `source` to an open one."""
    with open(source, "rb") as part:
        shutil.copyfileobj(part, file, 1 << 20)


def split_lines(sources, train, val, share):
    """Copy the last `share` of the documents in JSON lines to `val` and the others to `train`.

    sources: names of files that follow one another.  train, val: files open for bytes.  share: of the lines that are
    not blank, at least one.  Raises ValueError where none would be left for training.
    """
    documents = sum(1 for line in _lines(sources) if line.strip())
    held = max(1, round(documents * share))
    if held >= documents:
        raise ValueError(f"val_fraction {share:g} of {documents} documents leaves none for training")
    left = documents - held
    for line in _lines(sources):
        (train if left else val).write(line if line.endswith(b"\n") else line + b"\n")
        left -= bool(left and line.strip())


def _lines(sources):
    for source in sources:
        with open(source, "rb") as file:
            yield from file


def check_values(data, tokenizer):
    """Raises ValueError, with the place, where an array holds an integer that a tokenizer of integers has no id for."""
    import numpy as np

    from .data.tokenizers import AngleTokenizer, IntegerTokenizer

    if type(tokenizer) not in (AngleTokenizer, IntegerTokenizer) or data.dtype.kind not in "iu":
        return
    highest = tokenizer.max_value
    if 0 <= int(data.min()) and int(data.max()) <= highest:
        return
    place = np.argwhere((data < 0) | (data > highest))[0].tolist()
    fix = "shift the numbers so that none is negative" if data.min() < 0 else f"use IntegerTokenizer(max_value={data.max()})"
    raise ValueError(
        f"data[{', '.join(map(str, place))}] is {data[tuple(place)]}; {type(tokenizer).__name__} has ids for 0 to {highest}; {fix}"
    )


def check_ids(dataset, vocab_size, name):
    """Raises FormatError where bin/idx data hold an id the model has no row for.  Reads all of them."""
    step = 1 << 24
    for at in range(0, dataset.total_tokens, step):
        part = dataset.stream(at, min(step, dataset.total_tokens - at))
        bad = int(part.max()) if part.max() >= vocab_size else int(part.min())
        if not 0 <= bad < vocab_size:
            raise FormatError(
                f"{name}.bin holds token id {bad}, but the model's vocab_size is {vocab_size}; give the tokenizer the data were"
                " made with, or a ModelConfig with a larger vocab_size"
            )
