"""Questions with several endings, HellaSwag's for example: how often the model finds the right one the most likely."""

import json

import numpy as np

IGNORED = -100


def _ids(value, vocab_size):
    """Token ids: a list of them as it is; text as bytes, the vocabulary that --text makes."""
    if isinstance(value, list):
        return value
    if vocab_size != 257:
        raise ValueError(f"text is read as bytes, of which there are 256, and the vocabulary has {vocab_size}; give lists of token ids")
    return [byte + 1 for byte in value.encode()]


def read_questions(path, vocab_size):
    """list of (context ids, list of ids of each ending, number of the right ending).

    path: JSON lines with the fields of HellaSwag: ctx, endings, label; ctx and endings are text or lists of token ids.
    Raises ValueError with file and line, OSError.
    """
    questions = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                context, endings = _ids(row["ctx"], vocab_size), row["endings"]
                joint = "" if isinstance(row["ctx"], list) else " "
                endings = [_ids(ending if isinstance(ending, list) else joint + ending, vocab_size) for ending in endings]
                if not context or not all(endings) or not 0 <= int(row["label"]) < len(endings):
                    raise ValueError("ctx and endings must not be empty, and label must be the number of an ending")
                questions.append((context, endings, int(row["label"])))
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: no question with ctx, endings and label ({error!r})") from None
    if not questions:
        raise ValueError(f"{path} holds no question")
    return questions


def accuracy(model, questions):
    """Share of the questions whose right ending has the smallest mean loss of its tokens, given the context."""
    right = 0
    for context, endings, label in questions:
        losses = []
        for ending in endings:
            ids = np.array(context + ending)
            targets = ids[1:].copy()
            targets[: len(context) - 1] = IGNORED
            losses.append(model.loss(ids[:-1], targets))
        right += int(np.argmin(losses)) == label
    return right / len(questions)
