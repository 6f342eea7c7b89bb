"""Without a network: what is in the Hub's cache loads at once, and everything else is refused at once."""

import json
import os
import shutil
import socket

import pytest

from sft.common.command import UserError
from tests.hub import DROP, KNOWN, Fault

COMMIT, OTHER = "0123456789abcdef" * 2 + "01234567", "f" * 40


@pytest.fixture
def network(monkeypatch, tmp_path):
    """The address of a Hub that refuses connections, in a process that knows nothing of it; pauses fail a test."""
    import datasets
    from huggingface_hub import constants

    from sft.common import hub

    with socket.socket() as taken:  # bound and not listening: nobody else answers there
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        hub.unreached.cache_clear()
        monkeypatch.setenv("HF_HUB_OFFLINE", "")
        for module, name in ((constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
            monkeypatch.setattr(module, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(module, name, endpoint)
        place = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        # So does the client wait between its tries.
        monkeypatch.setattr("time.sleep", lambda pause: pytest.fail(f"a pause of {pause} s"))
        yield
        hub.unreached.cache_clear()


@pytest.fixture
def cached(network, tmp_path):
    """Put a folder into the cache, as the newest version of a repository that was loaded with a network."""

    def put(kind: str, repo: str, folder) -> None:
        place = tmp_path / "hub" / "--".join([kind, *repo.split("/")])
        shutil.copytree(folder, place / "snapshots" / COMMIT)
        (place / "refs").mkdir()
        (place / "refs/main").write_text(COMMIT)

    return put


def check(line: str) -> None:
    """Fail unless a refusal says what there is to do."""
    assert "it is not in the cache, and the Hub cannot be reached" in line
    assert "Connection refused" in line
    assert "on a machine that is always offline, set HF_HUB_OFFLINE=1" in line
    assert line.endswith("or give a local folder")


NOTHING = "nobody/nothing"
REFUSED = {
    "a model to ask": "sft/infer.py --model_path NOTHING --question Why?",
    "a model to measure": "sft/evaluate.py --model_path NOTHING --dataset_path PREPARED",
    "data to measure with": "sft/evaluate.py --model_path MODEL --dataset_path NOTHING",
    "a model to merge": "sft/merge.py --model_path NOTHING --output_dir OUT",
    "a model to train": "sft/run.py RECIPE --model_name_or_path NOTHING --dataset_name PREPARED --output_dir OUT",
    "data to train on": "sft/run.py RECIPE --model_name_or_path MODEL --dataset_name NOTHING --output_dir OUT",
    "a model to plan": "sft/preflight.py RECIPE --model_name_or_path NOTHING --dataset_name PREPARED --output_dir OUT",
    "a tokenizer to prepare for": "data_prep/prepare.py --check --dataset_path SAMPLE --tokenizer NOTHING",
    "data to read": "data_prep/prepare.py --dataset_path NOTHING --format pmc_vqa_v1 --revision SHA --output_dir OUT",
    "a tokenizer to look with": "data_prep/preview.py PREPARED --tokenizer NOTHING",
    "data to look at": "data_prep/preview.py NOTHING --tokenizer MODEL",
}


@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED)
def test_what_is_not_in_the_cache_is_refused_without_a_pause(
    refused, network, tiny_deepseek, prepared, sample, tmp_path, command
):
    places = {"MODEL": tiny_deepseek, "PREPARED": prepared, "SAMPLE": sample, "OUT": tmp_path / "out"}
    places |= {"NOTHING": NOTHING, "RECIPE": "recipes/quickstart.yaml", "SHA": COMMIT}
    check(refused(*(places.get(word, word) for word in command.split())))
    assert not (tmp_path / "out").exists()


def test_an_adapter_whose_base_is_not_in_the_cache_is_refused_without_a_pause(refused, network, tmp_path):
    adapter = {"base_model_name_or_path": NOTHING, "peft_type": "LORA", "r": 4, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    (tmp_path / "adapter_model.safetensors").touch()
    line = refused("sft/infer.py", "--model_path", tmp_path, "--question", "Why?")
    assert f"is an adapter for {NOTHING}, which cannot be loaded" in line
    check(line)


def test_a_machine_that_says_that_it_is_offline_is_believed(refused, network, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.get_session", lambda: pytest.fail("the Hub is tried"))
    line = refused("sft/infer.py", "--model_path", NOTHING, "--question", "Why?")
    assert "it is not in the cache, and HF_HUB_OFFLINE=1 forbids to contact the Hub: unset it" in line


def test_a_model_in_the_cache_is_asked_at_once(here, cached, tiny_deepseek):
    cached("models", "someone/model", tiny_deepseek)
    words = ("--question", "Why?", "--max_new_tokens", 4, "--thinking", "off", "--json", "--dtype", "float32")
    answers = []
    for model in (tiny_deepseek, "someone/model", f"someone/model@{COMMIT}"):
        done = here("sft/infer.py", "--model_path", model, *words)
        assert done.returncode == 0, done.stderr
        answers.append(json.loads(done.stdout)["text"])
    assert len(set(answers)) == 1
    assert done.stderr.count("\n") < 5  # nothing of tries


def test_a_data_set_in_the_cache_is_read_at_the_version_that_is_named(cached, prepared):
    from sft.common.data import load_split, provenance

    cached("datasets", "someone/questions", prepared)
    rows = load_split(str(prepared), "dev")["id"][:]
    for name in ("someone/questions", f"someone/questions@{COMMIT}"):
        assert load_split(name, "dev")["id"][:] == rows
        assert provenance({name: 1})[0]["splits"]["dev"] == len(rows)
    with pytest.raises(UserError) as refusal:  # and no other version in its place
        load_split(f"someone/questions@{OTHER}", "dev")
    check(str(refusal.value))


def test_what_answers_in_any_way_is_a_network(hub, network, monkeypatch):
    from huggingface_hub import constants

    from sft.common.hub import unreached

    monkeypatch.setattr(constants, "ENDPOINT", hub.environment["HF_ENDPOINT"])
    for way in (404, 503, DROP):
        hub.faults[:] = [Fault("HEAD", "/", way)]
        unreached.cache_clear()  # a process tries once
        assert unreached() == unreached() == ""
        assert not constants.HF_HUB_OFFLINE
    assert len(hub.requests) == 3


def test_a_silent_server_is_waited_for_no_longer_than_the_timeout(network, monkeypatch):
    import datasets
    from huggingface_hub import constants

    from sft.common import hub

    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "the Hub cannot be reached" in hub.unreached()
    assert constants.HF_HUB_OFFLINE
    assert datasets.config.HF_HUB_OFFLINE
    assert os.environ["HF_HUB_OFFLINE"] == "1"  # for processes that are started


def test_what_cannot_be_published_without_a_network_says_why(network, monkeypatch):
    from sft.common.hub import check_push, unreached

    monkeypatch.setenv("HF_TOKEN", KNOWN["HF_TOKEN"])
    assert unreached()
    with pytest.raises(UserError, match=r"the Hub refuses: the Hub cannot be reached .*Connection refused"):
        check_push("--repo", "someone/model", "model", public=False)
