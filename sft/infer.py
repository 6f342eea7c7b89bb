"""Ask a model: one question, or the five built-in ones.

    python sft/infer.py --model_path PMC-VQA-SFT-Output/final_model
    python sft/infer.py --model_path ... --question "Which stain shows iron?" --choices "Congo red" "Prussian blue"

The question is put in the form that the model was trained with. With --choices, the probability of each option is
printed too. Not medical advice.
"""

import argparse
import math
from typing import Any

from data_prep.command import UserError, run
from data_prep.prompts import ANSWER_FORMATS, DEFAULT_ANSWER_FORMAT, LETTERS, prompt_messages

DEMO = [
    ("Which imaging technique uses sound waves?", ["Ultrasound", "Computed tomography", "Scintigraphy", "X-ray"]),
    ("Which stain is used to show iron in tissue?", ["Congo red", "Prussian blue", "Oil Red O", "Giemsa"]),
    ("What does a crescent of blood along the brain surface on CT suggest?",
     ["Subdural hematoma", "Epidural hematoma", "Ischemic stroke", "Hydrocephalus"]),
    ("Which part of the eye becomes cloudy in cataract?", ["Cornea", "Retina", "Lens", "Iris"]),
    ("Which instrument sends electrons through an ultrathin section?",
     ["Confocal microscope", "Transmission electron microscope", "Stereo microscope", "Dark-field microscope"]),
]  # fmt: skip


def check_question(question: str, choices: list[str]) -> None:
    """Raise `UserError` if the question is empty, or the options are not none or two to four different ones."""
    if not question.strip():
        raise UserError("--question is empty")
    if choices and not 2 <= len(choices) <= len(LETTERS):
        raise UserError(f"--choices: give two to four options, or none; found {len(choices)}")
    if not all(choice.strip() for choice in choices) or len(set(choices)) < len(choices):
        raise UserError("--choices: an option is empty or stands twice")


def ask(model: Any, tokenizer: Any, question: str, choices: list[str], answer_format: str, options: Any) -> str:
    """The model's answer, thinking left out. Greedy where ``options.temperature`` is 0, else sampled."""
    import torch

    from sft.chat import token_ids

    ids = torch.tensor(token_ids(tokenizer, [prompt_messages(question, choices, answer_format)], True))
    sampling = {"do_sample": False}
    if options.temperature > 0:
        sampling = {"do_sample": True, "temperature": options.temperature, "top_p": options.top_p}
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=torch.ones_like(ids).to(model.device),
            max_new_tokens=options.max_new_tokens,
            pad_token_id=tokenizer.eos_token_id,
            **sampling,
        )
    text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
    return text.split("</think>")[-1].strip()


def option_probabilities(
    model: Any, tokenizer: Any, question: str, choices: list[str], answer_format: str
) -> list[float]:
    """Softmax over the options' log-likelihoods, as sft/evaluate.py scores them."""
    from sft.scoring import option_log_likelihoods

    row = {"question": question, "choices": choices, "answer_format": answer_format}
    ((_, scores),) = option_log_likelihoods(model, tokenizer, [row], batch_size=1)
    weights = [math.exp(score - max(scores)) for score in scores]
    return [weight / sum(weights) for weight in weights]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_path", required=True, help="base model, adapter or merged model: folder or Hub id")
    parser.add_argument("--question", help="without it, the five built-in questions are asked")
    parser.add_argument("--choices", nargs="+", default=[], help="two to four options, in order A to D")
    parser.add_argument("--answer_format", choices=ANSWER_FORMATS, help="default: as the model was trained")
    parser.add_argument("--chat_template", help="Jinja file; a model tuned here brings its own")
    parser.add_argument("--dtype", choices=["auto", "bfloat16", "float16", "float32"], default="auto")
    parser.add_argument("--max_new_tokens", type=int, default=1024)
    # DeepSeek's advice for its R1 models.
    parser.add_argument("--temperature", type=float, default=0.6, help="0 for the most likely answer")
    parser.add_argument("--top_p", type=float, default=0.95)
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()
    if args.question is None and args.choices:
        raise UserError("--choices goes with --question")
    questions = DEMO if args.question is None else [(args.question, args.choices)]
    for question, choices in questions:
        check_question(question, choices)

    from sft.models import check_model_folder, load_model, prompt_format

    check_model_folder(args.model_path)
    answer_format = args.answer_format or prompt_format(args.model_path) or DEFAULT_ANSWER_FORMAT

    from transformers import set_seed

    model, tokenizer = load_model(args.model_path, args.dtype, args.chat_template)
    for question, choices in questions:
        set_seed(args.seed)
        print(f"\nQ: {question}")
        if choices:
            probabilities = option_probabilities(model, tokenizer, question, choices, answer_format)
            for letter, choice, probability in zip(LETTERS, choices, probabilities, strict=False):
                print(f"   {letter}. {choice:<40} {probability:6.1%} {'#' * round(20 * probability)}")
        print(f"A: {ask(model, tokenizer, question, choices, answer_format, args)}", flush=True)
    print("\nA language model wrote this without seeing any figure. It is not medical advice.")


if __name__ == "__main__":
    run(main)
