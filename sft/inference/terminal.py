"""A conversation in the terminal: a question, options if there are any, the answer word by word, and what follows."""

import time
from dataclasses import replace
from typing import Any

from transformers import TextStreamer

from sft.common.command import UserError
from sft.common.display import shows_colour
from sft.common.prompts import LETTERS
from sft.inference.assistant import as_asked, print_probabilities, sampled
from sft.inference.generation import Sampling, split_thinking

HELP = """\
  Type a question, then its options, one a line; an empty line ends them (none at all is fine).
  After the answer you may go on about the same question; an empty line begins a new one.
  /new              begin a new question
  /thinking MODE    show, hide or off (the model answers at once)
  /help             this text
  /quit             leave, as end-of-file (Ctrl-D) and Ctrl-C do; while an answer is written, Ctrl-C stops it"""


class AnswerStreamer(TextStreamer):
    """Prints a turn as it is written; of its think block, if it is hidden, only that there is one."""

    def __init__(self, tokenizer: Any, thinking: str, opened: bool):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=False)
        self.show, self.inside = thinking == "show", opened
        self.faint, self.plain = ("\033[2m", "\033[0m") if shows_colour() else ("", "")
        self.turn_end = tokenizer.eos_token
        self.told = not opened

    def begin_thinking(self) -> None:
        """Say that the model thinks."""
        print(f"{self.faint}Thinking ..." + ("\n" if self.show else ""), end="", flush=True)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Print a piece; a think tag stands in one piece, since pieces end at white space."""
        text = text.replace(self.turn_end, "")
        if not self.told:
            self.told = True
            self.begin_thinking()
        if "<think>" in text and not self.inside:
            self.inside = True
            before, text = text.split("<think>", 1)
            print(before, end="")
            self.begin_thinking()
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


class Quit(Exception):
    """The user wants to go."""


def read(prompt: str, state: dict) -> str:
    """One line of input, commands carried out.

    Raises:
        Quit: /quit, end-of-file or Ctrl-C.
        StopIteration: /new.
    """
    while True:
        try:
            line = input(prompt).strip()
        except (EOFError, KeyboardInterrupt):
            print()
            raise Quit from None
        command, _, word = line.partition(" ")
        if command == "/quit":
            raise Quit
        if command == "/new":
            raise StopIteration
        if command == "/help":
            print(HELP)
        elif command == "/thinking" and word in ("show", "hide", "off"):
            state["thinking"] = word
            print(f"  thinking: {word}")
        elif command.startswith("/"):
            print(f"  {command} {word}".rstrip() + " is no command: /help lists them")
        else:
            return line


def converse(assistant: Any, sampling: Sampling, thinking: str) -> None:
    """Ask and answer until the user leaves. What cannot be asked is said, and the conversation goes on."""
    from sft.common.chat_template import open_think_prefix

    opened = bool(open_think_prefix(assistant.tokenizer))
    state = {"thinking": thinking}
    print("Ask a question; /help tells more, /quit leaves. Not medical advice: the model sees no figure.")
    while True:
        try:
            question = read("\nquestion> ", state)
            if not question:
                continue
            choices: list[str] = []
            while len(choices) < len(LETTERS) and (choice := read(f"       {LETTERS[len(choices)]}> ", state)):
                choices.append(choice)
            messages = talk(assistant, question, choices, sampling, state, opened)
            while messages and (line := read("follow-up> ", state)):
                messages = follow(assistant, [*messages, {"role": "user", "content": line}], sampling, state, opened)
        except StopIteration:
            continue
        except Quit:
            print("Goodbye.")
            return
        except UserError as error:
            print(f"  {error}")
        except KeyboardInterrupt:
            print("\n  (stopped)")


def follow(assistant: Any, messages: list, sampling: Sampling, state: dict, opened: bool) -> list[dict]:
    """Write the next turn of a conversation; returns the conversation with it, which Ctrl-C leaves as it was."""
    wanted = replace(sampling, thinking=state["thinking"] != "off")
    since = time.perf_counter()
    words = AnswerStreamer(assistant.tokenizer, state["thinking"], opened and wanted.thinking)
    try:
        written = assistant.reply(messages, wanted, words)
    except KeyboardInterrupt:
        print(f"{words.plain}\n  (stopped)")
        return messages[:-1]
    except UserError as error:  # too long: what was said before can still be gone on with
        print(f"  {error}")
        return messages[:-1]
    _, text = split_thinking(written.text)
    notes = sampled(sampling.temperature) + (", stopped at the token limit" if written.hit_limit else "")
    print(f"  ({written.tokens} tokens, {time.perf_counter() - since:.1f} s{notes})")
    return [*messages, {"role": "assistant", "content": text}]


def talk(
    assistant: Any, question: str, choices: list[str], sampling: Sampling, state: dict, opened: bool
) -> list[dict]:
    """Answer a question; returns the conversation so far."""
    question, choices = as_asked(question, choices)
    if choices:
        print_probabilities(choices, assistant.probabilities([(question, choices)])[0])
    return follow(assistant, assistant.messages(question, choices), sampling, state, opened)
