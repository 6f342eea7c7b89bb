"""Evaluation of a model that sees: with its figures and without, in numbers that show whether it looks."""

import csv
import json
import shutil
import zipfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sft.common.chat_template import encode, render
from sft.common.data import load_split
from sft.common.figures import Figures
from sft.common.models import load_model, load_tokenizer
from sft.common.vision import conversation_of, load_vision, vision_of
from sft.evaluation.tasks import CONDITIONS, shown_under
from sft.inference import likelihood
from sft.inference.generation import Sampling, generate
from sft.inference.likelihood import option_log_likelihoods, option_tokens
from sft.training.vision import prompts_of

N = 24
COLUMNS = "question=question, options=options, answer=answer, figure=figure"


@pytest.fixture(scope="module")
def evaluated(tiny_seeing, figures, succeeds, tmp_path_factory):
    """(folder, output) of an evaluation of a tiny Qwen3-VL in all four conditions."""
    out = tmp_path_factory.mktemp("evaluated")
    words = ("--model_path", tiny_seeing("qwen3_vl"), "--dataset_path", figures, "--num_samples", N)
    done = succeeds("sft/evaluate.py", *words, "--figures", *CONDITIONS, "--output_dir", out, "--name", "all")
    return out / "all", done.stdout


def test_results_table_and_page_show_every_condition(evaluated):
    folder, printed = evaluated
    results = json.loads((folder / "results.json").read_text())
    score = results["scores"]["option_likelihood"]
    real, *others = score["by_figures"]
    assert [row["figures"] for row in score["by_figures"]] == list(CONDITIONS)
    assert (real["accuracy"], real["ci95"]) == (score["accuracy"], score["ci95"])
    predictions = pq.read_table(folder / "predictions.parquet").to_pydict()
    for row in others:
        answers = predictions[f"option_likelihood_{row['figures']}_answer"]
        right = [answer == gold for answer, gold in zip(answers, predictions["gold"], strict=True)]
        assert row["accuracy"] == pytest.approx(sum(right) / N)
        assert row["difference"]["difference"] == pytest.approx(real["accuracy"] - row["accuracy"])
        pairs = list(zip(answers, predictions["option_likelihood_answer"], strict=True))
        assert row["answers_changed"] == pytest.approx(sum(a != b for a, b in pairs) / N)
        assert f"option likelihood, {row['figures']}" in printed
    page = (folder / "report.html").read_text()
    assert "With its figures and without" in page
    assert page.count('<img src="data:image/jpeg;base64,') == page.count("<figcaption>") > 4
    assert "http" not in page.split("</style>")[1].replace("http://www.w3.org", "")
    with Image.open(folder / "figures.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("L").getcolors(256)) > 50


def test_the_same_evaluation_gives_the_same_bytes(evaluated, tiny_seeing, figures, succeeds, tmp_path):
    words = ("--model_path", tiny_seeing("qwen3_vl"), "--dataset_path", figures, "--num_samples", N)
    succeeds("sft/evaluate.py", *words, "--figures", *CONDITIONS, "--output_dir", tmp_path, "--name", "all")
    for name in ("results.json", "predictions.parquet", "report.html", "figures.png"):
        assert (tmp_path / "all" / name).read_bytes() == (evaluated[0] / name).read_bytes()


class Case:
    """A tiny model that sees, and test questions."""

    def __init__(self, folder: Path, figures: Path):
        self.folder, self.questions = folder, load_split(str(figures), "test").select(range(6)).to_list()
        self.tokenizer = load_tokenizer(str(folder))
        load_vision(str(folder), self.tokenizer, Figures([str(figures)]))
        self.model, _ = load_model(str(folder), "float32", self.tokenizer)
        self.vision = vision_of(self.tokenizer)


@pytest.fixture(scope="module", params=["llava", "qwen3_vl"])
def case(request, tiny_seeing, figures):
    return Case(tiny_seeing(request.param), figures)


def test_each_condition_shows_what_it_says(case):
    shown = {condition: shown_under(condition, case.questions) for condition in CONDITIONS}
    read = {condition: case.vision.read(prompts_of(case.tokenizer, shown[condition]), "right") for condition in shown}
    mark = case.tokenizer.convert_tokens_to_ids(case.vision.image_token)
    for condition in ("shuffled", "blank"):
        # Other pixels behind the same words.
        assert torch.equal(read[condition]["input_ids"], read["real"]["input_ids"])
        assert not torch.equal(read[condition]["pixel_values"], read["real"]["pixel_values"])
    channels = read["blank"]["pixel_values"].unflatten(1, (3, -1)).flatten(2)
    assert channels.std(-1).max() < 1e-6  # one colour
    assert "pixel_values" not in read["none"]
    assert not (read["none"]["input_ids"] == mark).any()
    assert case.tokenizer.decode(read["none"]["input_ids"][0]).count(case.questions[0]["question"]) == 1
    articles = {q["images"][0]: q["article"] for q in case.questions}
    for own, other in zip(case.questions, shown["shuffled"], strict=True):
        assert articles[other["images"][0]] != own["article"]


@pytest.mark.parametrize(("answer_format", "continued"), [("letter_text", True), ("text", True), ("text", False)])
def test_option_scores_are_those_of_each_whole_row_alone(case, answer_format, continued, monkeypatch):
    """Also of options of several tokens behind figures, whose positions are no numbers of tokens in Qwen3-VL.

    Whether the cache of a prompt is continued by its options or, as some families need, each row is read anew.
    """
    if not continued:
        monkeypatch.setattr(likelihood, "_can_be_continued", lambda cache, length: False)
    questions = [q | {"answer_format": answer_format} for q in case.questions]
    scores = dict(option_log_likelihoods(case.model, case.tokenizer, questions, batch_size=4))
    for index, q in enumerate(questions):
        tokens = option_tokens(case.tokenizer, [q])[0]["options"]
        prompt = case.vision.read(prompts_of(case.tokenizer, [q]), "right")
        prompt.pop("mm_token_type_ids", None)
        for option, score in zip(tokens, scores[index], strict=True):
            inputs = {**prompt, "input_ids": torch.cat([prompt["input_ids"], torch.tensor([option])], 1)}
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if "pixel_values" in inputs and "image_grid_thw" in inputs:
                mark = case.model.config.image_token_id
                inputs["mm_token_type_ids"] = (inputs["input_ids"] == mark).long()
            with torch.no_grad():
                logits = case.model(**inputs).logits.log_softmax(-1)[0, -len(option) - 1 : -1]
            expected = logits.gather(-1, torch.tensor(option)[:, None]).sum().item()
            assert score == pytest.approx(expected, abs=1e-3)


def test_an_answer_is_written_in_a_batch_as_alone(case):
    sampling = Sampling(8, 0.0, 1.0, 0)
    texts = render(case.tokenizer, [conversation_of(case.tokenizer, q) for q in case.questions], True)
    ids = encode(case.tokenizer, texts)
    prompts = [
        case.vision.prompt(q, text, len(tokens)) for q, text, tokens in zip(case.questions, texts, ids, strict=True)
    ]
    together = generate(case.model, case.tokenizer, prompts, sampling)
    alone = [generate(case.model, case.tokenizer, [prompt], sampling)[0] for prompt in prompts]
    assert [turn.text for turn in together] == [turn.text for turn in alone]


def test_generated_answers_are_compared_between_conditions_too(tiny_seeing, figures, succeeds, tmp_path):
    words = ("--model_path", tiny_seeing("llava"), "--dataset_path", figures, "--num_samples", 4)
    options = ("--method", "generation", "--max_new_tokens", 4, "--figures", "real", "none", "--output_dir", tmp_path)
    succeeds("sft/evaluate.py", *words, *options, "--name", "e")
    results = json.loads((tmp_path / "e/results.json").read_text())
    assert [row["figures"] for row in results["scores"]["generation"]["by_figures"]] == ["real", "none"]


def test_a_model_that_does_not_look_is_called_so(figures, tiny_seeing, succeeds, tmp_path):
    from safetensors.torch import load_file, save_file

    blind = shutil.copytree(tiny_seeing("llava"), tmp_path / "blind")
    weights = load_file(blind / "model.safetensors")
    for name in weights:
        if "multi_modal_projector.linear_2" in name:
            weights[name].zero_()
    save_file(weights, blind / "model.safetensors", metadata={"format": "pt"})
    words = ("--model_path", blind, "--dataset_path", figures, "--num_samples", N, "--output_dir", tmp_path)
    done = succeeds("sft/evaluate.py", *words, "--figures", "real", "shuffled", "--name", "e")
    assert "nothing shows that the model uses its figures" in " ".join(done.stdout.split())
    assert '"answers_changed": 0.0' in (tmp_path / "e/results.json").read_text()


def test_a_blind_model_is_compared_with_a_sighted_one_on_the_same_questions(
    evaluated, tiny_deepseek, figures, succeeds, tmp_path
):
    words = ("--model_path", tiny_deepseek, "--dataset_path", figures, "--num_samples", N, "--output_dir", tmp_path)
    succeeds("sft/evaluate.py", *words, "--name", "text")
    assert "by_figures" not in (tmp_path / "text/results.json").read_text()
    done = succeeds("sft/compare.py", tmp_path / "text", evaluated[0])
    assert "McNemar" in done.stdout


@pytest.mark.parametrize(
    ("model", "data", "options", "message"),
    [
        ("text", "figures", ("real",), "reads text alone: leave it out"),
        ("llava", "text", ("real",), "has no figures: prepare it with --figures, or ask without"),
        ("llava", "figures", ("real", "real"), "--figures: a condition stands twice"),
    ],
)
def test_conditions_that_model_or_data_do_not_have_are_refused(
    model, data, options, message, tiny_seeing, tiny_deepseek, figures, few_dev, refused, tmp_path
):
    folder = tiny_deepseek if model == "text" else tiny_seeing(model)
    words = ("--model_path", folder, "--dataset_path", figures if data == "figures" else few_dev)
    line = refused("sft/evaluate.py", *words, "--figures", *options, "--output_dir", tmp_path)
    assert message in line


def test_a_model_is_not_asked_with_figures_of_another_size_than_it_was_trained_on(
    recipe_run, figures, refused, tmp_path
):
    model = shutil.copytree(recipe_run("quickstart_vision")[0] / "final_model", tmp_path / "model")
    config = json.loads((model / "processor_config.json").read_text())
    config["image_processor"]["image_mean"] = [0.1, 0.1, 0.1]
    (model / "processor_config.json").write_text(json.dumps(config))
    line = refused("sft/evaluate.py", "--model_path", model, "--dataset_path", figures, "--output_dir", tmp_path)
    assert "was trained on figures of other sizes or colours than its processor makes" in line


def test_real_radiology_questions_are_prepared_trained_and_evaluated_in_every_condition(
    shared_rows, tiny_seeing, toy_options, succeeds, tmp_path
):
    source = shared_rows.parent / "vqa_rad"
    with zipfile.ZipFile(source / "figures.zip") as archive:
        held = {Path(name).name for name in archive.namelist()}
    raw = tmp_path / "raw"
    raw.mkdir()
    for split, count in (("train", 60), ("test", 12)):
        with open(source / f"{split}.csv", newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["img_name"] in held]
        closed = [row for row in rows if row["answer"].strip().lower() in ("yes", "no")][:count]
        assert len(closed) == count
        with open(raw / f"{split}.jsonl", "w", encoding="utf-8") as file:
            for row in closed:
                answer = row["answer"].strip().capitalize()
                question = {"question": row["question"], "options": ["Yes", "No"], "answer": answer}
                file.write(json.dumps(question | {"figure": row["img_name"]}) + "\n")
    prepared = tmp_path / "prepared"
    words = ("--dataset_path", raw, "--figures", source / "figures.zip", "--output_dir", prepared)
    succeeds("data_prep/prepare.py", *words, "--columns", COLUMNS, "--dev_size", "8")
    out = tmp_path / "out"
    six = ("--max_steps", "6", "--eval_steps", "6", "--save_steps", "6", "--dataloader_num_workers", "1")
    succeeds("sft/run.py", *toy_options("pmcvqa_vl", prepared), *six, "--max_length", "1024", "--output_dir", out)
    words = ("--model_path", out / "final_model", "--dataset_path", prepared, "--output_dir", tmp_path)
    succeeds("sft/evaluate.py", *words, "--figures", *CONDITIONS, "--name", "e")
    results = json.loads((tmp_path / "e/results.json").read_text())
    assert [row["n"] for row in results["scores"]["option_likelihood"]["by_figures"]] == [12] * 4
