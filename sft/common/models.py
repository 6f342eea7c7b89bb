"""Load a base model, an adapter or a merged model, by folder or Hub id (``OWNER/NAME@REVISION``).

Code from a model's repository is never run, and weights are read from safetensors alone.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sft.common import model_parts
from sft.common.command import UserError, read_json, write_json
from sft.common.hub import loading_errors, pinned, repo_file, unreached
from sft.common.prompts import PROMPT_VERSION
from sft.common.template_choice import set_chat_template

# Describes a run in its output folder; in a checkpoint it is written last, and marks it as complete.
MANIFEST = "run_manifest.json"
# What travels with a model: the form of its prompts, its recipe and its results. sft/publish.py makes a card of them.
PROMPT_FILE, RECIPE = "prompt_format.json", "recipe.yaml"
RESULT_FILES = ("eval_results.json", "history.json", "loss.png")
ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
# Bits of the kinds of stored weights whose configuration does not name them.
STORED_BITS = {"mxfp4": 4, "nvfp4": 4, "awq": 4, "gptq": 4}


def save_prompt_format(folder: Path, tokenizer: Any, answer_format: str) -> None:
    """Write the form of a model's training prompts into its folder, and what its processor lacks there."""
    form = {"answer_format": answer_format, "prompt_version": PROMPT_VERSION}
    if vision := getattr(tokenizer, "vision", None):
        vision.complete(folder)
        form["figures"] = vision.fingerprint()
    write_json(folder / PROMPT_FILE, form)


def trained_on_figures(model_path: str) -> str | None:
    """What made the pixels of the figures that a model was trained on, or None; raises as `prompt_format`."""
    file = repo_file(model_path, PROMPT_FILE)
    return object_in(file).get("figures") if file else None


def commit_of(model_path: str) -> str | None:
    """The commit of a model on the Hub, as the cache holds it; None of a folder."""
    if Path(model_path).is_dir():
        return None
    config = repo_file(model_path, ADAPTER_CONFIG) or repo_file(model_path, "config.json")
    # The cache keeps a file in a folder that is named after its commit.
    return config.parent.name if config else None


def prompt_format(model_path: str) -> str | None:
    """The answer format of a model's training prompts, or None; raises `UserError` for prompts of another version."""
    file = repo_file(model_path, PROMPT_FILE)
    if file is None:
        return None
    form = object_in(file, "answer_format", "prompt_version")
    if (version := form["prompt_version"]) != PROMPT_VERSION:
        raise UserError(
            f"{model_path} was trained with prompts of version {version}, and this program writes {PROMPT_VERSION}: "
            "use the version of this project that trained it"
        )
    return form["answer_format"]


def object_in(file: Path, *keys: str) -> dict[str, Any]:
    """The object in a model's JSON file; raises `UserError` if it lacks one of these keys."""
    value = read_json(file)
    missing = [key for key in keys if key not in value] if isinstance(value, dict) else [*keys, "object"]
    if missing:
        raise UserError(f"{file} has no {missing[0]}: is the folder a model's?")
    return value


def check_model_folder(model_path: str) -> None:
    """Raise `UserError` for a folder without a model, before heavy imports; for a Hub id, see if the Hub is there."""
    folder = Path(model_path)
    if folder.is_dir():
        # A run of ours marks its checkpoints when they are complete (sft/training/checkpoints.py).
        ours = folder.name.startswith("checkpoint-") and (folder.parent / MANIFEST).is_file()
        if ours and not (folder / MANIFEST).is_file():
            raise UserError(f"{folder} is not complete: the run was stopped while writing it. Take another one")
        for config, weights in ((ADAPTER_CONFIG, ADAPTER_WEIGHTS), ("config.json", "*.safetensors")):
            if (folder / config).is_file() and any(folder.glob(weights)):
                return
        raise UserError(
            f"{folder} is no model: it needs adapter_config.json with adapter_model.safetensors, or config.json with "
            "*.safetensors weights. A finished run keeps its adapter in final_model/"
        )
    # A Hub id is a name, or an owner and a name; anything else was meant as a folder.
    output = re.fullmatch(r"final_model|merged_model|checkpoint-\d+", folder.name)
    not_an_id = pinned(model_path)[0].count("/") > 1 or model_path.startswith((".", "/", "~", "outputs/"))
    if folder.exists() or not_an_id or output:
        raise UserError(f"model folder {model_path} does not exist: check the path, or name a model on the Hub")
    unreached()


def cpu_has_bf16() -> bool:
    """Whether this machine's CPU has instructions that multiply bfloat16.

    Others train slower in bfloat16 than in float32, 2 times with AVX-512 and 30 times with AVX2 (docs/benchmarks.md).
    """
    import torch

    if torch.backends.cpu.get_cpu_capability() == "AVX2":  # of this CPU, or what ATEN_CPU_CAPABILITY limits torch to
        return False
    features = getattr(torch.cpu, "get_capabilities", dict)()  # the oldest torch that this project takes has none
    return any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is ARM's


