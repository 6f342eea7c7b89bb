"""A conversation in the terminal: a question, options if there are any, the answer word by word, and what follows."""

import time
from dataclasses import dataclass, replace
from typing import Any

from transformers import TextStreamer

from sft.common.chat_template import open_think_prefix, split_thinking, stop_tokens, think_marks, with_think_block
from sft.common.command import UserError
from sft.common.display import shows_colour
from sft.common.prompts import LETTERS, prompt_messages
from sft.inference.assistant import Assistant, clean_question, print_probabilities, sampled
from sft.inference.generation import Sampling

HELP = """\
  Type a question, then its options, one a line; an empty line ends them (none at all is fine).
  After the answer you may go on about the same question; an empty line begins a new one.
  /new              begin a new question
  /thinking MODE    show, hide or off (the model answers at once)
  /help             this text
  /quit             leave, as end-of-file (Ctrl-D) and Ctrl-C do; while an answer is written, Ctrl-C stops it"""


class AnswerStreamer(TextStreamer):
    """Prints a turn as it is written; of its reasoning, if it is hidden, only that there is some."""

    def __init__(self, tokenizer: Any, thinking: str):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=False)
        self.show, self.inside = thinking == "show", False
        # The prompt may open the think block; then the first piece is inside it.
        self.opening = open_think_prefix(tokenizer).strip() if thinking != "off" else ""
        # Other marks of reasoning, as gpt-oss's channels, are first made those of a think block.
        self.marks = think_marks(tokenizer)
        self.held, self.begins = "", True
        self.faint, self.plain = ("\033[2m", "\033[0m") if shows_colour() else ("", "")

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece; a think tag stands in one piece, since pieces end at white space."""
        for stop in stop_tokens(self.tokenizer):
            text = text.replace(self.tokenizer.decode([stop]), "")
        text, self.opening = self.opening + text, ""
        if self.marks:
            text = self.with_think_tags(text, stream_end)
        if "<think>" in text and not self.inside:
            self.inside = True
            before, text = text.split("<think>", 1)
            print(f"{before}{self.faint}Thinking ..." + ("\n" if self.show else ""), end="", flush=True)
        if self.inside:
            thought, closed, text = text.partition("</think>")
            print(thought if self.show else "", end="", flush=True)
            if not closed:
                print(f"{self.plain}\n" if stream_end else "", end="", flush=True)
                return
            self.inside = False
            print(self.plain)
            text = text.lstrip()
        print(text, end="\n" if stream_end else "", flush=True)

    def with_think_tags(self, text: str, stream_end: bool) -> str:
        """What may be printed after a piece, with think tags: what may be half of a mark waits for the next piece."""
        before, behind, direct = self.marks
        direct = tuple(mark.strip() for mark in direct) if self.begins else ()
        text = with_think_block(
            (before, behind, direct), (self.held + text).lstrip() if self.begins else self.held + text
        )
        halves = (mark[:end] for mark in (before, behind, *direct) for end in range(1, len(mark)))
        self.held = "" if stream_end else max((half for half in halves if text.endswith(half)), key=len, default="")
        text = text.removesuffix(self.held)
        self.begins = self.begins and not text
        return text


class NewQuestion(Exception):
    """The user wants to ask something else."""


@dataclass
class Session:
    """A conversation with `assistant`; `thinking` is "show", "hide" or "off"."""

    assistant: Assistant
    sampling: Sampling
    thinking: str

    def read(self, prompt: str) -> str:
        """One line of input, after the commands before it; raises `EOFError` to leave, and `NewQuestion`."""
        while True:
            try:
                line = input(prompt).strip()
            except KeyboardInterrupt:
                raise EOFError from None
            command, _, word = line.partition(" ")
            if command == "/quit":
                raise EOFError
            if command == "/new":
                raise NewQuestion
            if command == "/help":
                print(HELP)
            elif command == "/thinking" and word in ("show", "hide", "off"):
                self.thinking = word
                print(f"  thinking: {word}")
            elif command.startswith("/"):
                print(f"  {command} {word}".rstrip() + " is no command: /help lists them")
            else:
                return line

    def follow(self, messages: list[dict]) -> list[dict]:
        """Write the next turn of a conversation; returns the conversation with it, which Ctrl-C leaves as it was."""
        start = time.perf_counter()
        streamer = AnswerStreamer(self.assistant.tokenizer, self.thinking)
        try:
            turn = self.assistant.reply(messages, replace(self.sampling, thinking=self.thinking != "off"), streamer)
        except (KeyboardInterrupt, UserError) as error:  # stopped, or too long: the turns before it can be continued
            print(f"{streamer.plain}\n  ({str(error) or 'stopped'})")
            return messages[:-1]
        notes = sampled(self.sampling.temperature) + (", stopped at the token limit" if turn.hit_limit else "")
        print(f"  ({turn.tokens} tokens, {time.perf_counter() - start:.1f} s{notes})")
        return [*messages, {"role": "assistant", "content": split_thinking(turn.text)[1]}]

    def talk(self) -> None:
        """Read a question and its options, answer it, and go on about it until the user wants another one."""
        if not (question := self.read("\nquestion> ")):
            return
        choices: list[str] = []
        while len(choices) < len(LETTERS) and (choice := self.read(f"       {LETTERS[len(choices)]}> ")):
            choices.append(choice)
        question, choices = clean_question(question, choices)
        print_probabilities(choices, self.assistant.probabilities([(question, choices)])[0])
        messages = self.follow(prompt_messages(question, choices, self.assistant.answer_format))
        while messages and (line := self.read("follow-up> ")):
            messages = self.follow([*messages, {"role": "user", "content": line}])


def converse(assistant: Assistant, sampling: Sampling, thinking: str) -> None:
    """Ask and answer until the user leaves; a question that is refused does not end it."""
    session = Session(assistant, sampling, thinking)
    print("Ask a question; /help tells more, /quit leaves. Not medical advice: the model sees no figure.")
    while True:
        try:
            session.talk()
        except NewQuestion:
            pass
        except EOFError:
            print("\nGoodbye.")
            return
        except (KeyboardInterrupt, UserError) as error:
            print(f"\n  ({str(error) or 'stopped'})")
