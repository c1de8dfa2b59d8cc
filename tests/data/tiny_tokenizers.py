"""Tokenizers of a few hundred tokens, trained in the test: GPT-2's kind (byte-level) and Llama's (SentencePiece)."""

import json
from functools import cache

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = ["Hello world, hello! 你好世界 😀 naïve café", "def f(x):\n    return x * 2\n", "the end of the world 世界"] * 3
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


@cache
def byte_level() -> str:
    """tokenizer.json of byte-level BPE."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer.to_str()


@cache
def sentencepiece(metaspace: bool = False) -> str:
    """tokenizer.json of BPE with byte fallback, its spaces as Llama 2 (a normalizer) or as newer files treat them."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    strip = decoders.Strip(" ", 1, 0)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(steps)
    alphabet = sorted(set("".join(TEXT)) - set("你好世界😀ïé\n"))  # these are left to the bytes
    text = ["".join(char for char in line if char in alphabet) for line in TEXT]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(text, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", SPECIAL.index("<s>"))]
    )
    content = json.loads(tokenizer.to_str())
    pieces = [piece for piece in content["model"]["vocab"] if piece not in SPECIAL]
    names = SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    content["model"]["vocab"] = {name: index for index, name in enumerate(names)}
    content["model"]["byte_fallback"] = True
    return json.dumps(content)


def byte_tokens(data: bytes) -> list[int]:
    """The ids of these bytes in `sentencepiece()`."""
    return [len(SPECIAL) + byte for byte in data]
