"""One published adapter, loaded from the Hub by everything that users load it with, gives one answer."""

import json
import os
import subprocess
import sys
import urllib.request

from tests.hub import KNOWN
from tests.inference.test_server import serving

REPO, BASE = "someone/pmc-vqa", "someone/tiny-base"
QUESTION, CHOICES = "Which stain shows iron?", ["Congo red", "Prussian blue", "Oil Red O", "Von Kossa"]
TOKENS = 12

# What the card tells users to write, in float32, so that batches and caches round alike.
PLAIN = """
import json, sys
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1], dtype="float32")
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
messages = [{"role": "user", "content": sys.argv[2]}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**prompt, max_new_tokens=int(sys.argv[3]), do_sample=False)
print("ANSWER", json.dumps(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True)))
"""
# transformers alone, which finds PEFT by itself.
BY_TRANSFORMERS = PLAIN.replace("from peft import AutoPeftModelForCausalLM", "").replace(
    "import AutoTokenizer", "import AutoModelForCausalLM, AutoTokenizer"
).replace("AutoPeftModelForCausalLM", "AutoModelForCausalLM")  # fmt: skip


def plainly(program, message, environment, model=REPO):
    """The answer of a program of a few lines, in a process of its own."""
    words = [sys.executable, "-c", program, model, message, str(TOKENS)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("ANSWER ")[2])


def by_server(message, environment, log):
    """The answer of `transformers serve`, asked over HTTP."""
    options = {"model": REPO, "max_tokens": TOKENS, "temperature": 0, "stream": False}
    body = json.dumps({**options, "messages": [{"role": "user", "content": message}]}).encode()
    with serving(REPO, log, environment) as address:
        request = urllib.request.Request(f"{address}/chat/completions", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=1800) as answer:
            return json.load(answer)["choices"][0]["message"]["content"]


def test_a_published_adapter_gives_one_answer_wherever_it_is_loaded(
    command, here_on_hub, hub, trained, tiny_deepseek, tmp_path
):
    from sft.common.chat_template import split_thinking
    from sft.common.models import prompt_format
    from sft.common.prompts import prompt_messages

    hub.add("models", BASE, tiny_deepseek)
    options = ("--repo", REPO, "--base_model", BASE, "--output_dir", tmp_path)
    done = here_on_hub("sft/publish.py", "--model_path", trained, *options, **KNOWN)
    assert done.returncode == 0, done.stderr
    # Somebody else: an empty cache, and a token that may only read.
    hub.model(REPO).private = False
    environment = {**os.environ, **hub.environment, "HF_HOME": str(tmp_path / "elsewhere")}

    (message,) = prompt_messages(QUESTION, CHOICES, prompt_format(str(trained)))
    expected = plainly(PLAIN, message["content"], environment)
    assert plainly(BY_TRANSFORMERS, message["content"], environment, BASE) != expected  # the adapter is what answers
    assert plainly(BY_TRANSFORMERS, message["content"], environment) == expected
    assert by_server(message["content"], environment, tmp_path / "serve.log") == expected
    words = ("--question", QUESTION, "--choices", *CHOICES, "--temperature", 0, "--max_new_tokens", TOKENS, "--json")
    done = command("sft/infer.py", "--model_path", REPO, "--dtype", "float32", *words, **environment)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    # The prompt opened the think block, so the others do not return its first tag.
    assert (answer["reasoning"], answer["text"]) == split_thinking(f"<think>\n{expected}")
