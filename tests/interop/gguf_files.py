"""Tiny GGUF files of a LLaMA."""

import json

import gguf
import numpy as np
import tokenizers as hf
from gguf.quants import quantize
from tokenizers import models, normalizers, pre_tokenizers, trainers

LAYERS, WIDTH, HEADS, GROUPS, HIDDEN = 2, 64, 4, 2, 96
METADATA = {
    "llama.block_count": LAYERS,
    "llama.embedding_length": WIDTH,
    "llama.feed_forward_length": HIDDEN,
    "llama.context_length": 128,
    "llama.attention.head_count": HEADS,
    "llama.attention.head_count_kv": GROUPS,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.dimension_count": WIDTH // HEADS,
    "llama.rope.freq_base": 5e4,
}
F32 = gguf.GGMLQuantizationType.F32


def write(path, arrays, metadata=None, *, kind=F32, architecture="llama"):
    """A GGUF file; only matrices are quantised, as always."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (METADATA | (metadata or {})).items():
        if value is None:
            continue
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add.get(type(value), writer.add_array)(key, value)
    for name, array in arrays.items():
        own = kind if array.ndim > 1 and array.dtype == np.float32 else F32
        writer.add_tensor(name, quantize(array, own) if array.dtype == np.float32 else array, raw_dtype=own)
    for action in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        action()
    writer.close()
    return path


TABLE = {
    "token_embd.weight": np.zeros((8, WIDTH), np.float32)
}  # enough for a file to be opened for its tokenizer
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
TEXTS = [
    "the cat sat on the mat, the cats sat  on the mats\nthat is   what the cats had\n\n",
    "def cat(mat):\n    return [mat for that in mat]\n\tnaïve café, 日本の猫, aaa aaaa",
    "Licensed under the Apache License, Version 2.0; you may not use this file except in compliance with the License.",
    "In 1999, and in 2001 again, 1,024 sequences of these were read aloud for three hours and another: what they are.",
]


def sentencepiece(size=480):
    """The metadata of a SentencePiece BPE that is trained on `TEXTS`: specials, bytes, pieces by falling score as they
    were made, then characters, and a token of the user's.
    """
    learner = hf.Tokenizer(models.BPE())
    learner.normalizer = normalizers.Replace(" ", "▁")
    learner.pre_tokenizer = pre_tokenizers.Split(hf.Regex("▁*[^▁]*"), behavior="isolated")
    trainer = trainers.BpeTrainer(vocab_size=size - 260, min_frequency=1, show_progress=False)
    learner.train_from_iterator([f" {line}" for text in TEXTS for line in text.split("\n")] * 2, trainer)
    learned = sorted(learner.get_vocab(), key=learner.get_vocab().get)
    pieces = sorted(
        learned, key=lambda piece: len(piece) == 1
    )  # stable: in the order in which they were made
    named = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    named += [(f"<0x{byte:02X}>", 0.0, BYTE) for byte in range(256)]
    named += [(piece, -float(rank), NORMAL) for rank, piece in enumerate(pieces)]
    tokens, scores, kinds = zip(*named, ("<|user|>", 0.0, USER_DEFINED), strict=True)
    values = {"model": "llama", "tokens": list(tokens), "scores": list(scores), "token_type": list(kinds)}
    values |= {"bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0}
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}


def byte_level(cut, size=400):
    """The metadata of a byte-level BPE that is trained on `TEXTS` without a cut, so that every cut shows."""
    learner = hf.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=size - 3, initial_alphabet=letters, show_progress=False)
    learner.train_from_iterator(TEXTS * 2, trainer)
    learned = sorted(learner.get_vocab(), key=learner.get_vocab().get)
    merges = json.loads(learner.to_str())["model"]["merges"]
    values = {
        "model": "gpt2",
        "pre": cut,
        "tokens": ["<s>", "</s>", *learned, "<|user|>"],
        "token_type": [CONTROL, CONTROL, *[NORMAL] * len(learned), USER_DEFINED],
        "merges": [" ".join(pair) for pair in merges],
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in values.items()}
