"""Ask a model behind an OpenAI-compatible server (vLLM, SGLang, TGI, transformers serve): the way to a cluster.

The server applies its own chat template to the messages that a local model gets. Generation is the only score: these
servers have no common way to return the log-likelihood of a given text.
"""

import json
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.pool import ThreadPool
from typing import Any

from sft.common.command import UserError, first_line
from sft.inference.generation import Sampling

# Finish reasons, in small letters, of OpenAI, TGI, SGLang, Anthropic, Gemini, Mistral and Cohere: a turn that ended by
# itself, and one that was cut. A turn with any other word is cut if it has as many tokens as the limit.
FINISHED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete")
CUT = ("length", "max_tokens", "model_length", "content_filter", "abort", "error")
# Where the text of a part of a message stands, by the part's type; a message without parts is a text.
PARTS = {"text": "text", "output_text": "text", "thinking": "thinking", "reasoning": "text"}
REASONING = ("thinking", "reasoning")
STATUS_ADVICE = {
    400: "see the server's log",
    401: "give its key in the environment variable OPENAI_API_KEY",
    403: "give a key that may use it in the environment variable OPENAI_API_KEY",
    404: "check --model_path, the model's name on the server, and --base_url",
    422: "see the server's log",
}
# What helps where a server refuses a request and names one of these.
ADVICE = {
    "temperature": "--temperature 1 leaves the field out, if the server does not take it",
    "top_p": "--top_p 1 leaves the field out, if the server does not take it",
    "max_tokens": "lower --max_new_tokens",
    "context": "lower --max_new_tokens",
    "chat_template_kwargs": "start the server with a template that has these values in place of the option",
    "chat template": "start the server with the model's chat template",
}
# How a server says that it does not take max_tokens at all; a number that is too large is the user's to change.
_UNSUPPORTED = re.compile(
    r"(?i)\b(?:un|not )support|\bun(?:recogni[sz]ed|known|expected)|\bextra|\bnot (?:permitted|allowed)|\bforbidden"
    r"|\binstead\b|\bdeprecated"
)


def text_of(content: Any) -> str:
    """The text of a message's content: a text, nothing, or a list of parts, of which reasoning becomes a think block.

    Raises `TypeError` or `LookupError` for anything else.
    """
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise TypeError("the content is not a text")
    texts = []
    for part in content:
        text = text_of(part[PARTS[part["type"]]])
        texts.append(f"<think>\n{text}\n</think>\n\n" if part["type"] in REASONING else text)
    return "".join(texts)


