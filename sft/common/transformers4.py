"""What transformers 4, as in older servers, reads of a saved model, written beside what transformers 5 reads.

Version 5 saves the parameters of the rotary embedding under a name that 4 ignores: 4 then computes with the base
10,000 and reports nothing. Tokenizers get the name of a class, and a list, that 4 cannot load.
"""

import copy
from pathlib import Path
from typing import Any

from sft.common.command import read_json, write_json


def write_for_transformers_4(folder: Path) -> bool:
    """Add what transformers 4 reads to a model's config.json and tokenizer_config.json; 5 reads the same as before.

    Returns False if the older names cannot express the rotary embedding of this family: then 4 computes another model.
    """
    complete = True
    if (file := folder / "config.json").is_file():
        config = read_json(file)
        # A model of text and images has the language model's configuration inside its own.
        for part in [value for value in (config, *config.values()) if isinstance(value, dict)]:
            if "dtype" in part:
                part["torch_dtype"] = part["dtype"]
            if part.get("rope_parameters"):
                older = older_rope(part)
                part |= older
                complete &= bool(older)
        write_json(file, config)
    if (file := folder / "tokenizer_config.json").is_file():
        tokenizer = read_json(file)
        if tokenizer.get("tokenizer_class") == "TokenizersBackend":
            tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"  # the same class, under the name that 4 has too
        if isinstance(tokenizer.get("extra_special_tokens"), list):
            tokenizer["additional_special_tokens"] = tokenizer.pop("extra_special_tokens")
        write_json(file, tokenizer)
    return complete


def older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rotary embedding of a configuration under the names of transformers 4, or {} if they cannot express it.

    They can if transformers 5, which still reads these names, makes the same parameters of them.
    """
    rope = config["rope_parameters"]
    full, sliding = rope.get("full_attention") or rope, rope.get("sliding_attention")
    kind = full.get("rope_type", "default")
    apart = {"rope_type", "type", "rope_theta", "partial_rotary_factor", *config.keys()}
    scaling = {key: value for key, value in full.items() if key not in apart}
    if scaling or kind != "default":  # Phi-3 of transformers 4 knows longrope by "type" alone, and takes no other key
        scaling["type" if kind == "longrope" else "rope_type"] = kind
    older = {"rope_theta": full.get("rope_theta"), "rope_scaling": scaling or None}
    if "partial_rotary_factor" in full:
        older["partial_rotary_factor"] = full["partial_rotary_factor"]
    if sliding:
        older["rope_local_base_freq"] = sliding.get("rope_theta")  # of Gemma 3
    alone = {key: value for key, value in config.items() if key != "rope_parameters"} | older
    try:
        same = rope_read(config) == rope_read(alone) == rope_read(config | older)
    except Exception:  # whatever a family's configuration raises about names that it never had
        same = False
    return older if same else {}


def rope_read(config: dict[str, Any]) -> dict[str, Any]:
    """The parameters of the rotary embedding that transformers 5 makes of a configuration."""
    from transformers import CONFIG_MAPPING

    read = CONFIG_MAPPING[config["model_type"]].from_dict(copy.deepcopy(config)).rope_parameters
    return {key: value for key, value in read.items() if key != "type"}
