"""Checkpoints of every family, of random weights and a few kilobytes, in the layout their authors publish."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    RobertaConfig,
    RobertaModel,
    SiglipConfig,
    SiglipModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

WORDS = ["the", "best", "of", "a", "cake", "cat", "dog", "and", "video", "The", "Cake", "!", "?"]
SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 64}
NO_ENDS = {"bos_token_id": None, "eos_token_id": None, "cls_token_id": None, "sep_token_id": None}
WIDE_START = {"initializer_range": 0.3}  # else random vectors of different inputs are nearly one vector
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}

PROCESSORS = {
    "siglip": {
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 32, "width": 32},
        "resample": 3,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "processor_class": "SiglipProcessor",
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 28, "width": 28},
        "do_center_crop": True,
        "resample": 3,
        **IMAGENET,
    },
    "dinov3_vit": {
        "image_processor_type": "DINOv3ViTImageProcessorFast",
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "do_center_crop": None,
        "do_convert_rgb": None,
        "crop_size": None,
        "default_to_square": True,
        **IMAGENET,
    },
}
SENTENCES = {
    "bert": (BertConfig, BertModel, {"max_position_embeddings": 40}),
    "mpnet": (MPNetConfig, MPNetModel, {"max_position_embeddings": 42, "pad_token_id": 1}),
    "roberta": (RobertaConfig, RobertaModel, {"max_position_embeddings": 42, "pad_token_id": 1}),
    "xlm-roberta": (XLMRobertaConfig, XLMRobertaModel, {"max_position_embeddings": 42, "pad_token_id": 1}),
    "modernbert": (ModernBertConfig, ModernBertModel, {"max_position_embeddings": 40, "local_attention": 8}),
}
DINOS = {
    "dinov2": (Dinov2Config, Dinov2Model, {"patch_size": 14, "image_size": 56}),
    "dinov2_with_registers": (
        Dinov2WithRegistersConfig,
        Dinov2WithRegistersModel,
        {"patch_size": 14, "image_size": 56},
    ),
    "dinov3_vit": (DINOv3ViTConfig, DINOv3ViTModel, {"patch_size": 16, "num_register_tokens": 2}),
}


def write(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def word_tokenizer(special: dict[str, int], template: str) -> Tokenizer:
    vocabulary = special | {word: len(special) + index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    used = [(token, index) for token, index in special.items() if token in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=used)
    return tokenizer


def build_siglip(folder: Path, _family: str) -> Path:
    """SigLIP with towers of two widths, as SigLIP 2 giant has them."""
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config=LAYERS | NO_ENDS | {"vocab_size": 20, "max_position_embeddings": 16, "projection_size": 48},
        vision_config=LAYERS | {"hidden_size": 48, "image_size": 32, "patch_size": 16},
    )
    SiglipModel(config).save_pretrained(folder)
    word_tokenizer(SPECIAL, "$A </s>").save(str(folder / "tokenizer.json"))
    options = {"tokenizer_class": "SiglipTokenizer", "pad_token": "<pad>", "model_max_length": 16}
    write(folder / "tokenizer_config.json", options)
    write(folder / "preprocessor_config.json", PROCESSORS["siglip"])
    return folder


def build_dino(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    config_class, model_class, options = DINOS[family]
    model_class(config_class(**LAYERS | options | WIDE_START)).save_pretrained(folder)
    write(folder / "preprocessor_config.json", PROCESSORS["dinov3_vit" if family == "dinov3_vit" else "dinov2"])
    return folder


def build_sentence(folder: Path, family: str) -> Path:
    torch.manual_seed(0)
    config_class, model_class, options = SENTENCES[family]
    config = config_class(**LAYERS | {"pad_token_id": 0, "vocab_size": 20} | NO_ENDS | WIDE_START | options)
    model_class(config).save_pretrained(folder)
    special = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3} if options.get("pad_token_id") == 1 else SPECIAL
    word_tokenizer(special, "<s> $A </s>").save(str(folder / "tokenizer.json"))
    kinds = ["Transformer", "Pooling", "Normalize"]
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in zip(paths, kinds, strict=True)
    ]
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True, "word_embedding_dimension": 32})
    write(folder / "sentence_bert_config.json", {"max_seq_length": 24, "do_lower_case": False})
    return folder
