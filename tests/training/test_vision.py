"""Training on figures: what is trained is what is asked, a model that does not look is refused, and nothing is cut."""

import json
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sft.common.chat_template import IGNORED, split_completions
from sft.common.command import UserError
from sft.common.data import load_split
from sft.common.figures import Figures
from sft.common.models import load_model, load_tokenizer
from sft.common.vision import in_parts, load_vision, vision_of, with_other_figures
from sft.training.base_model import for_base_model
from sft.training.config import resolve
from sft.training.launch import Launch
from sft.training.vision import (
    FigureCollator,
    check_collated,
    check_sighted,
    checked_lengths,
    prompts_of,
    token_spread,
    with_pictures,
)

FAMILIES = ["llava", "qwen3_vl"]
RUN = ("sft/run.py", "recipes/quickstart_vision.yaml", "--max_steps", "2", "--bf16", "no", "--dtype", "float32")


class Case:
    """A tiny model that sees, its tokenizer with the figures, and some training rows."""

    def __init__(self, folder: Path, figures: Path):
        self.folder, self.rows = folder, load_split(str(figures), "train").select(range(12))
        self.tokenizer = load_tokenizer(str(folder))
        load_vision(str(folder), self.tokenizer, Figures([str(figures)]))

    def collator(self) -> FigureCollator:
        return FigureCollator(vision_of(self.tokenizer).processor, completion_only_loss=True)

    def batch(self, count: int) -> dict:
        return self.collator()(list(with_pictures(self.rows.select(range(count)), self.tokenizer)))

    def model(self):
        return load_model(str(self.folder), "float32")[0]


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, tiny_seeing, figures):
    return Case(tiny_seeing(request.param), figures)


@pytest.fixture(scope="module")
def of_llava(tiny_seeing, figures):
    return Case(tiny_seeing("llava"), figures)


def test_the_trained_tokens_are_the_answer_up_to_the_end_of_the_turn(case):
    batch, tokenizer = case.batch(6), case.tokenizer
    for ids, labels, row in zip(batch["input_ids"], batch["labels"], case.rows, strict=False):
        prompt, completion = in_parts(tokenizer, row["prompt"], 1), in_parts(tokenizer, row["completion"])
        (expected,) = split_completions(tokenizer, [prompt], [completion])
        assert labels[labels != IGNORED].tolist() == expected["completion_ids"]
        assert torch.equal(ids[labels != IGNORED], labels[labels != IGNORED])
        assert expected["completion_ids"][-1] == tokenizer.eos_token_id


def test_the_length_of_every_row_is_that_of_its_tokens_with_the_figures_own(case):
    lengths = checked_lengths(case.rows, case.tokenizer, "train", None, 1)
    # The collator leaves out nothing but what stands behind the end of a turn, which lengths do not count either.
    for length, labels in zip(lengths, case.batch(12)["labels"], strict=True):
        trained = (labels != IGNORED).nonzero()
        assert length == trained[-1, 0] + 1
    message = f"12 of 12 train rows are longer than max_length 3 tokens .longest {max(lengths)}"
    with pytest.raises(UserError, match=message):
        checked_lengths(case.rows, case.tokenizer, "train", 3, 1)


def trainer_with(collator, completion_only_loss=True):
    """What `check_collated` reads of a trainer."""
    from types import SimpleNamespace

    return SimpleNamespace(data_collator=collator, args=SimpleNamespace(completion_only_loss=completion_only_loss))


def test_what_is_trained_is_compared_with_what_is_asked_token_by_token_and_pixel_by_pixel(case):
    collator = case.collator()
    check_collated(trainer_with(collator), case.tokenizer, case.rows)

    def other_pixels(examples):
        batch = collator(examples)
        return {**batch, "pixel_values": batch["pixel_values"] + 0.1}

    def other_tokens(examples):
        batch = collator(examples)
        batch["input_ids"][:, 0] += 1
        return batch

    with pytest.raises(UserError, match="pixel_values of the trained rows are not those of evaluation"):
        check_collated(trainer_with(other_pixels), case.tokenizer, case.rows)
    with pytest.raises(UserError, match="is trained behind other tokens than evaluation and inference write"):
        check_collated(trainer_with(other_tokens), case.tokenizer, case.rows)


