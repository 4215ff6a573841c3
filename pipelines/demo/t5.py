"""A T5 tokenizer with a small vocabulary, and a T5 encoder in which a single word is heard among 512 tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from pipelines.demo.clip import WORDS

#: SentencePiece's mark for the beginning of a word.
BEGIN = "\u2581"
SENTINELS = 100


def pieces() -> list[tuple[str, float]]:
    """T5's layout: pad, end and unknown first, pieces with their log probabilities, the sentinels last."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), (BEGIN, -2.0)]
    vocabulary += [(BEGIN + word, -3.0) for word in WORDS if len(word) > 1]
    vocabulary += [(chr(code), -6.0) for code in range(33, 127)]
    vocabulary += [(f"<extra_id_{index}>", 0.0) for index in reversed(range(SENTINELS))]
    return vocabulary


def tokenizer() -> Any:
    """A ``T5Tokenizer`` of 512 tokens."""
    from transformers import T5Tokenizer

    return T5Tokenizer(vocab=pieces(), extra_ids=SENTINELS, model_max_length=512)


def encoder(width: int = 32) -> nn.Module:
    """A ``T5EncoderModel``, two layers deep."""
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(pieces()),
        d_model=width,
        d_kv=width // 4,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    model: Any = T5EncoderModel(config)
    # Flux pads to 512 tokens and masks none of them. With nothing of their own, the pads repeat what they read from
    # the words, as loudly as words speak: the encoder's last layer is a norm.
    model.get_input_embeddings().weight[0] = 0
    module: nn.Module = model
    return module.eval()
