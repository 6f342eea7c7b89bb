"""The chat templates of families, as TRL ships them, and what is trained with each: the table of docs/models.md.

A family is added by a row. The texts are those behind the prompt, checked by eye against the family's template.
"""

import copy
import re
from pathlib import Path
from typing import Any, NamedTuple

import transformers
import trl

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
# Special tokens, as families write them.
MARKER = re.compile(r"<[|｜][^|｜<>\s]*[|｜]>|<\|?[a-zA-Z_▁]+\|?>|\[/?[A-Z_]+\]")
OWN, TRLS, OURS = "the model's own", "TRL's training template", "recipes/templates/deepseek_r1.jinja"


class Family(NamedTuple):
    """What is trained for "B. green", without a rationale and with "Because."; None where that is refused."""

    models: str
    stops: tuple[str, ...]  # the tokenizer's end of text, then the others of the model's generation settings
    direct: str | None
    reasoned: str | None = None
    template: str = OWN


QWEN, GEMMA, GEMMA4 = ("<|im_end|>", "<|endoftext|>"), ("<eos>", "<end_of_turn>"), ("<eos>", "<turn|>")
LLAMA3 = ("<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")
PHI3 = ("<|endoftext|>", "<|assistant|>", "<|end|>")
DEEPSEEK, COHERE, IM_END = ("<｜end▁of▁sentence｜>",), ("<|END_OF_TURN_TOKEN|>",), ("<|im_end|>",)
PLAIN, LLAMA = "B. green<|im_end|>", "B. green<|eot_id|>"
R1 = ("</think>\n\nB. green<｜end▁of▁sentence｜>", "Because.\n</think>\n\nB. green<｜end▁of▁sentence｜>", OURS)
QWEN3 = ("<think>\n\n</think>\n\nB. green<|im_end|>", "<think>\nBecause.\n</think>\n\nB. green<|im_end|>")
OPENS = (None, "Because.\n</think>\n\nB. green<|im_end|>")
NEMOTRON = (None, "Because.\n</think>\nB. green<|im_end|>")
THOUGHT = "<|channel>thought\nBecause.\n<channel|>B. green<turn|>"
FINAL = "<|end|><|start|>assistant<|channel|>final<|message|>B. green<|return|>"

