"""Tiny random models that see, each with its processor, and the drawn questions that they are asked."""

from pathlib import Path
from typing import Any

from tests.families import FAMILIES, text_of, with_family

ROOT = Path(__file__).parents[1]
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 2048}
TEXT |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


def ids_of(tokenizer: Any) -> dict[str, int]:
    return {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}


def written(config: Any, processor: Any, tokenizer: Any, stops: tuple[str, ...], folder: Path) -> None:
    import torch

    from sft.common.models import model_class

    torch.manual_seed(0)
    model = model_class(config)(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(stops))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def write_llava(folder: Path, tokenizer: Any) -> None:
    """A LLaVA model with a SigLIP tower: 4 image tokens a figure, whatever its size."""
    from transformers import LlavaConfig, LlavaProcessor, SiglipImageProcessorPil, SiglipVisionConfig

    template = (ROOT / "recipes/templates/smollm2_vision.jinja").read_text(encoding="utf-8")
    tokenizer, image = with_family(tokenizer, template, ("<|im_end|>",)), "<jupyter_output>"
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlavaConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer) + 64, **TEXT, **ids_of(tokenizer)},
        vision_config=SiglipVisionConfig(**vision, image_size=32, patch_size=16, vision_use_head=False),
        **{"image_token_id": tokenizer.convert_tokens_to_ids(image), "image_seq_length": 4},
        **{"vision_feature_layer": -1, "vision_feature_select_strategy": "full"},
    )
    processor = LlavaProcessor(
        SiglipImageProcessorPil(size={"height": 32, "width": 32}, do_convert_rgb=True),
        *(tokenizer,),
        **{"patch_size": 16, "image_token": image, "vision_feature_select_strategy": "full"},
        chat_template=template,
    )
    written(config, processor, tokenizer, ("<|im_end|>",), folder)


def write_qwen3_vl(folder: Path, tokenizer: Any) -> None:
    """A Qwen3-VL model: a token for 32 x 32 pixels, positions of three axes, features of several layers."""
    from transformers import Qwen2VLImageProcessorPil, Qwen3VLConfig

    from sft.common.vision import processor_class

    stops = FAMILIES["qwen3_vl"].stops
    tokenizer = with_family(tokenizer, text_of("qwen3_vl"), stops)
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(marks)}, replace_extra_special_tokens=False)
    image, video, start, end = tokenizer.convert_tokens_to_ids(marks)
    vision = {"hidden_size": 32, "intermediate_size": 64, "depth": 2, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"patch_size": 16, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    config = Qwen3VLConfig(
        text_config={"vocab_size": len(tokenizer) + 64, **TEXT, **ids_of(tokenizer)}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}},
        vision_config=vision,
        **{
            "image_token_id": image,
            "video_token_id": video,
            "vision_start_token_id": start,
            "vision_end_token_id": end,
        },
    )
    maker = Qwen2VLImageProcessorPil(
        **{"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 32 * 32, "longest_edge": 262144}}
    )
    processor = processor_class(config)(maker, tokenizer, chat_template=text_of("qwen3_vl"))
    written(config, processor, tokenizer, stops, folder)


WRITTEN = {"llava": write_llava, "qwen3_vl": write_qwen3_vl}