def writable(text: str) -> str:
    """A server may cut a surrogate pair in two; half of it cannot be written to a file, and is replaced."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


@dataclass
class Server:
    """A model on a server. `retries` and `timeout` (seconds) are of one request; OPENAI_API_KEY is sent along.

    `template_values` are those of variables of the server's chat template, as vLLM and SGLang take them.
    """

    url: str
    model: str
    concurrency: int
    retries: int
    timeout: float
    template_values: dict[str, Any] | None = None
    refused: set[str] = field(default_factory=set, init=False)  # fields of a request

    def __post_init__(self) -> None:
        """Raise `UserError` if the openai package is missing, or the server does not answer."""
        try:
            import openai
        except ImportError:
            command = "pip install -c constraints.txt -e '.[server]'"
            raise UserError(f"--backend openai needs the openai package: {command}") from None
        if "@" in self.url:
            raise UserError("--base_url holds a name or key: give the key in the environment variable OPENAI_API_KEY")
        try:
            key = os.environ.get("OPENAI_API_KEY") or "none"
            self.client = openai.OpenAI(base_url=self.url, api_key=key, max_retries=self.retries, timeout=self.timeout)
            # A wrong address fails at once, without the retries that a long evaluation wants.
            self.client.with_options(max_retries=0, timeout=min(self.timeout, 30.0)).models.list()
        except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self.failure(error) from error
        except openai.OpenAIError:
            pass  # it is there; not every server can list its models (transformers serve needs a Hub cache for it)
        except Exception as error:  # InvalidURL of httpx or httpx2, as openai has it
            raise UserError(f"--base_url {self.url}: {first_line(error)}: give http://HOST:PORT/v1") from error

    def failure(self, error: Exception) -> UserError:
        """What went wrong, with what the server wrote of it."""
        cause, response = first_line(error), getattr(error, "response", None)
        if response is not None and cause.endswith(str(response.status_code)):  # openai read no message in the body
            cause += f": {' '.join(response.text.split())[:500]}"
        if error.__cause__:
            cause += f": {first_line(error.__cause__)}"
        advice = STATUS_ADVICE.get(getattr(response, "status_code", None), "check --base_url and the server's log")
        if response is not None and response.status_code in (400, 422):  # it is the request that is refused
            advice = next((words for name, words in ADVICE.items() if name in cause), advice)
        return UserError(f"the server {self.url} failed: {cause}: {advice}")

    def error_inside(self, sent: Any) -> UserError:
        """An error that the server sent with status 200."""
        advice = "see the server's log, then repeat the command, which continues"
        return UserError(f"the server {self.url} answered with an error: {json.dumps(sent)[:500]}: {advice}")

    def options(self, sampling: Sampling, refused: set[str]) -> dict[str, Any]:
        """The fields of a request; of those that the server has refused, the substitute, or none."""
        options = {key: getattr(sampling, key) for key in ("temperature", "top_p", "seed") if key not in refused}
        limit = "max_completion_tokens" if "max_tokens" in refused else "max_tokens"
        options |= {"extra_body": {"chat_template_kwargs": self.template_values}} if self.template_values else {}
        return options | {"model": self.model, limit: sampling.max_new_tokens}

    def refused_field(self, error: Any, sampling: Sampling, refused: set[str]) -> str | None:
        """A further field that a server does not take, as its refusal says, if the request makes sense without it.

        Without a seed, sampling cannot be repeated; a temperature or top_p of 1 is what the API takes for a missing
        one; max_tokens has a newer name. If another field is at fault, the next request is refused too.
        """
        refusal = error.response.text
        fields = ["seed", *(key for key in ("temperature", "top_p") if getattr(sampling, key) == 1)]
        fields += ["max_tokens"] if _UNSUPPORTED.search(refusal) else []
        return next((name for name in fields if name not in refused and re.search(rf"\b{name}\b", refusal)), None)

    def complete(self, messages: list[dict], sampling: Sampling) -> tuple[Any, set[str]]:
        """(completion, fields that were left out or renamed, since the server refuses them)."""
        import openai

        while True:
            refused = set(self.refused)
            try:
                request = self.options(sampling, refused)
                return self.client.chat.completions.create(messages=messages, **request), refused
            except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
                name = self.refused_field(error, sampling, refused)
                if name is None:
                    raise self.failure(error) from error
                self.refused.add(name)
            except (openai.OpenAIError, ValueError, RecursionError) as error:
                raise self.failure(error) from error

    def ask(self, messages: list[dict], sampling: Sampling) -> dict[str, Any]:
        """The model's turn as `Generated` has it, its finish reason, and the fields that the server refuses.

        `other_model` is the model that the server names, if it is not the one that was asked for.
        Reasoning that the server has split off stands in a think block before the text, and so does a refusal, which
        is no answer either. Raises `UserError` if there is no turn, or a part of it cannot be read.
        """
        completion, refused = self.complete(messages, sampling)
        if sent := getattr(completion, "error", None):
            raise self.error_inside(sent)
        try:
            choice, message = completion.choices[0], completion.choices[0].message
            if not message.content and (sent := getattr(choice, "error", None)):  # as OpenRouter does
                raise self.error_inside(sent)
            text = text_of(message.content)
            names = ("reasoning_content", "reasoning", "refusal")
            reasoning = next(filter(None, (text_of(getattr(message, name, None)) for name in names)), "")
            if not reasoning and "content" not in message.model_fields_set:
                raise TypeError("the message has no content")
        except (AttributeError, LookupError, TypeError, RecursionError) as error:
            body = completion.to_dict() if hasattr(completion, "to_dict") else completion
            raise UserError(f"the server {self.url} sent no chat completion but {str(body)[:300]!r}") from error
        tokens = getattr(completion.usage, "completion_tokens", None)
        if type(tokens) is not int or tokens < 0:
            raise UserError(f"the server {self.url} does not send usage.completion_tokens, which is reported")
        if reasoning:
            # A server may leave the answer behind the reasoning, with the tag that closes it.
            closing = "" if "</think>" in reasoning and not text.strip() else "\n</think>\n\n"
            text = f"<think>\n{reasoning}{closing}{text}"
        finish, served = str(choice.finish_reason), getattr(completion, "model", None)
        # `transformers serve` names the revision too.
        other = isinstance(served, str) and served.removesuffix("@main") not in ("", self.model)
        known = finish.lower() in FINISHED
        cut = finish.lower() in CUT or (not known and tokens >= sampling.max_new_tokens)
        return {
            "text": writable(text),
            "tokens": tokens,
            "hit_limit": cut,
            "finish_reason": finish[:80],
            "refused_fields": sorted(refused),
            **({"other_model": writable(served)[:200]} if other else {}),
        }

    def ask_all(self, conversations: list[list[dict]], samplings: list[Sampling]) -> Iterator[tuple[int, dict]]:
        """Yield (index, `ask`'s answer) as they come, `concurrency` under way, up to the first `UserError`."""
        failed = threading.Event()

        def work(index: int) -> tuple[int, dict] | None:
            if failed.is_set():
                return None
            try:
                return index, self.ask(conversations[index], samplings[index])
            except Exception:
                failed.set()
                raise

        # The threads of this pool are daemons, so that Ctrl-C does not wait for a server that hangs.
        with ThreadPool(self.concurrency) as pool:
            yield from filter(None, pool.imap_unordered(work, range(len(conversations))))
