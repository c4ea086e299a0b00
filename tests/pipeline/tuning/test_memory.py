"""What a fine-tuning of known encoders takes."""

import json

import pytest
import torch
from transformers import CLIPVisionConfig, CLIPVisionModel

from features.encoders import EncoderConfig
from features.errors import UsageError
from features.texts import TextPolicy
from pipeline.config import FinetuneConfig
from pipeline.tuning.memory import BYTES_KEPT, BYTES_KEPT_OF_CHECKPOINT, estimate, refuse_on_cpu, tower_size
from pipeline.tuning.towers import checkpoint_activations

VIT_L_14 = {
    "model_type": "clip",
    "vision_config": {"hidden_size": 1024, "num_hidden_layers": 24, "intermediate_size": 4096, "patch_size": 14},
    "text_config": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072, "vocab_size": 49408},
}


ROWS, WIDTH, TOKENS = 2, 128, 17


def saved_bytes(blocks, precision, *, checkpointing):
    """Of a tower of so many blocks, in one forward pass."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=blocks,
        num_attention_heads=2,
        image_size=8,
        patch_size=2,
        hidden_act="silu",
    )
    tower = CLIPVisionModel(config).train()
    if checkpointing:
        checkpoint_activations(tower)
    saved = []  # held until they are counted, or memory is given away again and counted twice

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"),
    ):
        tower(torch.zeros(ROWS, 3, 8, 8))
    weights = {parameter.shape for parameter in tower.parameters()}
    weights |= {shape[::-1] for shape in weights}
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in saved if tensor.shape not in weights}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


@pytest.fixture
def encoder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(VIT_L_14))
    return EncoderConfig(
        tag="ViT-L-14",
        source="openai/clip-vit-large-patch14",
        revision=None,
        family="clip",
        folder=tmp_path,
        weights_sha256="",
        config_sha256="",
        tokenizer_sha256=None,
        preprocess=None,
        text=TextPolicy(max_tokens=77),
        dim={"image": 768, "text": 768},
        image_size=224,
        pickled_weights=False,
    )


def of(encoder, **options):
    return estimate(FinetuneConfig(**options), encoder, ["image", "text"], 10_000)


def test_a_picture_of_vit_l_14_is_257_tokens(encoder):
    assert tower_size(encoder, "image").tokens == 257


def test_vit_l_14_has_428_million_parameters(encoder):
    assert of(encoder).parameters == pytest.approx(428e6, rel=0.01)


def test_a_pair_keeps_281_mb_of_activations_and_with_checkpointing_a_seventh(encoder):
    """By hand, a picture and a text: 24 blocks of 257 x 1024 numbers and 12 of 77 x 768, 40 bytes each or 4."""
    image, text = 257 * 1024, 77 * 768
    assert of(encoder, batch_size=1).activation_bytes == 40 * (24 * image + 12 * text)
    checkpointed = of(encoder, batch_size=1, gradient_checkpointing=True).activation_bytes
    assert checkpointed == 4 * (24 * image + 12 * text) + 40 * (image + text)


@pytest.mark.parametrize(("precision", "checkpointing"), [("bf16", False), ("bf16", True), ("fp32", False)])
def test_a_block_keeps_what_is_estimated(precision, checkpointing):
    """Counted from what autograd saves of towers that differ by one block; the weights' casts are counted apart."""
    few, more = (saved_bytes(blocks, precision, checkpointing=checkpointing) for blocks in (1, 2))
    expected = BYTES_KEPT_OF_CHECKPOINT if checkpointing else BYTES_KEPT[precision]
    assert (more - few) / (ROWS * TOKENS * WIDTH) == pytest.approx(expected, rel=0.03)


def test_vit_l_14_fits_24_gb_at_batch_16(encoder):
    whole = of(encoder, batch_size=16)
    assert whole.state_bytes + whole.activation_bytes < 24e9


def test_fewer_blocks_take_less(encoder):
    whole, part, none = of(encoder), of(encoder, unfreeze="last:4"), of(encoder, freeze_clip=True)
    assert whole.trained > part.trained > none.trained == 0
    assert whole.flops > part.flops > none.flops > 0
    assert part.activation_bytes < whole.activation_bytes


def test_a_large_encoder_is_refused_on_a_cpu_unless_forced(encoder):
    with pytest.raises(UsageError, match=r"too large .*425\.8 M parameters.* hours\): use a GPU"):
        refuse_on_cpu(FinetuneConfig(), of(encoder), 3)
    refuse_on_cpu(FinetuneConfig(force=True), of(encoder), 3)


def test_float32_keeps_more_activations_and_no_second_copy_of_the_weights(encoder):
    half, whole = (estimate(FinetuneConfig(), encoder, ["image", "text"], 1, each) for each in ("bf16", "fp32"))
    assert whole.activation_bytes == 64 / 40 * half.activation_bytes
    assert half.state_bytes - whole.state_bytes == 2 * half.parameters


def test_additions_of_rank_8_train_a_hundredth_of_the_parameters(encoder):
    """By hand: 8 (8 width + 2 (width + 4 width)) per block, 24 of 1024 and 12 of 768."""
    added = of(encoder, lora=8)
    assert added.trained == 8 * 18 * (24 * 1024 + 12 * 768)
    assert added.trained / added.parameters == pytest.approx(0.0114, abs=1e-3)
    assert added.state_bytes < of(encoder).state_bytes / 3
    assert added.activation_bytes == of(encoder).activation_bytes
    assert of(encoder, lora=8, unfreeze="last:4").trained < added.trained
