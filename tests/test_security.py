"""What SECURITY.md promises, each promise with its test; publishing's are in tests/publishing/test_publish.py."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hub import KNOWN

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("sft/**/*.py"), *ROOT.glob("data_prep/*.py")])
# Calls that unpickle, or run what a file says.
FORBIDDEN = {
    *("pickle.load", "pickle.loads", "torch.load", "joblib.load", "dill.load", "numpy.load", "np.load"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "eval", "exec", "os.system"),
}
LOADS = re.compile(r"^(Auto(?!HfQuantizer)\w+|model_class\(config\))\.from_(pretrained|config)$")


def calls(file: Path):
    """(dotted name, call) of every call in a source file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_source_unpickles_or_runs_what_a_file_says(file):
    for name, call in calls(file):
        assert name not in FORBIDDEN, f"line {call.lineno}"
        for keyword in call.keywords:
            assert keyword.arg != "shell" or not keyword.value.value, f"line {call.lineno}"
            if keyword.arg == "trust_remote_code":
                assert keyword.value.value is False, f"line {call.lineno}"


def test_whatever_a_user_names_is_loaded_without_its_code():
    """Left out, trust_remote_code makes transformers ask on the terminal, and a y would run the code."""
    # The embedded models' files are those of a wheel.
    sources = [file for file in SOURCES if file.name not in ("embedded_model.py", "embedded_vlm.py")]
    loading = [(file, call) for file in sources for name, call in calls(file) if LOADS.search(name)]
    assert len(loading) >= 4
    for file, call in loading:
        assert "trust_remote_code" in {keyword.arg for keyword in call.keywords}, f"{file}, line {call.lineno}"