def test_a_model_that_no_figure_moves_is_refused_as_blind(case):
    model = case.model()
    check_sighted(model, case.tokenizer, case.rows)
    assert token_spread(model, case.tokenizer, case.rows.to_list()) > 0
    mark = case.tokenizer.convert_tokens_to_ids(vision_of(case.tokenizer).image_token)

    class WithoutFigures(torch.nn.Module):
        device = model.device

        def forward(self, input_ids, attention_mask, logits_to_keep, **figures):
            text = input_ids.masked_fill(input_ids == mark, case.tokenizer.pad_token_id)
            return model(input_ids=text, attention_mask=attention_mask, logits_to_keep=logits_to_keep)

    with pytest.raises(UserError, match="the model is blind: no logit moves"):
        check_sighted(WithoutFigures(), case.tokenizer, case.rows)


def test_the_spread_of_a_collapsed_tower_is_zero(of_llava):
    model = of_llava.model()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight.zero_()
        model.model.multi_modal_projector.linear_2.bias.fill_(1)
    assert token_spread(model, of_llava.tokenizer, of_llava.rows.to_list()) == pytest.approx(0, abs=1e-6)


def test_the_adapter_is_on_the_language_model_alone_and_the_processor_goes_with_it(recipe_run):
    out, done = recipe_run("pmcvqa_vl")
    assert "Trained by part: vision tower none, projector none, language model" in done.stdout
    assert all("language_model" in name for name in load_file(out / "final_model/adapter_model.safetensors"))
    manifest, fingerprints = json.loads((out / "run_manifest.json").read_text()), []
    for folder in (out / "final_model", out / "checkpoint-4"):
        assert (folder / "processor_config.json").is_file()
        fingerprints.append(json.loads((folder / "prompt_format.json").read_text())["figures"])
    assert fingerprints == [manifest["figures"]] * 2
    assert manifest["figure_settings"]["patch_size"] == 16
    (measured,) = [
        row
        for row in json.loads((out / "history.json").read_text())
        if row.get("step") == 2 and "eval_figure_spread" in row
    ]
    assert 0 <= measured["eval_answers_changed"] <= 1
    assert measured["eval_figure_spread"] > 0


def test_the_vision_tower_and_the_output_layer_are_not_quantised(recipe_run):
    for recipe, kind in (("pmcvqa_vl_8b", "int8"), ("pmcvqa_vl_16gb", "uint8")):
        _, done = recipe_run(recipe)
        assert kind in done.stdout
    model, _ = load_model(str(recipe_run("pmcvqa_vl_16gb")[0] / "final_model"), quantization="4bit")
    quantised = {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}
    assert quantised
    assert all("language_model" in name for name in quantised)


def weakened(folder: Path, to: Path, factor: float) -> Path:
    """A copy of a LLaVA model whose figures weigh so much less."""
    shutil.copytree(folder, to)
    weights = load_file(to / "model.safetensors")
    for name in weights:
        if "multi_modal_projector.linear_2" in name:
            weights[name] *= factor
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_a_blind_run_is_refused_before_its_first_step(tiny_seeing, figures, refused, tmp_path):
    blind = weakened(tiny_seeing("llava"), tmp_path / "blind", 0)
    options = ("--model_name_or_path", blind, "--dataset_name", figures, "--output_dir", tmp_path / "out")
    line = refused(*RUN, *options)
    assert "the model is blind: no logit moves when the figures of questions are exchanged" in line
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_run_whose_answers_do_not_depend_on_figures_is_stopped_at_its_first_evaluation(
    tiny_seeing, figures, refused, tmp_path
):
    blind = weakened(tiny_seeing("llava"), tmp_path / "blind", 1e-5)
    options = ("--model_name_or_path", blind, "--dataset_name", figures, "--output_dir", tmp_path / "out")
    line = refused(*RUN, *options, "--eval_strategy", "steps", "--eval_steps", "2", "--save_strategy", "steps")
    assert "the model has become blind: of 48 dev answers" in line
    assert "after step 2: freeze the vision tower" in line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--packing yes --max_length 512", "packing: rows with figures cannot be packed: set packing: false"),
        ("--pad_to_multiple_of 8", "pad_to_multiple_of has no effect on rows with figures"),
        ("--lora_modules_to_save multi_modal_projector", "is of the model's projector, which the learning rate"),
        ("--lora_modules_to_save out_proj", "is of the model's vision tower, which the learning rate"),
    ],
)
def test_settings_that_figures_do_not_bear_are_refused(options, message, tiny_seeing):
    base = ("--model_name_or_path", str(tiny_seeing("llava")))
    settings = resolve(["recipes/quickstart_vision.yaml", *base, *options.split()])
    with pytest.raises(UserError, match=message):
        for_base_model(settings, Launch())


