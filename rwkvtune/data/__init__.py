"""Tokenizers, converters, and token data on disk."""

from .binidx import BinIdxBuilder, BinIdxDataset, MagicPrimeSampler, compute_magic_prime, is_prime
from .converters import DataPipeline, JsonlToBinIdxConverter, NumpyToJsonlConverter, get_data_info
from .tokenizers import (
    AngleTokenizer,
    BaseTokenizer,
    GenericTokenizer,
    IntegerTokenizer,
    create_byte_vocab_file,
    create_default_vocab_file,
    create_vocab_file_from_tokens,
)

__all__ = [
    "AngleTokenizer",
    "BaseTokenizer",
    "BinIdxBuilder",
    "BinIdxDataset",
    "DataPipeline",
    "GenericTokenizer",
    "IntegerTokenizer",
    "JsonlToBinIdxConverter",
    "MagicPrimeSampler",
    "NumpyToJsonlConverter",
    "compute_magic_prime",
    "create_byte_vocab_file",
    "create_default_vocab_file",
    "create_vocab_file_from_tokens",
    "get_data_info",
    "is_prime",
]