@pytest.fixture(scope="module")
def with_code(tiny_deepseek, tmp_path_factory):
    """(a model whose configuration wants its own code to be run, the file that the code would write)."""
    folder = tmp_path_factory.mktemp("code") / "model"
    shutil.copytree(tiny_deepseek, folder)
    mark = folder.parent / "it-ran"
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    config |= {"model_type": "evil", "auto_map": auto, "architectures": ["Model"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    return folder, mark


def test_code_of_a_model_is_never_run_and_never_asked_about(refused, with_code, prepared, toy_options, tmp_path):
    model, mark = with_code
    own_code = "needs code from its own repository, which is never run here"
    question = ("--question", "Which?", "--choices", "a", "b")
    assert own_code in refused("sft/infer.py", "--model_path", model, *question)
    evaluate = ("--dataset_path", prepared, "--output_dir", tmp_path)
    assert own_code in refused("sft/evaluate.py", "--model_path", model, *evaluate)
    run = (*toy_options("pmcvqa"), "--model_name_or_path", model, "--output_dir", tmp_path / "out")
    assert own_code in refused("sft/run.py", *run)
    assert "trust_remote_code" in refused("sft/run.py", *run, "--trust_remote_code", "yes")
    line = refused("sft/run.py", *run, "--model_init_kwargs", '{"trust_remote_code": true}')
    assert "code from model repositories is never run" in line
    # Nor by whoever would say yes if transformers asked.
    words = (sys.executable, "sft/infer.py", "--model_path", str(model), *question)
    done = subprocess.run(words, cwd=ROOT, input="y\n" * 9, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "[y/N]" not in done.stdout
    assert not mark.exists()


def test_pickled_weights_are_not_read(refused, tiny_deepseek, hub, command, tmp_path):
    import torch

    model = tmp_path / "pickled"
    shutil.copytree(tiny_deepseek, model)
    (model / "model.safetensors").unlink()
    torch.save({}, model / "pytorch_model.bin")
    question = ("--question", "Which?", "--choices", "a", "b")
    assert "is no model: it needs" in refused("sft/infer.py", "--model_path", model, *question)
    # On the Hub, where nothing can be seen before it is asked for: a model, and an adapter.
    hub.add("models", "someone/pickled", model)
    done = command("sft/infer.py", "--model_path", "someone/pickled", *question, **hub.environment, **KNOWN)
    assert done.returncode == 2, done.stderr
    assert "cannot be loaded" in done.stderr
    for name in ("config.json", "pytorch_model.bin"):
        (model / name).unlink()
    hub.add("models", "someone/base", tiny_deepseek)
    adapter = {"base_model_name_or_path": "someone/base", "peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    (model / "adapter_config.json").write_text(json.dumps(adapter))
    torch.save({}, model / "adapter_model.bin")
    hub.add("models", "someone/adapter", model)
    done = command("sft/infer.py", "--model_path", "someone/adapter", *question, **hub.environment, **KNOWN)
    assert done.returncode == 2, done.stderr
    assert "holds no adapter_model.safetensors: other files of weights are not read" in done.stderr
    assert not [place for place in hub.requests if place.endswith(".bin") and place.startswith("GET")]


def test_a_model_on_the_hub_is_read_at_the_revision_that_is_named(here, hub, command, tiny_deepseek):
    first = hub.add("models", "someone/base", tiny_deepseek)
    hub.model("someone/base").commit({"README.md": b"everything else was deleted"})
    words = ("sft/infer.py", "--temperature", 0, "--max_new_tokens", 4, "--json")
    words += ("--question", "Which?", "--choices", "a", "b", "--model_path")
    local = here(*words, tiny_deepseek, "--dtype", "float32")
    there = command(*words, f"someone/base@{first}", "--dtype", "float32", **hub.environment, **KNOWN)
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout)["text"] == json.loads(local.stdout)["text"]
    gone = command(*words, "someone/base", **hub.environment, **KNOWN)
    assert gone.returncode == 2
    assert "Traceback" not in gone.stderr


def test_a_data_set_on_the_hub_is_read_at_the_revision_that_is_named(command, hub, few_dev, tmp_path):
    """In a process of its own, because the client reads where the Hub is when it is imported."""
    first = hub.add("datasets", "someone/questions", few_dev)
    hub.repos["datasets", "someone/questions"].commit({"README.md": b"everything else was deleted"})
    look = (
        "import sys; from sft.common.data import load_split, provenance; name = sys.argv[1]\n"
        "print(len(load_split(name, 'dev')), provenance({name: 1})[0]['splits']['dev'])"
    )
    environment = {**hub.environment, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "PATH": ""}
    done = command("-c", look, f"someone/questions@{first}", **environment)
    assert done.returncode == 0, done.stderr
    held_out = str(json.loads((few_dev / "report.json").read_text())["splits"]["dev"])
    assert done.stdout.split() == [held_out, held_out]


def test_figures_named_in_the_data_are_never_opened(command, tmp_path):
    """A name may climb out of the folder; preparation keeps it as a word."""
    header = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"
    (tmp_path / "secret.txt").write_text("secret")
    names = ["../secret.txt", str(tmp_path / "secret.txt"), "PMC1_F1.jpg", "../../../../etc/passwd"]
    rows = "".join(f"{name},Which one is number {i}?,w,w,x,y,z,A\n" for i, name in enumerate(names))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.csv").write_text(header + rows)
    (tmp_path / "data/PMC1_F1.jpg").write_bytes(b"a figure")
    watch = (
        "import sys\n"
        "opened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == 'open' else None)\n"
        "sys.argv = ['prepare.py', *sys.argv[1:]]\n"
        "from data_prep.prepare import main\n"
        "main()\n"
        "print('OPENED', *opened, sep='\\n')"
    )
    options = ("--dataset_path", tmp_path / "data", "--output_dir", tmp_path / "P", "--num_proc", 1, "--dev_size", 0)
    done = command("-c", watch, *options)
    assert done.returncode == 0, done.stderr
    opened = done.stdout.partition("OPENED\n")[2].split("\n")
    assert str(tmp_path / "data/train.csv") in opened
    assert not [name for name in opened if re.search(r"secret\.txt|passwd|\.jpg", name)]


def test_no_command_takes_a_token(command):
    """A token on a command line is in the history of the shell and in the list of processes."""
    for script in ("sft/publish.py", "sft/run.py", "data_prep/prepare.py", "sft/evaluate.py", "sft/infer.py"):
        assert not re.search(r"--(hub_)?token\b", command(script, "--help").stdout)
