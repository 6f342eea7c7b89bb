"""Publishing: what is uploaded, what never is, and what is left behind when the Hub or the network fails.

The Hub is a server on loopback (tests/hub.py) that the real client talks to.
"""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import yaml

from tests.hub import BY_BROWSER, DROP, DROP_AFTER, KNOWN, READ_ONLY, Fault, Repo

REPO, BASE = "someone/pmc-vqa", "someone/tiny-base"
OURS = ("adapter_model.safetensors", "adapter_config.json", "README.md", "run_manifest.json")


@pytest.fixture(scope="module")
def evaluation(here, trained, few_dev, tmp_path_factory):
    """An evaluation of it."""
    folder = tmp_path_factory.mktemp("eval")
    options = ("--num_samples", 16, "--dtype", "float32", "--output_dir", folder, "--name", "tuned")
    succeed(here("sft/evaluate.py", "--model_path", trained, "--dataset_path", few_dev, *options))
    return folder / "tuned"


@pytest.fixture
def publish(here_on_hub, hub, trained, tiny_deepseek, tmp_path):
    """Publish on the server, as somebody who may, unless a token is given."""
    base_commit = hub.add("models", BASE, tiny_deepseek, licence="mit")

    def run(*options, model=trained, repo=REPO, base=BASE, **environment):
        words = ("sft/publish.py", "--model_path", model, "--repo", repo, "--base_model", base)
        return here_on_hub(*words, "--output_dir", tmp_path / "staged", *options, **KNOWN | environment)

    run.base_commit = base_commit
    return run


@pytest.fixture
def model(trained, tmp_path):
    """A copy of the trained model, to be changed."""
    return Path(shutil.copytree(trained, tmp_path / "final_model"))


@pytest.fixture
def not_published(refused, tmp_path):
    """A dry run that must be refused; returns the line."""

    def run(model, *options, repo=REPO) -> str:
        common = ("--repo", repo, "--base_model", BASE, "--dry_run", "--output_dir", tmp_path / "staged")
        return refused("sft/publish.py", "--model_path", model, *common, *options)

    return run


def succeed(done):
    """A command that succeeded."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def the_line(done) -> str:
    """The one line that refuses, of a command that was refused."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    return line


