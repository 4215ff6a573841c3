"""A Florence-2 that speaks real words, and names places after them, in the layout of transformers' own class.

Its answers are wired, not learned: what the decoder says at each position is a word, a place or the end. So the
answer to every task can be read; which words and places they are depends on picture and question.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.demo.clip import WORDS, byte_alphabet
from pipelines.demo.weights import save_quietly, seeded

SEED = 3
#: Width and height that pictures are brought to; the tower leaves a grid of 2 x 2, and the mean comes on top.
SIDE = 64
IMAGE_TOKENS = 5
WIDTH = 48
POSITIONS = 1024

#: Beside ``WORDS``: what the tasks' questions are made of.
_QUESTIONS = (
    "What does the image describe Describe in detail what is shown Locate objects category name phrases caption "
    "region text mask polygon proposals paragraph their descriptions regions"
).split()
#: Never said, for they mean nothing by themselves.
_UNSAID = "a an the of in on at with and".split()

# What may be said at a position. Places come in two kinds, so that boxes have their corners in order.
_WORD, _LOW, _HIGH, _END = range(4)
#: One label with two boxes, or one line of text with its corners, or one outline; then another with one box.
_SPEECH = [_WORD] * 3 + [_LOW, _LOW, _HIGH, _HIGH] * 2 + [_WORD] * 2 + [_LOW, _LOW, _HIGH, _HIGH] + [_END]
#: Two channels for each kind: one for, one against, so that they sum to nothing and pass through layer norms.
_KINDS = 2 * 4
#: How much louder a position is than the token before it, and the last layer norm than the others.
_LOUD, _FINAL = 8.0, 40.0


def build(folder: Path) -> None:
    """The same bytes every time, for one version of torch and transformers."""
    from transformers import Florence2Processor

    with seeded(SEED):
        words = tokenizer()
        model = _network(words)
        processor = Florence2Processor(
            image_processor=_image_processor(), tokenizer=words, post_processor_config=POST_PROCESSOR
        )
        for part in (model, processor):
            save_quietly(part, folder)


#: As published: by these names transformers' own reader of answers knows what it may read.
POST_PROCESSOR: dict[str, Any] = {
    "ocr": {"AREA_THRESHOLD": 0.0},
    "phrase_grounding": {"banned_grounding_tokens": ["it", "I", "me", "the image", "image"]},
    "pure_text": {},
    "description_with_bboxes": {},
    "description_with_polygons": {},
    "polygons": {},
    "bboxes": {},
    "description_with_bboxes_or_polygons": {},
}


def tokenizer() -> Any:
    """BART's byte-level BPE with few words, 1000 places and a token that stands for the picture."""
    from transformers import BartTokenizer

    vocab = {token: index for index, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *byte_alphabet()])}
    merges: list[tuple[str, str]] = []
    for word in dict.fromkeys((*WORDS, *_QUESTIONS)):
        left, *rest = ["Ġ", *word]
        for right in rest:
            if (left, right) not in merges:
                merges.append((left, right))
            left += right
            vocab.setdefault(left, len(vocab))
    vocab["<mask>"] = len(vocab)
    made = BartTokenizer(
        vocab=vocab, merges=merges, model_max_length=POSITIONS, extra_special_tokens={"image_token": "<image>"}
    )
    made.add_tokens([f"<loc_{place}>" for place in range(1000)], special_tokens=False)
    made.add_tokens(["<sep>", "<poly>", "</poly>"], special_tokens=False)
    return made


def _image_processor() -> Any:
    from transformers import CLIPImageProcessor

    made = CLIPImageProcessor(do_center_crop=False, size={"height": SIDE, "width": SIDE})
    made.image_seq_length = IMAGE_TOKENS
    return made


def _network(words: Any) -> Any:
    from transformers import Florence2Config, Florence2ForConditionalGeneration, GenerationConfig

    ends = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2}
    spoken = {"decoder_start_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2}
    config = Florence2Config(
        vision_config={
            "depths": (1, 1, 1, 1),
            "embed_dim": (16, 16, 32, 32),
            "num_heads": (2, 2, 4, 4),
            "num_groups": (2, 2, 4, 4),
            "window_size": 4,
            "projection_dim": WIDTH,
            "drop_path_rate": 0.0,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": len(words),
            "d_model": WIDTH,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 2 * WIDTH,
            "decoder_ffn_dim": 2 * WIDTH,
            "max_position_embeddings": POSITIONS,
            "dropout": 0.0,
            **ends,
            **spoken,
        },
        image_token_id=words.convert_tokens_to_ids("<image>"),
        **ends,
    )
    model = Florence2ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            # As initialised, everything comes out nearly equal.
            parameter.normal_(0, parameter[0].numel() ** -0.5)
    _wire(model, words)
    model.generation_config = GenerationConfig(
        num_beams=3, no_repeat_ngram_size=3, early_stopping=True, **ends, **spoken
    )
    return model


def _wire(model: Any, words: Any) -> None:
    """Makes positions decide what kind of token is said."""
    embedding = model.get_input_embeddings().weight
    embedding.normal_()
    embedding[:, :_KINDS] = 0
    said: dict[int, list[int]] = {_WORD: [], _LOW: [], _HIGH: [], _END: [words.eos_token_id]}
    for token, number in words.get_vocab().items():
        if token.startswith("<loc_"):
            said[_LOW if int(token[5:-1]) < 500 else _HIGH].append(number)
        elif token.startswith("Ġ") and token[1:] in WORDS and token[1:] not in _UNSAID:
            said[_WORD].append(number)
    for kind, numbers in said.items():
        embedding[numbers, 2 * kind], embedding[numbers, 2 * kind + 1] = 1.0, -1.0
    decoder = model.model.language_model.decoder
    decoder.embed_positions.weight.normal_(0, 2)
    for at in range(len(decoder.embed_positions.weight)):
        # Two entries of BART's table stand before position 0, which holds the start; at 1 the beginning is forced.
        kind = _SPEECH[min(max(at - 2 - 1, 0), len(_SPEECH) - 1)]
        decoder.embed_positions.weight[at, :_KINDS] = 0
        decoder.embed_positions.weight[at, 2 * kind] = _LOUD
        decoder.embed_positions.weight[at, 2 * kind + 1] = -_LOUD
    for layer in decoder.layers:
        for last in (layer.self_attn.out_proj, layer.encoder_attn.out_proj, layer.fc2):
            last.weight[:_KINDS] = 0
            last.bias[:_KINDS] = 0
        # Picture and question are heard over what was said before.
        layer.encoder_attn.out_proj.weight.mul_(2)
    # What was just said is what is least like what comes next: else every word were said twice.
    decoder.layers[-1].final_layer_norm.weight.neg_()
    decoder.layers[-1].final_layer_norm.weight[:_KINDS] = _FINAL
