"""A tiny CLIP that knows three words."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ("red", "apple", "dog")
SPECIAL = ("<|startoftext|>", "<|endoftext|>", "<unk>")


def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens, words last, and the merges that make each word one token."""
    merges, tokens = (
        [],
        [*SPECIAL, *sorted({letter + end for word in WORDS for letter in word for end in ("", "</w>")})],
    )
    for word in WORDS:
        letters = [*word[:-1], f"{word[-1]}</w>"]
        for i in range(1, len(letters)):
            merges.append(("".join(letters[:i]), letters[i]))
            tokens.append("".join(letters[: i + 1]))
    return list(dict.fromkeys(tokens)), list(dict.fromkeys(merges))


TOKENS, MERGES = vocabulary()
RED, APPLE, DOG = (TOKENS.index(f"{word}</w>") for word in WORDS)


def save_tiny_clip(folder: Path, seed: int = 5) -> Path:
    """Write a random CLIP with its tokenizer and image processor; the folder."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    torch.manual_seed(seed)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**common, "vocab_size": len(TOKENS), "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**common, "image_size": 16, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    for parameter in model.parameters():  # of the size of their defaults every picture looks alike
        torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(TOKENS)}, merges=MERGES, unk_token="<unk>")
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(folder)
    return folder