def test_a_model_is_published_privately_with_its_card_and_nothing_else(
    publish, hub, trained, model, evaluation, tmp_path
):
    # What a trainer and its user leave in such a folder.
    left = ("training_args.bin", "optimizer.pt", "trainer_state.json", ".env", "notes.txt", "events.out.tfevents")
    for name in left:
        (model / name).write_text("secret")
    (model / "runs").mkdir()
    (model / "runs/log.json").write_text("{}")
    done = succeed(publish("--evaluation", evaluation, "--tag", "v1", "--license", "cc-by-sa-4.0", model=model))
    repo = hub.model(REPO)
    assert repo.private
    assert set(repo.files) == {
        *("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "prompt_format.json", "run_manifest.json", "recipe.yaml", "README.md"),
        *("eval_results.json", "history.json", "loss.png", "evaluation/tuned.json", "config.json"),
    }
    assert repo.files["adapter_model.safetensors"] == (trained / "adapter_model.safetensors").read_bytes()
    config = json.loads(repo.files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, None)
    # Both major versions of transformers read it.
    of_base = json.loads(repo.files["config.json"])
    assert of_base["rope_theta"] == of_base["rope_parameters"]["rope_theta"]
    assert json.loads(repo.files["tokenizer_config.json"])["tokenizer_class"] == "PreTrainedTokenizerFast"
    measured = json.loads(repo.files["evaluation/tuned.json"])
    assert measured["base_model"] == {"name": BASE, "commit": None}
    assert repo.tags == {"v1": repo.head}
    assert len(repo.commits) == 2  # the Hub's own, and ours
    assert "every file the same, 5 of 5 first answers the same" in done.stdout
    assert f"Published (private): {REPO}, tag v1" in done.stdout
    published = b"".join(repo.files.values())
    assert b"hf_known" not in published
    assert "hf_known" not in done.stdout + done.stderr
    assert str(tmp_path).encode() not in published
    assert str(trained.parents[2]).encode() not in published  # where its base model lay
    # Nothing of the folder that was published has changed.
    assert json.loads((model / "adapter_config.json").read_text())["base_model_name_or_path"] != BASE


def test_everybody_sees_it_only_when_it_is_verified(publish, hub):
    succeed(publish("--public"))
    assert not hub.model(REPO).private
    places = [place.partition(" ")[2] for place in hub.requests]
    opened = places.index(f"/api/models/{REPO}/settings")
    assert max(i for i, place in enumerate(places) if "/resolve/" in place and REPO in place) < opened


def test_a_dry_run_writes_what_would_be_uploaded_and_sends_nothing(publish, hub, tmp_path):
    done = succeed(publish("--dry_run", HF_TOKEN=""))
    assert "Nothing was uploaded." in done.stdout
    assert ("models", REPO) not in hub.repos
    assert not [place for place in hub.requests if place.startswith(("POST", "PUT"))]
    folder = tmp_path / "staged/someone--pmc-vqa"
    assert set(OURS) <= {path.name for path in folder.iterdir()}
    for name in ("adapter_model.safetensors", "README.md", "adapter_config.json"):
        assert f"{name} " in done.stdout


def test_files_of_the_users_own_are_not_deleted_with_what_was_written_before(not_published, trained, tmp_path):
    folder = tmp_path / "staged/someone--pmc-vqa"
    folder.mkdir(parents=True)
    (folder / "README.md").touch()
    (folder / "thesis.txt").touch()
    assert "is not only what was published, it holds thesis.txt, which would be lost" in not_published(trained)
    assert (folder / "thesis.txt").exists()


def test_a_cache_that_cannot_be_written_is_named_before_the_upload(publish, hub):
    cache = Path(hub.environment["HF_HOME"]) / "hub"
    cache.parent.mkdir(exist_ok=True)
    cache.touch()
    assert f"the cache {cache} cannot be written (Not a directory): set HF_HOME" in the_line(publish())
    assert ("models", REPO) not in hub.repos


def test_the_same_run_is_published_twice_to_the_same_commit(publish, hub):
    assert publish().returncode == 0
    first = hub.model(REPO).head
    succeed(publish())
    assert hub.model(REPO).head == first


ALWAYS = 1000
# Fault, what the user reads, whether the model is published in the end.
FAULTS = {
    "token expires before the repository is made": ([Fault("POST", "/repos/create", 401)], "hf auth login", False),
    "no right to make it": ([Fault("POST", "/repos/create", 403)], "your token may not write there", False),
    "too many requests": ([Fault("POST", "/preupload/", 429, 2, {"Retry-After": "1"})], "", True),
    "too many requests to commit": ([Fault("POST", "/commit/", 429)], "too many requests: wait", True),
    "connection drops while weights are sent": ([Fault("PUT", "/lfs/upload/", DROP, 2)], "", True),
    "server fails while weights are sent": ([Fault("PUT", "/lfs/upload/", 500)], "", True),
    "server refuses weights": ([Fault("PUT", "/lfs/upload/", 403, ALWAYS)], "your token may not write there", False),
    "connection drops before the commit": ([Fault("POST", "/commit/", DROP)], "it broke off", True),
    "connection drops after the commit": ([Fault("POST", "/commit/", DROP_AFTER)], "it broke off", True),
    "server is busy at the commit": ([Fault("POST", "/commit/", 503, 2)], "Next try in 2 s", True),
    "somebody else commits meanwhile": ([Fault("POST", "/commit/", 412)], "somebody else changed", False),
    "token expires before the commit": ([Fault("POST", "/commit/", 401)], "hf auth login", False),
    "connection drops while it is verified": ([Fault("GET", "/tree/", DROP)], "", True),
    "connection drops at the first question": ([Fault("GET", "/whoami", DROP)], "it broke off", True),
    "connection drops after the tag": ([Fault("POST", "/tag/", DROP_AFTER)], "it broke off", True),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_hub(fault, publish, hub, tmp_path):
    faults, words, published = FAULTS[fault]
    hub.faults += faults
    done = publish("--tag", "v1")
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(f.times and f.times < ALWAYS - 5 for f in faults)  # they happened
    repo = hub.repos.get(("models", REPO))
    if published:
        assert done.returncode == 0, done.stderr
        assert len(repo.commits) == 2  # one commit, however often it was tried
        assert set(OURS) <= repo.files.keys()
        assert repo.tags == {"v1": repo.head}
    else:
        the_line(done)
        assert repo is None or not repo.files  # nothing, or an empty private repository
        # What was to be uploaded is here, whole; the same command, given again, succeeds.
        assert (tmp_path / "staged/someone--pmc-vqa/README.md").is_file()
        hub.faults.clear()
        assert publish().returncode == 0
        assert set(OURS) <= hub.model(REPO).files.keys()
    assert hub.model(REPO).private


def test_weights_that_arrived_are_not_sent_again(publish, hub):
    hub.faults.append(Fault("POST", "/commit/", 412))
    the_line(publish())
    sent = sum(place.startswith("PUT /lfs/upload/") for place in hub.requests)
    assert publish().returncode == 0
    assert sum(place.startswith("PUT /lfs/upload/") for place in hub.requests) == sent > 0


def test_a_file_that_arrived_as_another_is_reported_and_stays_private(publish, hub, trained):
    content = (trained / "adapter_model.safetensors").read_bytes()
    # The server believes that it has the file, and has other bytes of the same length.
    hub.blobs[hashlib.sha256(content).hexdigest()] = content[:-1] + bytes([content[-1] ^ 1])
    line = the_line(publish("--public"))
    assert "adapter_model.safetensors differs there" in line
    assert hub.model(REPO).private


def test_a_tag_stays_with_the_commit_that_it_names(publish, hub):
    assert publish("--tag", "v1").returncode == 0
    first = hub.model(REPO).head
    line = the_line(publish("--tag", "v1", "--license", "cc-by-sa-4.0"))  # the same run, another card
    assert line.endswith("is published, but not tagged v1: it names another commit: choose another")
    assert hub.model(REPO).tags == {"v1": first}
    assert hub.model(REPO).head != first


def test_a_login_in_the_browser_may_publish(publish, hub):
    succeed(publish(**BY_BROWSER))


def test_errors_that_pass_are_retried_and_others_are_not():
    """hf_xet, which stores weights on the real Hub and cannot be used here, raises Python's own ConnectionError."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    from sft.common.hub import no_answer

    wrapped = RuntimeError("Error while uploading")
    wrapped.__cause__ = ConnectionError("server closed the connection")
    assert no_answer(wrapped)
    assert no_answer(TimeoutError())
    assert not no_answer(OfflineModeIsEnabled("HF_HUB_OFFLINE is set"))
    assert not no_answer(ValueError("no such file"))


def test_the_reason_that_the_hub_gives_is_passed_on(publish, hub):
    hub.faults.append(Fault("POST", "/repos/create", 403, 1, {"X-Error-Message": "Private storage limit reached"}))
    assert "(the Hub says: Private storage limit reached" in the_line(publish())


@pytest.fixture
def other_base(hub, tiny_deepseek, tmp_path):
    """Puts another base model, with other weights, on the server; returns its name there."""

    def add(**config) -> str:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(1)
        other = Path(shutil.copytree(tiny_deepseek, tmp_path / "other"))
        model = LlamaForCausalLM(LlamaConfig.from_pretrained(tiny_deepseek, **config))
        model.to(torch.bfloat16).save_pretrained(other)
        hub.add("models", "someone/other", other)
        return "someone/other"

    return add


def test_a_base_model_of_another_size_is_refused_in_words(publish, other_base):
    line = the_line(publish(base=other_base(hidden_size=128)))
    assert "is uploaded" in line
    assert "it cannot be loaded" in line


def test_another_base_model_on_the_hub_is_recognised_by_its_answers(publish, hub, other_base):
    line = the_line(publish("--public", base=other_base()))
    assert "first answers otherwise" in line
    assert hub.model(REPO).private


def test_the_base_model_is_pinned_where_its_commit_is_known(publish, hub):
    succeed(publish(base=f"{BASE}@{publish.base_commit}"))
    files = hub.model(REPO).files
    assert json.loads(files["adapter_config.json"])["revision"] == publish.base_commit
    assert f"at revision `{publish.base_commit}`" in files["README.md"].decode()


def test_what_others_published_is_replaced_only_with_update(publish, hub):
    theirs = {"README.md": b"mine", "model.safetensors": b"theirs", "NOTES.md": b"to keep"}
    hub.repos["models", REPO] = Repo(private=True)
    hub.model(REPO).commit(theirs)
    assert "holds files that this run did not publish: pass --update" in the_line(publish())
    assert hub.model(REPO).files == theirs
    succeed(publish("--update"))
    files = hub.model(REPO).files
    assert files["NOTES.md"] == b"to keep"
    assert "model.safetensors" not in files  # an adapter with another model's weights beside it would not load
    assert set(OURS) <= files.keys()


def test_a_merged_model_is_published_and_loads_without_peft(publish, hub):
    done = succeed(publish("--merged"))
    files = hub.model(REPO).files
    assert "model.safetensors" in files
    assert not [name for name in files if name.startswith("adapter")]
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"
    assert "AutoModelForCausalLM.from_pretrained" in card
    assert "merged and adapter differ by" in done.stdout
    assert "5 of 5 first answers the same" in done.stdout
    # The same run may do it again, and publish its adapter instead.
    assert publish("--merged").returncode == 0
    assert len(hub.model(REPO).commits) == 2
    succeed(publish())
    assert "model.safetensors" not in hub.model(REPO).files


@pytest.mark.parametrize(
    ("options", "environment", "words"),
    [
        (["--repo", "nobody"], {}, "give OWNER/NAME"),
        (["--repo", "nasa/pmc"], {}, "you may write as lab or someone"),
        (["--tag", "../v1"], {}, "--tag ../v1: give letters"),
        (["--base_model", "outputs"], {}, "--base_model outputs: give the model's id on the Hub"),
        (["--base_model", "./someone"], {}, "give the model's id on the Hub"),
        (["--evaluation", "docs"], {}, "not a finished evaluation"),
        ([], {"HF_TOKEN": ""}, "not logged in: run `hf auth login`"),
        ([], READ_ONLY, "your token may only read"),
    ],
)
def test_what_cannot_be_published_is_refused_before_anything_is_sent(publish, hub, options, environment, words):
    assert words in the_line(publish(*options, **environment))
    assert not [place for place in hub.requests if place.startswith(("POST", "PUT"))]


def test_what_is_no_finished_model_of_a_run_is_refused(
    refused, not_published, trained, recipe_run, tiny_deepseek, tmp_path
):
    assert "lacks the facts" in not_published(recipe_run("pmcvqa")[0] / "checkpoint-4")
    assert "lacks the facts" in not_published(tiny_deepseek)
    assert "does not exist" in not_published(tmp_path / "none")
    line = refused("sft/publish.py", "--model_path", trained, "--repo", REPO, "--dry_run")
    assert "name the same model on the Hub with --base_model" in line


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run_manifest.json", "{,}", "run_manifest.json cannot be read"),
        ("run_manifest.json", "{}", "does not name the base model"),
        ("history.json", "[", "history.json cannot be read"),
        ("prompt_format.json", "", "prompt_format.json cannot be read"),
    ],
)
def test_a_file_that_was_damaged_by_hand_is_named(not_published, model, file, content, words):
    (model / file).write_text(content)
    assert words in not_published(model)


def test_an_evaluation_of_another_model_is_refused(not_published, trained, evaluation, tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(evaluation, folder)
    results = json.loads((folder / "results.json").read_text())
    fingerprint = results["fingerprint"]
    fingerprint["model"] = [entry.replace("adapter_model", "x") for entry in fingerprint["model"]]
    (folder / "results.json").write_text(json.dumps(results))
    assert "its weights are others" in not_published(trained, "--evaluation", folder)


def plant(file, secret):
    """Write a secret as a value into a JSON file, or as a line into another."""
    text = file.read_text()
    if file.suffix != ".json":
        file.write_text(f"{text}\nnote: {secret}\n")
        return
    value = json.loads(text)
    file.write_text(json.dumps([*value, {"note": secret}] if isinstance(value, list) else {**value, "note": secret}))


# Where it lies, what it is, and what the refusal says. None of these tokens was ever one.
PLANTED = {
    "a token in the recipe": ("recipe.yaml", "hf_" + "a1B2" * 9, "a Hugging Face token"),
    "a token in the manifest": ("run_manifest.json", "ghp_" + "a1B2" * 9, "a GitHub token"),
    "a key in the adapter's configuration": ("adapter_config.json", "sk-" + "a1B2" * 9, "an API key"),
    "an AWS key": ("history.json", "AKIA" + "ABCD" * 4, "an AWS key"),
    "a private key": ("prompt_format.json", "-----BEGIN RSA PRIVATE KEY-----", "a private key"),
    "a password in an address": ("recipe.yaml", "https://jane:hunter2@proxy.lab/x", "a password in an address"),
    "a path": ("run_manifest.json", "/scratch/jane/PMC-VQA", "the path /scratch/jane/PMC-VQA"),
    "a path under a home folder": ("recipe.yaml", "~/data/PMC-VQA", "the path ~/data/PMC-VQA"),
    "a Windows path": ("run_manifest.json", "C:\\Users\\jane", "the path C:"),
    "a path in the tokenizer's configuration": ("tokenizer_config.json", "/mnt/models/base", "the path /mnt"),
    "a user's name": ("run_manifest.json", "run of jdoe, third", "the user name jdoe"),
    "a user's name in a name": ("recipe.yaml", "runs_JDoe_3", "the user name jdoe"),
    "a token in an address": ("recipe.yaml", "https://0123456789abcdef@proxy.lab/x", "a password in an address"),
    "a path behind a bar": ("history.json", "a|/scratch/jane/x", "the path /scratch/jane/x"),
    "a secret of the environment": ("chat_template.jinja", "tr0ub4dor&3", "a secret of this environment"),
    "a secret of the environment in the vocabulary": ("tokenizer.json", "tr0ub4dor&3", "a secret of this"),
}


@pytest.mark.parametrize("planted", PLANTED)
def test_what_should_stay_here_stays_here(planted, not_published, model, tmp_path, monkeypatch):
    file, secret, words = PLANTED[planted]
    monkeypatch.setenv("LAB_API_KEY", "tr0ub4dor&3")
    monkeypatch.setenv("USER", "jdoe")
    plant(model / file, secret)
    line = not_published(model, repo="lab/pmc-vqa")
    assert words in line
    assert file in line
    if "path" not in planted and "name" not in planted:
        assert secret not in line  # the refusal does not tell it either
    assert not (tmp_path / "staged/lab--pmc-vqa").exists()


def test_a_secret_in_the_metadata_of_weights_is_refused(not_published, model):
    from safetensors.torch import load_file, save_file

    weights = model / "adapter_model.safetensors"
    save_file(load_file(weights), weights, metadata={"format": "pt", "from": "/home/jane/run"})
    assert "adapter_model.safetensors, line 1: the path /home/jane/run" in not_published(model)


def test_words_that_only_look_like_paths_or_names_are_left_alone(tmp_path, monkeypatch):
    from sft.publishing.leaks import find_leaks

    monkeypatch.setenv("USER", "max")
    (tmp_path / "config.json").write_text('{"max_length": 1, "think": "</think>", "url": "https://hf.co/max/model"}')
    (tmp_path / "tokenizer.json").write_text('{"vocab": {"/usr/bin": 1, "/home": 2}}')
    (tmp_path / "chat_template.jinja").write_text("{{ '<|im_end|>' }}{# a/b and/or c #}")
    assert find_leaks(tmp_path, published=("max/model",)) == []
    # Whoever publishes under the own name gives it away; and it may be a word that the file's writer chose.
    (tmp_path / "config.json").write_text('{"max": 1, "dataset_name": "max/PMC-VQA-Processed"}')
    assert find_leaks(tmp_path, published=("max/model",)) == []
    assert find_leaks(tmp_path, published=("lab/model", "max/PMC-VQA-Processed")) == []
    assert find_leaks(tmp_path, published=("lab/model",)) == ["config.json: the user name max"]


def test_paths_of_this_machine_are_taken_out_of_a_manifest():
    from sft.common.command import strip_local_paths

    manifest = {
        "a": "/data/jane/PMC-VQA/",
        "b": ["~/x/recipe.yaml", "recipes/x.yaml"],
        "c": '{"/m/A": 1.0}',
        "d": None,
    }
    stripped = {"a": "PMC-VQA", "b": ["recipe.yaml", "recipes/x.yaml"], "c": '{"A": 1.0}', "d": None}
    assert strip_local_paths(manifest) == stripped
    assert strip_local_paths("../elsewhere/PMC-VQA") == "PMC-VQA"
    assert strip_local_paths("deepseek-ai/DeepSeek-R1-Distill-Llama-8B") == "deepseek-ai/DeepSeek-R1-Distill-Llama-8B"


# Two processes, as the recipe is launched; the model comes from the server and goes back to it.
def pushing(command, hub, toy_options, recipe, out, **environment):
    launch = {"pmcvqa_ddp": "ddp", "pmcvqa_zero2": "zero2"}[recipe]
    return command(
        *("accelerate", "launch", "--config_file", f"accelerate_configs/{launch}.yaml", "--num_processes", 2),
        *("sft/run.py", *toy_options(recipe), "--model_name_or_path", BASE, "--eval_steps", 4, "--save_steps", 4),
        *("--output_dir", out, "--push_to_hub", "yes", "--hub_model_id", REPO),
        **{**hub.environment, **KNOWN, **environment},
    )


def test_a_run_on_two_processes_publishes_its_model_once_when_it_is_done(
    command, hub, toy_options, tiny_deepseek, tmp_path
):
    commit = hub.add("models", BASE, tiny_deepseek)
    done = succeed(pushing(command, hub, toy_options, "pmcvqa_zero2", tmp_path / "out"))
    repo = hub.model(REPO)
    assert len(repo.commits) == 2
    assert repo.private
    assert sum("/commit/" in place for place in hub.requests) == 1  # of two processes, one
    config = json.loads(repo.files["adapter_config.json"])
    assert (config["base_model_name_or_path"], config["revision"]) == (BASE, commit)
    final = tmp_path / "out/final_model"
    assert repo.files["adapter_model.safetensors"] == (final / "adapter_model.safetensors").read_bytes()
    assert "first answers the same" in done.stdout
    assert "hf_known" not in done.stdout + done.stderr
    for file in (tmp_path / "out").rglob("*.json"):
        assert "hf_known" not in file.read_text()


def test_a_run_on_two_processes_that_could_not_publish_is_refused_before_it_trains(
    command, here_on_hub, hub, toy_options, tiny_deepseek, tmp_path
):
    hub.add("models", BASE, tiny_deepseek)
    done = pushing(command, hub, toy_options, "pmcvqa_ddp", tmp_path / "out", **READ_ONLY)
    assert done.returncode != 0
    assert "hub_model_id someone/pmc-vqa: your token may only read" in done.stderr
    # A fine-grained token does not tell what it may do; the repository is made first, which tells.
    hub.faults.append(Fault("POST", "/repos/create", 403))
    words = ("sft/run.py", *toy_options("pmcvqa_ddp"), "--model_name_or_path", BASE, "--output_dir", tmp_path / "out")
    line = the_line(here_on_hub(*words, "--push_to_hub", "yes", "--hub_model_id", REPO, **KNOWN))
    assert "hub_model_id someone/pmc-vqa cannot be made: your token may not write there" in line
    assert not (tmp_path / "out").exists()