FAMILIES = {
    "cohere": Family("Aya Expanse", COHERE, "B. green<|END_OF_TURN_TOKEN|>"),
    "cohere2": Family("Tiny Aya", COHERE, "B. green<|END_RESPONSE|><|END_OF_TURN_TOKEN|>"),
    "deepseek_r1_distill": Family("DeepSeek-R1 distills of Llama and Qwen", DEEPSEEK, *R1),
    "deepseekv3": Family("DeepSeek-V3", DEEPSEEK, *R1),
    "diffusion_gemma": Family("DiffusionGemma", GEMMA4, "B. green<turn|>", THOUGHT),
    "gemma": Family("Gemma, Gemma 2", GEMMA, "B. green<end_of_turn>"),
    "gemma3": Family("Gemma 3", GEMMA, "B. green<end_of_turn>"),
    **{f"gemma4{v}": Family("Gemma 4", GEMMA4, "B. green<turn|>") for v in ("", "_v2", "_v3", "_v4")},
    "gemma4_v5": Family("Gemma 4", GEMMA4, "B. green<turn|>", THOUGHT),
    "glm4moe": Family(
        *("GLM-4-MoE", ("<|endoftext|>", "<|user|>", "<|observation|>")),
        *("\n<think></think>\nB. green<|user|>", "\n<think>Because.</think>\nB. green<|user|>", TRLS),
    ),
    "gptoss": Family(
        *("gpt-oss", ("<|return|>", "<|endoftext|>", "<|call|>")),
        *("<|channel|>analysis<|message|>" + FINAL, "<|channel|>analysis<|message|>Because." + FINAL),
    ),
    "lfm2": Family("LFM2", IM_END, PLAIN),
    "lfm2_v2": Family("LFM2", IM_END, PLAIN),
    "lfm2_2_5": Family(
        "LFM2.5", IM_END, "<think></think>B. green<|im_end|>", "<think>Because.</think>B. green<|im_end|>"
    ),
    "lfm2_2_5_v2": Family("LFM2.5", IM_END, PLAIN, "<think>Because.</think>B. green<|im_end|>"),
    "lfm2_2_5_vl": Family("LFM2.5-VL", IM_END, PLAIN, "<think>Because.</think>B. green<|im_end|>"),
    "llama3": Family("Llama 3", LLAMA3, LLAMA),
    "llama3_1": Family("Llama 3.1", LLAMA3, LLAMA),
    "llama3_2": Family("Llama 3.2", LLAMA3, LLAMA),
    "muse_glimmer": Family(
        *("Muse Glimmer", ("<|eot|>",), " to=user<|message|>B. green<|eot|>"),
        " to=self<|message|>Because.<|eom|><|start|>assistant to=user<|message|>B. green<|eot|>",
    ),
    "nemotron_3_5_lightning": Family("Nemotron 3.5 Lightning", IM_END, None, "Because.</think>B. green<|im_end|>"),
    "nemotron_3_nano": Family("Nemotron 3 Nano", IM_END, *NEMOTRON),
    "nemotron_3_super": Family("Nemotron 3 Super", IM_END, *NEMOTRON),
    "nemotron_3_ultra": Family("Nemotron 3 Ultra", IM_END, None, "Because.</think>B. green<|im_end|>"),
    "phi3": Family("Phi-3", PHI3, "B. green<|end|>"),
    "phi3_5": Family("Phi-3.5", PHI3, "B. green<|end|>"),
    "qwen2_5": Family("Qwen2.5", QWEN, PLAIN),
    "qwen2_5_vl": Family("Qwen2-VL, Qwen2.5-VL", QWEN, PLAIN),
    "qwen3": Family("Qwen3", QWEN, *QWEN3),
    "qwen3_5_nothink": Family("Qwen3.5, 2B and smaller", QWEN, PLAIN),
    "qwen3_5_think": Family("Qwen3.5, 4B and larger", QWEN, *OPENS),
    "qwen3_6": Family("Qwen3.6", QWEN, *OPENS),
    "qwen3_8": Family("Qwen3.8", QWEN, *OPENS),
    "qwen3_instruct_2507": Family("Qwen3-Instruct-2507", QWEN, PLAIN),
    "qwen3_vl": Family("Qwen3-VL", QWEN, PLAIN),
}
# The architectures that families' models have: the families, and what a tiny one needs beside the common sizes.
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
WINDOW = {"sliding_window": 32}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
ARCHITECTURES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "Cohere": (["cohere"], {}),
    "Cohere2": (["cohere2"], WINDOW),
    "DeepseekV3": (
        ["deepseekv3"],
        {
            **{**EXPERTS, "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1},
            **{"q_lora_rank": 32, "kv_lora_rank": 16, "num_key_value_heads": 4},
            **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "head_dim": 8},
        },
    ),
    "Gemma": (["gemma"], {}),
    "Gemma2": (["gemma"], WINDOW),
    "Gemma3Text": (["gemma3"], WINDOW),
    "Gemma4Text": (
        [f"gemma4{version}" for version in ("", "_v2", "_v3", "_v4", "_v5")],
        {**WINDOW, "hidden_size_per_layer_input": 8, "global_head_dim": 16},
    ),
    "Glm4Moe": (["glm4moe"], {**EXPERTS, "n_routed_experts": 4, "first_k_dense_replace": 1}),
    "GptOss": (["gptoss"], {**EXPERTS, "num_local_experts": 4}),
    "Lfm2": (["lfm2", "lfm2_v2", "lfm2_2_5", "lfm2_2_5_v2"], {"layer_types": ["conv", "full_attention"]}),
    "Lfm2Vl": (["lfm2_2_5_vl"], {"layer_types": ["conv", "full_attention"]}),
    "Llama": (["deepseek_r1_distill", "llama3", "llama3_1", "llama3_2"], {}),
    "MuseGlimmer": (["muse_glimmer"], WINDOW),
    "NemotronH": (
        ["nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"],
        {
            "layers_block_type": ["linear_attention", "full_attention", "moe"],
            **{"mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 1, "chunk_size": 64},
            **{**EXPERTS, "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 32},
        },
    ),
    "Phi3": (["phi3", "phi3_5"], {}),
    "Qwen2": (["qwen2_5", "deepseek_r1_distill"], {"tie_word_embeddings": True}),
    "Qwen2VL": (["qwen2_5_vl"], MROPE),
    "Qwen2_5_VL": (["qwen2_5_vl"], MROPE),
    "Qwen3": (["qwen3", "qwen3_instruct_2507"], {"tie_word_embeddings": True}),
    "Qwen3Moe": (["qwen3", "qwen3_instruct_2507"], {**EXPERTS, "num_experts": 4}),
    "Qwen3_5Text": (
        ["qwen3_5_nothink", "qwen3_5_think", "qwen3_6", "qwen3_8"],
        {"layer_types": ["linear_attention", "full_attention"]},
    ),
    "Qwen3VL": (["qwen3_vl"], {}),
}
# Of models of text and images that take a message as a list of parts, and no plain text; and how they are refused.
OF_PARTS = {
    "idefics3": "leaves out 'Which colour",
    "smolvlm": "leaves out 'Which colour",
    "llava_next": "chat template: 'str object' has no attribute 'text'",
}


def text_of(name: str) -> str:
    """The stock template of a family."""
    return (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")


def with_family(tokenizer: Any, template: str, stops: tuple[str, ...]) -> Any:
    """A copy of `tokenizer` with a family's template, the special tokens that it writes, and its ends of a turn."""
    tokenizer = copy.deepcopy(tokenizer)
    own = tokenizer.bos_token if "DeepSeek" in template or "｜" in template else "<bos>"
    markers = sorted({*MARKER.findall(template), *stops, own})
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template = own, stops[0], template
    return tokenizer


def write_tiny(folder: Path, architecture: str, tokenizer: Any, stops: tuple[str, ...], **sizes: Any) -> None:
    """Write a random model of an architecture with the tokenizer of `with_family` into `folder`.

    Its vocabulary is padded beyond the tokenizer's, as that of many models is.
    """
    import torch

    from sft.common.models import model_class

    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, **heads, **sizes}
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    make = getattr(transformers, f"{architecture}Config")
    vocabulary = dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), len(tokenizer) + 64)
    text = {**vocabulary, "max_position_embeddings": 2048, **ids, **sizes}
    vision = {"image_size": 28, "patch_size": 14, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    both = {"text_config": text, "vision_config": {**vision, "num_attention_heads": 2}, "mm_tokens_per_image": 4}
    both |= {"out_hidden_size": 128, "projector_hidden_size": 32}
    config = make(**both, image_token_id=len(tokenizer)) if "text_config" in make.sub_configs else make(**text)
    torch.manual_seed(0)
    model = model_class(config)(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(list(stops))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def trained_as(name: str) -> list[str]:
    """The architectures with which a family's template is trained, scored, stopped and loaded again."""
    return [architecture for architecture, (families, _) in ARCHITECTURES.items() if name in families]


def table() -> list[str]:
    """The rows of the table in docs/models.md."""
    rows = {}
    for name, family in FAMILIES.items():
        switch = "enable_thinking" in text_of(name)
        direct = "✓" if family.direct else "✓ switched off"
        reasoned = "✓" if family.reasoned else "✓ switched on" if name == "qwen3_5_nothink" else "–"
        source = family.template.replace(OURS, f"`{OURS}`")
        trained = ["✓" if trained_as(name) else "–"] * 4  # each in a test of tests/training/test_architectures.py
        models = ", ".join(trained_as(name)) or "refused: not written from left to right"
        cells = (family.models, source, direct, reasoned, "✓" if switch else "–", *trained, models)
        rows.setdefault(cells, []).append(f"`{name}`")
    return [f"| {cells[0]} | {', '.join(names)} | {' | '.join(cells[1:])} |" for cells, names in rows.items()]
