"""Tokenizers whose vocabulary is the words of the prompts, and untrained text encoders."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
    T5EncoderModel,
    T5TokenizerFast,
    UMT5EncoderModel,
)

CLIPEncoder = TypeVar("CLIPEncoder", CLIPTextModel, CLIPTextModelWithProjection)
T5Encoder = TypeVar("T5Encoder", T5EncoderModel, UMT5EncoderModel)
PRINTABLE = [chr(code) for code in range(33, 127)]


@dataclass(frozen=True)
class TextConfig:
    """Sizes of the two encoders; both take prompts of `tokens` tokens, including padding."""

    tokens: int = 16
    clip_width: int = 64
    clip_heads: int = 2
    t5_width: int = 128
    t5_heads: int = 4
    t5_hidden: int = 192
    layers: int = 2


def make_clip_tokenizer(words: list[str], tokens: int) -> CLIPTokenizer:
    """Byte pairs merged until each of `words` is one token; other words become several tokens, none is unknown."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    last = [f"{letter}</w>" for letter in alphabet]
    trainer = trainers.BpeTrainer(
        special_tokens=last,  # otherwise their ids, and the order of equally frequent merges, would be random
        vocab_size=100_000,
        min_frequency=0,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator([" ".join(words)], trainer)
    merges = [tuple(pair) for pair in _state(bpe)["merges"]]
    pieces = alphabet + last
    pieces += [piece for left, right in merges if (piece := left + right) not in pieces]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokens)


def _state(tokenizer: Tokenizer) -> dict[str, Any]:
    return json.loads(tokenizer.to_str())["model"]


def make_t5_tokenizer(words: list[str], tokens: int) -> T5TokenizerFast:
    """Whole words in lower case and capitalised, because loading drops a normaliser; then characters."""
    whole = [f"▁{form}" for word in words for form in (word, word.capitalize())]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    pieces += [(piece, -5.0) for piece in dict.fromkeys(whole)]
    known = {piece for piece, _ in pieces}
    pieces += [(piece, -10.0) for piece in ["▁", *PRINTABLE] if piece not in known]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=tokens)


def make_word_tokenizer(words: list[str], tokens: int) -> PreTrainedTokenizerFast:
    """One token for each word in lower case, and one for all unknown words, after a start token."""
    vocabulary = {piece: index for index, piece in enumerate(["<pad>", "<s>", "<unk>", *words])}
    whole = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    whole.normalizer = normalizers.Lowercase()
    whole.pre_tokenizer = pre_tokenizers.Whitespace()
    whole.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=whole, model_max_length=tokens, **special)


def make_clip(tokenizer: CLIPTokenizer, config: TextConfig, kind: type[CLIPEncoder] = CLIPTextModel) -> CLIPEncoder:
    """The encoder whose pooled output modulates every block."""
    return kind(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.clip_width,
            intermediate_size=4 * config.clip_width,
            projection_dim=config.clip_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.clip_heads,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def take_over_clip(clip: CLIPTextModelWithProjection, trained: Path) -> None:
    """Load the weights of an encoder without projection into `clip`; the projection starts as the identity."""
    weights = CLIPTextModel.from_pretrained(trained).state_dict()
    clip.text_model.load_state_dict(weights)
    nn.init.eye_(clip.text_projection.weight)


def make_t5(tokenizer: T5TokenizerFast, config: TextConfig, kind: type[T5Encoder] = T5EncoderModel) -> T5Encoder:
    """The encoder whose tokens every block of the denoiser attends to."""
    return kind(
        kind.config_class(
            vocab_size=len(tokenizer),
            d_model=config.t5_width,
            d_kv=config.t5_width // config.t5_heads,
            d_ff=config.t5_hidden,
            num_layers=config.layers,
            num_heads=config.t5_heads,
            feed_forward_proj="gated-gelu",
            dropout_rate=0.0,
            use_cache=False,
        )
    )


def make_llama(tokenizer: PreTrainedTokenizerFast, config: TextConfig) -> LlamaModel:
    """The layer that HunyuanVideo uses, and the two after it, which it ignores."""
    return LlamaModel(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.t5_width,
            intermediate_size=config.t5_hidden,
            num_hidden_layers=3,
            num_attention_heads=config.t5_heads,
            num_key_value_heads=config.t5_heads,
            max_position_embeddings=4 * config.tokens,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=None,
            pad_token_id=tokenizer.pad_token_id,
            use_cache=False,
        )
    )
