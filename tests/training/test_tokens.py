"""What SFTTrainer gets: tokens of checked rows, made once, and again when anything changes that decides them."""

import copy

import pytest
from datasets import load_dataset

from sft.common.command import UserError
from sft.common.template_choice import set_chat_template
from sft.training import tokens
from sft.training.tokens import lengths_of, tokenized


@pytest.fixture(scope="module")
def rows(prepared):
    """A data set as training opens it: in the cache of `datasets`, where its tokens are kept too."""
    return load_dataset(str(prepared))["train"]


def never(*_, **__):
    raise AssertionError("tokenized again")


def test_tokens_are_kept_for_the_next_run(rows, short_tokenizer, monkeypatch):
    first = tokenized(rows, short_tokenizer, "train", None)
    assert lengths_of(first) == [len(ids) for ids in first["input_ids"]]
    assert first.column_names == ["input_ids", "labels"]
    monkeypatch.setattr(tokens, "_tokenize_batch", never)
    assert tokenized(rows, copy.deepcopy(short_tokenizer), "train", None).to_dict() == first.to_dict()


def test_several_processes_make_the_same_tokens(rows, short_tokenizer, monkeypatch):
    one = tokenized(rows, short_tokenizer, "train", None, num_proc=1).to_dict()
    monkeypatch.setattr(tokens, "ROWS_PER_PROCESS", 2)
    some = rows.select(range(len(rows) - 1))  # another data set: nothing of it is kept yet
    assert tokenized(some, short_tokenizer, "train", None, num_proc=2).to_dict() == {k: v[:-1] for k, v in one.items()}


@pytest.mark.parametrize("change", ["template", "end of text", "rows"])
def test_whatever_decides_the_tokens_decides_whether_they_are_made_again(
    rows, short_tokenizer, monkeypatch, tmp_path, change
):
    tokenized(rows, short_tokenizer, "train", None)
    tokenizer = copy.deepcopy(short_tokenizer)
    if change == "template":
        (tmp_path / "other.jinja").write_text(
            tokenizer.chat_template.replace("bos_token +", "bos_token + 'Hm. ' +"), encoding="utf-8"
        )
        set_chat_template(tokenizer, tmp_path / "other.jinja")
    elif change == "end of text":
        tokenizer.eos_token = "</think>"  # noqa: S105
    else:
        rows = rows.select(range(3))
    monkeypatch.setattr(tokens, "_tokenize_batch", never)
    with pytest.raises(AssertionError, match="again"):
        tokenized(rows, tokenizer, "train", None)


def test_a_row_whose_answer_would_be_cut_is_refused(rows, short_tokenizer):
    longest = max(lengths_of(tokenized(rows, short_tokenizer, "dev", None)))
    assert len(tokenized(rows, short_tokenizer, "dev", longest)) == len(rows)
    with pytest.raises(UserError, match=f"set max_length to {longest} or more"):
        tokenized(rows, short_tokenizer, "dev", longest - 1)