def dtype_on(device: str, dtype: str) -> str:
    """`dtype`, but float32 where ``auto`` would load 16-bit weights on a CPU that is slow with them."""
    return "float32" if (device, dtype) == ("cpu", "auto") and not cpu_has_bf16() else dtype


def load_tokenizer(
    model_path: str, chat_template: str | None = None, values: Mapping[str, Any] | None = None, base: str | None = None
) -> Any:
    """The tokenizer of a folder or Hub id, given a template by `set_chat_template`. Raises `UserError` if absent.

    It keeps the tokens at which the model stops, or `base`, by default the model that an adapter names.
    """
    from transformers import AutoTokenizer

    name, revision = pinned(model_path)
    if not Path(model_path).exists():
        unreached()
    try:
        with loading_errors(f"the tokenizer of {model_path} cannot be loaded", also=Exception):
            # Never by mistral-common, whose tokenizers have no chat template and render in their own way.
            tokenizer = AutoTokenizer.from_pretrained(
                name, revision=revision, trust_remote_code=False, mistral_format=False
            )
    except UserError as error:
        if repo_file(model_path, "tekken.json") and not repo_file(model_path, "tokenizer.json"):
            raise UserError(
                f"{model_path} has its vocabulary in tekken.json alone, which is not read here: use a copy of the "
                "model with tokenizer.json"
            ) from error
        raise
    tokenizer.generation_stops = generation_stops(base or base_of(model_path))
    set_chat_template(tokenizer, chat_template, values)
    return tokenizer


def generation_stops(model_path: str) -> list[int]:
    """Ids of the tokens at which a model's generation settings end a turn, or without such its configuration."""
    if not Path(model_path).exists():
        unreached()
    file = repo_file(model_path, "generation_config.json") or repo_file(model_path, "config.json")
    settings = object_in(file) if file else {}
    inner = settings.get("text_config")
    ends = settings.get("eos_token_id", inner.get("eos_token_id") if isinstance(inner, dict) else None)
    return [end for end in (ends if isinstance(ends, list) else [ends]) if type(end) is int and end >= 0]


def base_of(model_path: str) -> str:
    """The base model that an adapter names in its adapter_config.json, with the revision; else the model itself."""
    file = repo_file(model_path, ADAPTER_CONFIG)
    if file is None:
        return model_path
    adapter = object_in(file, "base_model_name_or_path")
    base, revision = adapter["base_model_name_or_path"], adapter.get("revision")
    return f"{base}@{revision}" if revision and not Path(base).exists() else base


@contextlib.contextmanager
def base_for_loading(model_path: str, base: str | None = None) -> Iterator[str]:
    """Yield the model whose weights are read, an adapter's base; errors of the block become a `UserError` about it."""
    base = base or base_of(model_path)
    words = model_path if base == model_path else f"{model_path} is an adapter for {base}, which"
    with loading_errors(f"{words} cannot be loaded"):
        check_model_folder(base)
        yield base


def load_config(model_path: str) -> Any:
    """The configuration of a model, or of an adapter's base. Raises `UserError` if it cannot be read."""
    from transformers import AutoConfig

    with base_for_loading(model_path) as base:
        name, revision = pinned(base)
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)


def context_length(model_path: str) -> int | None:
    """Tokens that a model reads at most, or None if its configuration does not say. Raises as `load_config`."""
    return getattr(load_config(model_path).get_text_config(), "max_position_embeddings", None)


def check_vocabulary(model_path: str, tokenizer: Any, highest: int) -> None:
    """Raise `UserError` if the model has no embedding for the token `highest` of its prompts, or for padding."""
    size = getattr(load_config(model_path).get_text_config(), "vocab_size", None)
    highest = max(highest, tokenizer.pad_token_id or 0)
    if size is not None and highest >= size:
        token = tokenizer.convert_ids_to_tokens(highest)
        raise UserError(
            f"{model_path} has embeddings for {size} tokens, and its tokenizer writes {token!r}, which is number "
            f"{highest + 1}: save the model with resized embeddings, or take the tokenizer that belongs to it"
        )


def model_class(config: Any) -> Any:
    """The class that SFTTrainer trains: the one that the configuration names, else that of AutoModelForCausalLM.

    Of some models of text and images, AutoModelForCausalLM takes the text alone, whose modules have other names: an
    adapter of one class does nothing to the other. Raises `ValueError` for a model that does not write text.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, GenerationMixin

    mappings = (MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING)
    classes = [mapping[type(config)] for mapping in mappings if type(config) in mapping]
    if not classes:
        raise ValueError(f"a model of type {config.model_type} does not write text")
    if not issubclass(classes[0], GenerationMixin):  # as DiffusionGemma, which writes a block of text at once
        raise ValueError(f"a model of type {config.model_type} does not write text from left to right")
    return next((known for known in classes if known.__name__ in (config.architectures or ())), classes[0])


def stored_quantisation(config: Any) -> str | None:
    """How a model's weights are stored, where they are quantised: ``4-bit`` by bitsandbytes, else ``gptq 4-bit``."""
    stored = getattr(config, "quantization_config", None)
    if not stored:
        return None
    stored = stored if isinstance(stored, dict) else stored.to_dict()
    kind = str(stored.get("quant_method") or "bitsandbytes").lower()
    if "load_in_4bit" in stored or "load_in_8bit" in stored:
        return "4-bit" if stored.get("load_in_4bit") else "8-bit"
    bits = re.search(r'"(?:w_|num_)?bits?": (\d+)', json.dumps(stored, default=str))
    return f"{kind} {bits[1] if bits else STORED_BITS.get(kind, 8)}-bit"


