"""Stand-ins for the tiny models that diffusers' tests load from the hub, so that the tests run offline.

They lie in a folder as the hub's cache lays them out: with ``HF_HOME`` set to it, ``from_pretrained`` finds them. Each
tokenizer knows single characters and the special tokens of its family; models have random weights.
"""

from __future__ import annotations

import string
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel

OWNER = "hf-internal-testing"
REVISION = "0" * 40
CHARACTERS = string.ascii_letters + string.digits + string.punctuation
QWEN_SPECIAL = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|vision_pad|>": 151654,
    "<|image_pad|>": 151655,
    "<|video_pad|>": 151656,
}
"""The ids that the configurations of Qwen2-VL name."""

CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def numbered(tokens: list[str]) -> dict[str, int]:
    return {token: place for place, token in enumerate(dict.fromkeys(tokens))}


def t5_tokenizer() -> Any:
    sentinels = [f"<extra_id_{i}>" for i in range(100)]
    pieces = ["<pad>", "</s>", "<unk>", "▁", *CHARACTERS, *sentinels]
    return transformers.T5Tokenizer(
        vocab=[(piece, 0.0 if i < 3 else -2.0) for i, piece in enumerate(pieces)], model_max_length=512
    )


def t5(folder: Path) -> None:
    t5_tokenizer().save_pretrained(folder)
    size = {"d_model": 32, "d_ff": 37, "d_kv": 8, "num_layers": 5, "num_heads": 4, "relative_attention_num_buckets": 8}
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=1103, **size)).save_pretrained(folder)


def umt5(folder: Path) -> None:
    t5_tokenizer().save_pretrained(folder)
    size = {"d_model": 32, "d_ff": 37, "d_kv": 8, "num_layers": 2, "num_heads": 4}
    transformers.UMT5EncoderModel(transformers.UMT5Config(vocab_size=1103, **size)).save_pretrained(folder)


def clip_tokenizer() -> Any:
    letters = sorted(ByteLevel.alphabet())
    special = ["<|startoftext|>", "<pad>", "<|endoftext|>"]
    vocabulary = numbered([*special, *letters, *(letter + "</w>" for letter in letters)])
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip(folder: Path) -> None:
    clip_tokenizer().save_pretrained(folder)


def bert(folder: Path) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = numbered([*special, *CHARACTERS.lower(), *("##" + character for character in CHARACTERS.lower())])
    transformers.BertTokenizer(vocab=vocabulary, model_max_length=77).save_pretrained(folder)
    size = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    transformers.BertModel(transformers.BertConfig(vocab_size=1124, **size)).save_pretrained(folder)


def gemma(folder: Path) -> None:
    vocabulary = numbered(["<pad>", "<eos>", "<bos>", "<unk>", "▁", "a", "e"])  # the models know 8 tokens
    tokenizer = transformers.GemmaTokenizer(vocab=vocabulary, merges=[], model_max_length=512)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)


def llama(folder: Path) -> None:
    vocabulary = numbered(["<unk>", "<s>", "</s>", "▁", *CHARACTERS])
    tokenizer = transformers.LlamaTokenizer(vocab=vocabulary, merges=[], model_max_length=512)
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(folder)
    size = {"hidden_size": 16, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=1000, **size)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def qwen2_vl(folder: Path) -> None:
    vocabulary = {**numbered(sorted(ByteLevel.alphabet())), **QWEN_SPECIAL}
    tokenizer = transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=[], extra_special_tokens=list(QWEN_SPECIAL), model_max_length=4096
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)


REPOSITORIES = {
    "tiny-random-t5": t5,
    "tiny-random-T5Model": t5,
    "tiny-random-umt5": umt5,
    "tiny-random-clip": clip,
    "tiny-random-BertModel": bert,
    "dummy-gemma": gemma,
    "tiny-random-LlamaForCausalLM": llama,
    "llama-tokenizer": llama,
    "tiny-random-Qwen2VLForConditionalGeneration": qwen2_vl,
}


def write(home: Path) -> None:
    """Write every stand-in that ``home`` lacks."""
    for name, create in REPOSITORIES.items():
        repository = home / "hub" / f"models--{OWNER}--{name}"
        if (repository / "refs" / "main").exists():
            continue
        snapshot = repository / "snapshots" / REVISION
        snapshot.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(0)
        create(snapshot)
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / "main").write_text(REVISION)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
