"""A launch file means to preflight what it means to accelerate."""

from pathlib import Path

import pytest

from sft.common.command import UserError
from sft.training.hardware import GPUS, planned_hardware
from sft.training.launch import Launch, current_launch, read_launch_file

FILES = sorted(Path(__file__).parents[2].glob("accelerate_configs/*.yaml"))


def environment_of(file: Path) -> dict[str, str]:
    """What accelerate itself would put into the environment of the processes that it starts with `file`."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import (
        prepare_deepspeed_cmd_env,
        prepare_multi_gpu_env,
        prepare_simple_launcher_cmd_env,
    )

    parser = launch_command_parser()
    words = ["--config_file", str(file), "script.py"]
    args, _, _ = _validate_launch_command(parser.parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ""
        _, environment = prepare_deepspeed_cmd_env(args)
    elif args.multi_gpu or args.use_fsdp:
        environment = prepare_multi_gpu_env(args)
    else:
        _, environment = prepare_simple_launcher_cmd_env(args)
    if args.num_processes > 1:  # as torchrun sets them
        environment["WORLD_SIZE"] = str(args.num_processes)
        environment["LOCAL_WORLD_SIZE"] = str(args.num_processes // args.num_machines)
        environment["LOCAL_RANK"] = "0"
    return environment


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_launch_file_is_read_as_accelerate_reads_it(file):
    assert current_launch(environment_of(file)) == read_launch_file(file)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_shipped_launch_files_leave_the_precision_to_the_recipe_and_keep_checkpoints_whole(file):
    launch = read_launch_file(file)
    assert launch.precision == "no"
    assert launch.whole_checkpoints


def test_python_alone_is_one_process():
    assert current_launch({}) == Launch()


def test_a_deepspeed_file_of_the_user_decides_the_stage(tmp_path):
    (tmp_path / "ds.json").write_text(
        '{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": true}}'
    )
    file = tmp_path / "launch.yaml"
    file.write_text(
        "distributed_type: DEEPSPEED\nnum_processes: 4\n"
        f"deepspeed_config: {{deepspeed_config_file: {tmp_path}/ds.json}}"
    )
    launch = read_launch_file(file)
    assert (launch.zero_stage, launch.offload, launch.precision, launch.whole_checkpoints) == (3, True, "bf16", False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file"),
        ("distributed_type: MEGATRON_LM", "not one that this project knows"),
        ("just words", "not one that this project knows"),
        ("a: b: c", "not one that this project knows"),
        ("distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: many}", "not one that this project knows"),
        (
            "distributed_type: DEEPSPEED\ndeepspeed_config: {deepspeed_config_file: nowhere.json}",
            "nowhere.json cannot be read",
        ),
    ],
)
def test_what_is_no_launch_file_is_refused(tmp_path, text, words):
    file = tmp_path / "launch.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=words):
        read_launch_file(file)


def test_an_unknown_gpu_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match="A100-80GB"):
        planned_hardware("A1000", 1)
    assert planned_hardware("T4", 2).count == 2
    assert all(planned_hardware(gpu, 1).memory > 10 for gpu in GPUS)


def test_empty_parts_of_a_launch_file_are_defaults(tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2, "offload_param": null}, "bf16": null}')
    for text, expected in (
        ("distributed_type: FSDP\nfsdp_config:\n", Launch("fsdp", fsdp_version=1)),
        (
            f"distributed_type: DEEPSPEED\ndeepspeed_config: {{deepspeed_config_file: {tmp_path}/ds.json}}",
            Launch("deepspeed", zero_stage=2),
        ),
    ):
        file = tmp_path / "launch.yaml"
        file.write_text(text)
        assert read_launch_file(file) == expected
