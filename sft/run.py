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
from pathlib import Path

from sft.common.command import outlive_output, run
from sft.training.config import Settings, resolve
from sft.training.hardware import Hardware
from sft.training.launch import Launch


def main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(__doc__.strip())
        return

    outlive_output()
    # Preflight: what can be refused is refused here, in words.
    settings = resolve(sys.argv[1:])

    # Imported here, so that --help and a misspelt recipe answer at once.
    from sft.common.models import check_model_folder
    from sft.training import base_model, checks, model, publication, trial
    from sft.training.launch import current_launch
    from sft.training.rendezvous import lost_processes

    launch = current_launch()
    settings = checks.for_this_cpu(settings.for_world_size(launch.processes), launch)
    hardware = checks.hardware_of(settings, launch)
    if launch.kind == "deepspeed" and not hardware.count:
        model.skip_deepspeed_inference_kernels()
    is_main_process = int(os.environ.get("RANK", "0")) == 0
    if settings.print_config:
        if is_main_process:
            print(settings.describe())
        return
    checks.check_all(settings, launch, hardware)
    check_model_folder(settings.model)
    settings = base_model.for_base_model(settings, launch)
    if settings.is_trial:
        trial.run_trial(settings, launch, hardware)
        return

    publishes = settings.push_to_hub and is_main_process
    if publishes:
        publication.check_hub(settings)
    with lost_processes():
        final = train(settings, launch, hardware)
    if final and publishes:
        publication.publish(settings, final)
    if launch.processes > 1:
        # A communication thread can abort the interpreter's exit (seen once under gloo, as SIGABRT), and the launcher
        # would then stop the process that still publishes, and call a finished run failed.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def train(settings: Settings, launch: Launch, hardware: Hardware) -> Path | None:
    """The final model, or None for a stopped run; raises `UserError` for unusable data, checkpoint or base model."""
    from trl import SFTConfig

    from sft.common.vision import vision_of
    from sft.training import checkpoints, libraries, manifest, model, plan, stopping
    from sft.training.callbacks import DevAccuracyCallback, HistoryCallback

    checkpoint = checkpoints.resume_point(settings)
    continued = None if settings.resume_weights_only else checkpoint
    training_args = settings.build(SFTConfig)
    libraries.rehearse(settings, training_args)
    if continued:
        training_args.eval_on_start = False  # the base model was evaluated at the start of the run

    # Data: every row is looked at.
    data = plan.load_and_check_data(settings)
    needs = plan.make_plan(settings, launch, hardware, data.lengths)
    plan.check_checkpoints_fit(settings, needs)
    plan.print_plan(needs)
    run_manifest = manifest.describe_run(settings, launch, hardware, data.train, data.tokenizer)
    notes = [f"continuing from {continued}", *checkpoints.compare(continued, run_manifest)] if continued else []

    # Model and train.
    trainer = model.load_trainer(settings, training_args, data)
    run_manifest["parameters"] = model.parameter_counts(trainer.model)
    if settings.use_peft:
        trainer.model.active_peft_config.revision = run_manifest["base_model"]["revision"]
    if settings.resume_weights_only:
        checkpoints.load_weights(trainer.model, checkpoint)
        notes.append(f"weights of {checkpoint}; optimizer, schedule and place in the data start anew")
    manifest.begin_output_dir(trainer, run_manifest, notes)
    answer_format = data.train[0]["answer_format"]
    graceful_stop = stopping.GracefulStopCallback(trainer, data.tokenizer, run_manifest, answer_format)
    trainer.add_callback(graceful_stop)
    accuracy = None
    if settings.mcq_eval_samples:
        accuracy = DevAccuracyCallback(trainer, data.tokenizer, data.dev, settings.mcq_eval_samples)
        trainer.add_callback(accuracy)
    if vision_of(data.tokenizer):
        from sft.training.vision import VisionCallback

        trainer.add_callback(VisionCallback(trainer, data.tokenizer, data.train, accuracy))
    trainer.add_callback(HistoryCallback())
    stopping.train(trainer, continued)

    # Evaluate, and save.
    # With load_best_model_at_end, transformers has loaded the checkpoint that is best by metric_for_best_model.
    final = None
    if not graceful_stop.stopped:
        manifest.write_results(trainer)
        final = manifest.save_final_model(trainer, settings, data.tokenizer, answer_format)
    elif trainer.is_world_process_zero():
        print(f"Stopped by a signal after step {trainer.state.global_step}; the checkpoint is saved.")
        print("Continue with the same command and --resume_from_checkpoint auto:")
        print(f"  ... {stopping.resume_command(sys.argv)}", flush=True)
    trainer.end()
    return final


if __name__ == "__main__":
    run(main)
