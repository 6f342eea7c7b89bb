"""Fine-tune a language model on a prepared data set with TRL's SFTTrainer.

    accelerate launch [--config_file accelerate_configs/LAUNCH.yaml] sft/run.py recipes/pmcvqa.yaml [--key value ...]

The recipe comes first. Its keys are fields of TRL's ScriptArguments, SFTConfig and ModelConfig (`trl sft --help`
explains them all) and the few of ours (docs/training.md); any can be given on the command line, which wins.

    --print_config yes     every setting and where its value came from
    --dry_run yes          three rows as they are trained, one step on the longest rows, and nothing is kept
    --probe_steps 20       speed, memory, time (with --price_per_hour 2.5, cost) of the whole run, and nothing is kept
    --resume_from_checkpoint auto

In:  dataset_name, a folder written by data_prep/prepare.py (splits train and dev), and model_name_or_path.
Out: output_dir with checkpoint-*/, final_model/ (adapter, tokenizer, chat template), eval_results.json (loss and
     accuracy of base and best on dev), history.json, loss.png and run_manifest.json.

Exit status: 0 done, or stopped by SIGTERM or SIGUSR1 with a checkpoint saved; 2 a setting or an input was refused (one
line says which, where and what to do).
"""

import os
import sys
import tempfile
from pathlib import Path

from sft.common.command import run, write_json
from sft.training.config import Settings, resolve
from sft.training.hardware import Hardware
from sft.training.launch import Launch


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        return

    ############################################################
    # Preflight: what can be refused is refused here, in words #
    ############################################################
    settings = resolve(sys.argv[1:])

    # Imported here, so that --help and a misspelt recipe answer at once.
    from sft.common.models import check_model_folder
    from sft.publishing import upload
    from sft.training import checks, model
    from sft.training.hardware import this_machine
    from sft.training.launch import current_launch

    launch, hardware = current_launch(), this_machine()
    if launch.kind == "deepspeed" and not hardware.count:
        model.without_deepspeeds_inference_kernels()
    settings = checks.for_this_cpu(settings.for_world_size(launch.processes), launch)
    if settings.print_config:
        if is_main_process():
            print(settings.describe())
        return
    checks.check_all(settings, launch, hardware)
    check_model_folder(settings.model)
    if settings.push_to_hub and is_main_process() and not settings.is_trial:
        upload.check_run(settings)

    final = train(settings, launch, hardware)
    if final and settings.push_to_hub and is_main_process():
        upload.after_training(settings, final)


def is_main_process() -> bool:
    """Whether this is the first of the launcher's processes, which alone prints and writes."""
    return int(os.environ.get("RANK", "0")) == 0


def train(settings: Settings, launch: Launch, hardware: Hardware) -> Path | None:
    """Train, and return the final model's folder, or None for a trial and for a run that was stopped.

    Raises:
        UserError: data, a checkpoint or a model that the run cannot use.
    """
    from sft.common.chat_template import tokenizer_fingerprint, trained_columns
    from sft.common.data import data_fingerprint
    from sft.training import checkpoints, manifest, model, plan, stopping, trial
    from sft.training.callbacks import DevAccuracyCallback, HistoryCallback, log_lines

    checkpoint = None if settings.is_trial else checkpoints.resume_point(settings)
    scratch = tempfile.TemporaryDirectory() if settings.is_trial else None
    wanted, settings = settings, trial.trial_settings(settings, scratch.name) if settings.is_trial else settings
    _, training_args, model_args, _ = settings.build()

    ################################
    # Data: every row is looked at #
    ################################
    rows, dev, tokenizer, lengths = plan.load_and_check_data(settings)
    lines, estimated = plan.plan(wanted, launch, hardware, lengths)
    if is_main_process():
        print("\n".join(lines), flush=True)
    if settings.dry_run:
        rows = trial.longest_rows(rows, lengths, settings, launch.processes)
    fingerprints = data_fingerprint(rows, trained_columns(rows)), tokenizer_fingerprint(tokenizer)
    description = manifest.manifest(settings, launch, hardware, *fingerprints)
    notes = checkpoints.compare(checkpoint, description) if checkpoint and not settings.resume_weights_only else []

    #########
    # Model #
    #########
    # Imported here, so that a model or a data set that is not there is refused at once.
    from trl import SFTTrainer, get_peft_config, get_quantization_config

    model.complete_arguments(training_args, model_args, settings)
    model.score_labelled_positions_only()
    trainer = SFTTrainer(
        model=model_args.model_name_or_path,
        args=training_args,
        # Formatting, tokenisation, the completion mask and packing all happen inside SFTTrainer.
        train_dataset=rows.select_columns(trained_columns(rows)),
        eval_dataset=dev.select_columns(trained_columns(dev)) if dev is not None else None,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    if settings.fp16 or (settings.use_peft and not settings.bf16):
        model.trained_in_float32(trainer.model)
    log_lines(trainer)
    if is_main_process():
        attention = training_args.model_init_kwargs["attn_implementation"]
        print("\n".join([*model.describe_model(trainer.model), f"Attention: {attention}"]), flush=True)

    #########
    # Train #
    #########
    if settings.is_trial:
        trial.run(trainer, wanted, hardware, estimated)
        return None
    description["parameters"] = model.parameter_counts(trainer.model)
    graceful_stop = stopping.begin(trainer, settings, description, checkpoint, notes)
    if settings.mcq_eval_samples:
        trainer.add_callback(DevAccuracyCallback(trainer, dev, settings.mcq_eval_samples))
    trainer.add_callback(HistoryCallback())
    graceful_stop.train()
    if graceful_stop.stopped:
        graceful_stop.print_resume_command()
        return None

    ######################
    # Evaluate, and save #
    ######################
    # With load_best_model_at_end, transformers has loaded the checkpoint that is best by metric_for_best_model.
    results = manifest.results(trainer)
    if is_main_process():
        write_json(Path(training_args.output_dir) / "eval_results.json", results)
    final = manifest.save_final_model(trainer, settings, answer_format=rows[0]["answer_format"])
    if is_main_process():
        print(f"Wrote {final}", flush=True)
    trainer.end()
    return final


if __name__ == "__main__":
    run(main)
