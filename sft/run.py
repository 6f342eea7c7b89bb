"""Fine-tune a language model on a prepared data set with TRL's SFTTrainer.

    accelerate launch sft/run.py recipes/pmcvqa.yaml [--key value ...]

The recipe comes first. Its keys are fields of TRL's ScriptArguments, SFTConfig and ModelConfig (`trl sft --help`
explains them all); any of them can be given on the command line, which wins.

In:  dataset_name, a folder written by data_prep/prepare.py (splits train and dev), and model_name_or_path.
Out: output_dir with checkpoint-*/, final_model/ (adapter, tokenizer, chat template) and eval_results.json.

Exit status: 0 done, 2 a setting or an input was refused (one line says which, where and what to do).
"""

import sys
from pathlib import Path

from data_prep.command import run, write_json
from sft.config import check, parse


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        return

    #################
    # Configuration #
    #################
    script_args, training_args, model_args, data_args = parse(sys.argv[1:])
    check(script_args, training_args, model_args)

    # Imported here, so that --help and a misspelt recipe answer at once.
    from trl import SFTTrainer, get_peft_config, get_quantization_config

    from sft.chat import check_rows, trained_columns
    from sft.checkpoints import resume_point, save_final_model
    from sft.cpu import score_labelled_positions_only
    from sft.data import load_mixture, load_split
    from sft.models import check_model_folder, describe_model, load_tokenizer

    check_model_folder(model_args.model_name_or_path)
    checkpoint = resume_point(training_args.output_dir, training_args.resume_from_checkpoint)
    evaluating = training_args.eval_strategy != "no"
    is_main = training_args.process_index == 0

    ################################
    # Data: every row is looked at #
    ################################
    weights = data_args.weights(script_args.dataset_name)
    train = load_mixture(weights, script_args.dataset_train_split, training_args.data_seed or training_args.seed)
    dev = load_split(script_args.dataset_name, script_args.dataset_test_split) if evaluating else None
    tokenizer = load_tokenizer(
        model_args.model_name_or_path, training_args.chat_template_path, model_args.model_revision
    )
    if is_main:  # The other processes wait for this one before SFTTrainer prepares the data.
        lengths = check_rows(train, tokenizer, training_args.max_length, "train")
        if evaluating:
            check_rows(dev, tokenizer, training_args.max_length, "dev")
    if not training_args.packing:
        training_args.max_length = None  # no row exceeds it; TRL would look at every row again

    #########
    # Model #
    #########
    # SFTTrainer loads it, so that it can choose the device map that the launcher needs.
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        "use_safetensors": True,
        **(training_args.model_init_kwargs or {}),
    }
    score_labelled_positions_only()
    trainer = SFTTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        # Formatting, tokenisation, the completion mask and packing all happen inside SFTTrainer.
        train_dataset=train.select_columns(trained_columns(train)),
        eval_dataset=dev.select_columns(trained_columns(dev)) if evaluating else None,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )

    #########
    # Train #
    #########
    if is_main:
        print(f"Data: {len(lengths)} questions, {sum(lengths)} tokens an epoch, longest row {max(lengths)} tokens")
        for line in describe_model(trainer.model):
            print(line)
        print(
            f"Step: {training_args.world_size} process(es) x {training_args.per_device_train_batch_size} "
            f"{'packed sequences' if training_args.packing else 'questions'} x "
            f"{training_args.gradient_accumulation_steps} accumulated",
            flush=True,
        )
    result = trainer.train(resume_from_checkpoint=checkpoint)

    ############
    # Evaluate #
    ############
    # With load_best_model_at_end, the model now is the best checkpoint, not the last.
    metrics = trainer.evaluate() if evaluating else {}
    best = trainer.state.best_model_checkpoint
    metrics |= {"train_loss": result.training_loss, "best_checkpoint": Path(best).name if best else None}

    ########
    # Save #
    ########
    final = save_final_model(trainer, answer_format=train[0]["answer_format"])
    if is_main:
        write_json(Path(training_args.output_dir) / "eval_results.json", metrics)
        print(f"Wrote {final}")
    trainer.end()


if __name__ == "__main__":
    run(main)