def quantization_of(model_path: str, asked: str) -> str:
    """`asked`, but how a model's weights are stored where they are quantised already; raises as `load_config`."""
    stored = stored_quantisation(load_config(model_path)) if asked == "none" else None
    return f"as stored, {stored}" if stored else asked


def adapts_tied_embeddings(model: Any) -> bool:
    """Whether an adapter is on embeddings that are the output layer too: merged into them, it changes both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # Of a model of text and images, one of the two configurations has the key.
    configs = (model.config, model.config.get_text_config())
    tied = any(getattr(config, "tie_word_embeddings", False) for config in configs)
    return tied and isinstance(model.get_input_embeddings(), BaseTunerLayer)


def meta_model(config: Any) -> Any:
    """The model on the meta device: every shape, no memory."""
    import torch

    with torch.device("meta"):
        # The class itself: AutoModelForCausalLM.from_config would divide the model among processes under ZeRO-3.
        return model_class(config)(config)


def load_model(
    model_path: str,
    dtype: Any = "auto",
    tokenizer: Any = None,
    quantization: str = "none",
    device: Any = None,
    base: str | None = None,
) -> tuple[Any, Any]:
    """(model in evaluation mode, its tokenizer) from a folder or a Hub id; `tokenizer` is one of `load_tokenizer`.

    An adapter is put onto `base`, by default the model that its adapter_config.json names. `quantization` is "none",
    "8bit" or "4bit" (NF4), as in training; `device` is by default the first GPU or the CPU. Raises `UserError` without
    a model, the base of an adapter, or a chat template, and for an adapter of another model.
    """
    check_model_folder(model_path)
    import torch
    from transformers import AutoConfig, BitsAndBytesConfig

    tokenizer = tokenizer or load_tokenizer(model_path, base=base)
    if repo_file(model_path, ADAPTER_CONFIG) and not repo_file(model_path, ADAPTER_WEIGHTS):
        raise UserError(f"{model_path} holds no {ADAPTER_WEIGHTS}: other files of weights are not read (SECURITY.md)")
    in_4bit = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    kinds = {"8bit": {"load_in_8bit": True}, "4bit": in_4bit}
    with base_for_loading(model_path, base) as base:
        name, revision = pinned(base)
        config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=False)
        if quantization in kinds and (stored := stored_quantisation(config)):
            raise UserError(f"--quantization {quantization}: its weights are stored quantised, {stored}: leave it out")
        in_bits = kinds.get(quantization)
        if in_bits and "text_config" in config.sub_configs:
            in_bits["llm_int8_skip_modules"] = model_parts.unquantised(meta_model(config))
        model = model_class(config).from_pretrained(
            name,
            revision=revision,
            config=config,
            dtype=dtype,
            device_map={"": device or ("cuda" if torch.cuda.is_available() else "cpu")},
            use_safetensors=True,
            trust_remote_code=False,
            quantization_config=BitsAndBytesConfig(**in_bits) if in_bits else None,
        )
    return (model if base == model_path else put_adapter_on(model, model_path, base)).eval(), tokenizer


def put_adapter_on(model: Any, adapter: str, base: str) -> Any:
    """`model`, which was loaded from `base`, with an adapter. Raises `UserError` if that is of another model."""
    from peft import PeftConfig, get_peft_model

    name, revision = pinned(adapter)
    with loading_errors(f"the adapter {adapter} cannot be put onto {base}", advice="", also=KeyError):
        config = PeftConfig.from_pretrained(name, revision=revision)
        config.inference_mode = True
        model = get_peft_model(model, config)
        check_adapter(model, model.load_adapter(name, "default", revision=revision))
    return model


def check_adapter(model: Any, loaded: Any) -> None:
    """Raise `ValueError` if PEFT's `load_adapter`, which returned `loaded`, left out weights, or missed some.

    PEFT itself only warns, and a model whose adapter was left out answers as its base.
    """
    from peft import get_peft_model_state_dict

    missing, unexpected = loaded.missing_keys, loaded.unexpected_keys
    expected = len(get_peft_model_state_dict(model, save_embedding_layers=False))
    of_another = "it was trained on another model"
    if missing:
        raise ValueError(f"it lacks {len(missing)} of {expected} weights, the first {missing[0]}: {of_another}")
    if unexpected:
        share = f"{len(unexpected)} of its {expected + len(unexpected)} weights"
        raise ValueError(f"{share} have no place in the model, the first {unexpected[0]}: {of_another}")
