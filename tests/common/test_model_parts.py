"""The parts of models of text and images, and of mixtures of experts; adapters are on the language model alone."""

import pytest
import torch
import transformers
from peft import get_peft_model

from sft.common.model_parts import EXPERTS, HEAD, LANGUAGE, PROJECTOR, ROUTER, VISION, parameters_by_part
from sft.common.models import meta_model
from sft.training.config import resolve
from sft.training.model import lora_config

HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
TEXT = {"vocab_size": 200, "hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "pad_token_id": 0, **HEADS}
VISION_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION_SIZES |= {"image_size": 28, "patch_size": 14}
QWEN_VISION = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 64}
EXPERT_SIZES = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts": 4}
LLAMA = {"model_type": "llama", **TEXT}
OF_IMAGES = {
    "Llava": {"text_config": LLAMA, "vision_config": {"model_type": "clip_vision_model", **VISION_SIZES}},
    "Idefics3": {"text_config": LLAMA, "vision_config": VISION_SIZES},
    "Gemma3": {"text_config": TEXT, "vision_config": VISION_SIZES, "mm_tokens_per_image": 4},
    "PaliGemma": {
        "text_config": {"model_type": "gemma", **TEXT},
        "vision_config": {"model_type": "siglip_vision_model", **VISION_SIZES, "projection_dim": 64},
    },
    "Mistral3": {
        "text_config": {"model_type": "mistral", **TEXT},
        "vision_config": {"model_type": "pixtral", **VISION_SIZES},
    },
    "Qwen2_5_VL": {"text_config": TEXT, "vision_config": QWEN_VISION},
    "Qwen3VL": {"text_config": TEXT, "vision_config": {**QWEN_VISION, "deepstack_visual_indexes": [0]}},
}
MIXTURES = {
    "Qwen3Moe": EXPERT_SIZES,
    "Qwen2Moe": {**EXPERT_SIZES, "shared_expert_intermediate_size": 32},
    "Mixtral": {"num_local_experts": 4},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Glm4Moe": {**EXPERT_SIZES, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
}
SEVEN = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"
EXPERT_PARAMETERS = ("--lora_target_parameters", "experts.gate_up_proj", "experts.down_proj")


def adapted(name: str, values: dict, *options: str) -> dict[str, dict[str, int]]:
    """Parameters by part of a tiny model of a family, with the adapter of the recipe and these options."""
    model = meta_model(getattr(transformers, f"{name}Config")(**values))
    settings = resolve(["recipes/pmcvqa.yaml", "--use_cpu", "yes", *options])
    with torch.device("meta"):
        return parameters_by_part(get_peft_model(model, lora_config(settings, model)))


@pytest.mark.parametrize("targets", ["all-linear", SEVEN, r".*_proj", r".*\.(fc1|qkv|q_proj)"])
@pytest.mark.parametrize("family", OF_IMAGES)
def test_of_a_model_of_images_the_language_model_alone_is_adapted(family, targets):
    counts = adapted(family, OF_IMAGES[family], "--lora_target_modules", *targets.split())
    assert counts.keys() >= {LANGUAGE, VISION, PROJECTOR}
    assert [part for part, count in counts.items() if count["trained"]] == [LANGUAGE]


@pytest.mark.parametrize("family", MIXTURES)
def test_all_linear_adapts_no_router_and_experts_where_they_are_named(family):
    sizes, words = {**TEXT, **MIXTURES[family]}, ("--lora_target_modules", "all-linear")
    counts = adapted(family, sizes, *words)
    assert counts.keys() == {LANGUAGE, EXPERTS, ROUTER, HEAD}
    assert [part for part, count in counts.items() if count["trained"]] == [LANGUAGE]
    counts = adapted(family, sizes, *words, *EXPERT_PARAMETERS, "--lora_dropout", "0")
    assert {part for part, count in counts.items() if count["trained"]} == {LANGUAGE, EXPERTS}


def test_a_projector_is_trained_where_the_recipe_saves_it():
    words = ("--lora_target_modules", "all-linear", "--lora_modules_to_save", "multi_modal_projector")
    counts = adapted("Llava", OF_IMAGES["Llava"], *words)
    assert {part for part, count in counts.items() if count["trained"]} == {LANGUAGE, PROJECTOR}
