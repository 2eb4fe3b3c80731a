"""A language model of a few thousand numbers in place of SmolVLM2, saved as the hub would have it, for SmolVLA without a network."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

_IMAGE = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}


def save_tiny_vlm(path: Path) -> Path:
    """Save the configuration and the processor that SmolVLA reads beside its own weights, and return the path."""
    words = ["<unk>", "<pad>", *_IMAGE.values(), "fold", "the", "towel", "stack"]
    model = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=model, unk_token="<unk>", pad_token="<pad>", extra_special_tokens=_IMAGE
    )
    sizes = {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 32}}
    SmolVLMProcessor(
        SmolVLMImageProcessor(**sizes), tokenizer, SmolVLMVideoProcessor(**sizes), image_seq_len=4
    ).save_pretrained(path)
    SmolVLMConfig(
        text_config={
            "model_type": "llama",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "vocab_size": len(words),
            "pad_token_id": 1,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_id=2,
        scale_factor=2,
        pad_token_id=1,
    ).save_pretrained(path)
    return path
