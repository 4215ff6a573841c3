"""A CLIP tokenizer with a small vocabulary, and a CLIP text encoder that tells prompts apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

#: Words that become one token each; all others are spelled in bytes.
WORDS = (
    "a an the of in on at with and photo painting portrait cat dog man woman house tree sky red green blue yellow "
    "black white dark bright mountain river city night day forest sea sun moon face high quality best masterpiece "
    "detailed ugly blurry low worst bad hands text watermark cinematic lighting neon realistic"
).split()
SPECIALS = ("<|startoftext|>", "<|endoftext|>")


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE: printable ones as they are, others from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = 256 - len(printable)
    return [chr(code) for code in printable] + [chr(256 + index) for index in range(others)]


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's layout: bytes, bytes that end a word, merges that build ``WORDS``, the two specials last."""
    letters = byte_alphabet()
    vocab = {token: index for index, token in enumerate(letters + [letter + "</w>" for letter in letters])}
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for right in rest:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocab.setdefault(left, len(vocab))
    for special in SPECIALS:
        vocab[special] = len(vocab)
    return vocab, merges


def tokenizer(pad: str = "<|endoftext|>") -> Any:
    """A ``CLIPTokenizer`` of 77 tokens."""
    from transformers import CLIPTokenizer

    vocab, merges = vocabulary()
    return CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad, model_max_length=77)


def text_encoder(hidden: int = 32, layers: int = 12, *, projection: bool = False) -> nn.Module:
    """A ``CLIPTextModel`` of SD1.5's depth, so that clip_skip means the same as there.

    With ``projection`` a ``CLIPTextModelWithProjection``, as the second encoder of SDXL is.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    end = len(vocabulary()[0]) - 1
    config = CLIPTextConfig(
        vocab_size=end + 1,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        projection_dim=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=77,
        hidden_act="gelu" if projection else "quick_gelu",
        bos_token_id=end - 1,
        eos_token_id=end,
        pad_token_id=end,
    )
    model: nn.Module = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    # As initialised, all prompts come out nearly equal.
    for name, parameter in model.named_parameters():
        if "token_embedding" in name:
            parameter.normal_(0, 1)
        elif parameter.ndim == 2:
            parameter.normal_(0, 1.5 / parameter.shape[1] ** 0.5)
    return model.eval()


def encode(tokenizer: Any, encoder: nn.Module, prompts: list[str]) -> torch.Tensor:
    """The hidden states that a denoiser reads: (prompt, token, channel)."""
    tokens = tokenizer(prompts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    hidden: torch.Tensor = encoder(tokens.input_ids).last_hidden_state
    return hidden
