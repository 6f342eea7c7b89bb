"""What a first attempt looks like: transformers' Trainer, rows padded together, loss on the whole sequence.

One of the programs that tests/benchmarks/train.py compares; it takes the words of `trl sft`.
"""

from datasets import load_dataset
from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
)
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from sft.common.command import UserError, run


def main() -> None:
    script, args, model_args = HfArgumentParser(
        (ScriptArguments, TrainingArguments, ModelConfig)
    ).parse_args_into_dataclasses()
    if not model_args.model_name_or_path or not script.dataset_name:
        raise UserError("--model_name_or_path and --dataset_name are needed; tests/benchmarks/train.py gives them")
    tokenizer = AutoTokenizer.from_pretrained(model_args.model_name_or_path)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    quantization = get_quantization_config(model_args)
    model = AutoModelForCausalLM.from_pretrained(
        model_args.model_name_or_path, dtype=model_args.dtype, quantization_config=quantization
    )
    if quantization is not None:
        model = prepare_model_for_kbit_training(model)
    model.enable_input_require_grads()
    model = get_peft_model(model, get_peft_config(model_args))

    def tokens(row: dict) -> dict:
        text = tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return {"input_ids": ids, "labels": ids}

    rows = load_dataset(script.dataset_name, split="train")
    Trainer(
        model=model,
        args=args,
        train_dataset=rows.map(tokens, remove_columns=rows.column_names),
        # Not DataCollatorForLanguageModeling: it masks the padding token, which is often the one that ends a turn, and
        # the model would never learn to stop.
        data_collator=DataCollatorForSeq2Seq(tokenizer),
    ).train()


if __name__ == "__main__":
    run(main)