def test_sharded_weights_are_refused_with_figures(tiny_seeing):
    settings = resolve(["recipes/pmcvqa_vl.yaml", "--model_name_or_path", str(tiny_seeing("qwen3_vl"))])
    with pytest.raises(UserError, match="DeepSpeed ZeRO-3, 2 processes with figures is not supported"):
        for_base_model(settings, Launch(kind="deepspeed", processes=2, zero_stage=3))


def test_rows_without_figures_are_refused_and_read_as_text_where_that_is_meant(
    few_dev, tiny_seeing, refused, succeeds, tmp_path
):
    options = ("--model_name_or_path", tiny_seeing("llava"), "--dataset_name", few_dev)
    line = refused(*RUN, *options, "--output_dir", tmp_path / "refused")
    assert "have no figures, and the model sees: prepare the data set with --figures, or train this model on" in line
    succeeds(*RUN, *options, "--figures", "no", "--mcq_eval_samples", "4", "--output_dir", tmp_path / "text")
    assert json.loads((tmp_path / "text/run_manifest.json").read_text())["figures"] is None


def test_a_figure_that_the_archive_lacks_is_named_before_the_model_is_loaded(figures, tiny_seeing, refused, tmp_path):
    folder = shutil.copytree(figures, tmp_path / "lacks")
    with zipfile.ZipFile(figures / "figures.zip") as old, zipfile.ZipFile(folder / "figures.zip", "w") as new:
        first, *others = old.namelist()
        for name in others:
            new.writestr(name, old.read(name))
    options = ("--model_name_or_path", tiny_seeing("llava"), "--dataset_name", folder)
    line = refused(*RUN, *options, "--output_dir", tmp_path / "out")
    assert f"lacks {first}, which a" in line


def test_the_mark_of_a_figure_in_a_question_is_refused(of_llava):
    rows = of_llava.rows.select(range(2)).to_list()
    rows[0]["prompt"][-1]["content"] += " <jupyter_output>"
    from datasets import Dataset

    with pytest.raises(UserError, match="<jupyter_output>, stands in it 2 times: take the mark out of its text"):
        checked_lengths(Dataset.from_list(rows), of_llava.tokenizer, "train", None, 1)


def test_a_checkpoint_of_other_pixels_is_not_continued(recipe_run, toy_options, tiny_seeing, refused, tmp_path):
    out = shutil.copytree(recipe_run("pmcvqa_vl")[0], tmp_path / "out")
    shutil.rmtree(out / "final_model")
    other = shutil.copytree(tiny_seeing("qwen3_vl"), tmp_path / "other" / "tiny-qwen3_vl")
    config = json.loads((other / "processor_config.json").read_text())
    config["image_processor"]["size"]["longest_edge"] = 2048
    (other / "processor_config.json").write_text(json.dumps(config))
    words = ("sft/run.py", *toy_options("pmcvqa_vl"), "--model_name_or_path", other, "--output_dir", out)
    line = refused(*words, "--resume_from_checkpoint", "auto")
    assert "what makes pixels of figures" in line


def test_other_figures_are_of_another_article_and_always_the_same():
    questions = [{"id": str(i), "article": f"PMC{i % 7}", "images": [f"{i}.jpg"]} for i in range(30)]
    article = {q["images"][0]: q["article"] for q in questions}
    exchanged = with_other_figures(questions)
    assert all(article[new["images"][0]] != old["article"] for new, old in zip(exchanged, questions, strict=True))
    assert exchanged == with_other_figures(questions)
    assert exchanged != with_other_figures(questions, seed=1)
    with pytest.raises(UserError, match="all of one article"):
        with_other_figures(questions[::7])


def test_one_prompt_is_read_alone_as_in_a_batch(case):
    """Padding beside longer rows changes no input of a row."""
    vision = vision_of(case.tokenizer)
    prompts = prompts_of(case.tokenizer, case.rows.select(range(3)).to_list())
    together = vision.read(prompts, "right")
    for index, prompt in enumerate(prompts):
        alone = vision.read([prompt], "right")
        length = alone["input_ids"].shape[1]
        assert torch.equal(together["input_ids"][index, :length], alone["input_ids"][0])
        assert together["attention_mask"][index].sum() == length
