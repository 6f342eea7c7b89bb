"""Ask a model behind an OpenAI-compatible server (vLLM, SGLang, TGI, transformers serve): the way to a cluster.

The server applies its own chat template to the messages that a local model gets. Generation is the only score: these
servers have no common way to return the log-likelihood of a given text.
"""

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool

from sft.common.command import UserError, first_line
from sft.inference.generation import Generated, Sampling

# How servers say that a turn ended by itself; anything else (length, content_filter, abort) cut it.
FINISHED = ("stop", "eos_token", "stop_sequence")


@dataclass
class Server:
    """A model on a server. `retries` and `timeout` (seconds) are of one request; OPENAI_API_KEY is sent along."""

    url: str
    model: str
    concurrency: int
    retries: int
    timeout: float

    def __post_init__(self) -> None:
        """Raise `UserError` if the openai package is missing, or the server does not answer."""
        try:
            import httpx
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
        except (ValueError, httpx.InvalidURL) as error:
            raise UserError(f"--base_url {self.url}: {first_line(error)}: give http://HOST:PORT/v1") from error
        except openai.OpenAIError:
            pass  # it is there; not every server can list its models (transformers serve needs a Hub cache for it)

    def failure(self, error: Exception) -> UserError:
        cause = f"{first_line(error)}: {first_line(error.__cause__)}" if error.__cause__ else first_line(error)
        return UserError(f"the server {self.url} failed: {cause}: check --base_url and the server's log")

    def ask(self, messages: list[dict], sampling: Sampling) -> Generated:
        """The model's turn, with the reasoning that the server has split off; raises `UserError` if there is none."""
        import openai

        options = {key: getattr(sampling, key) for key in ("temperature", "top_p", "seed")}
        options |= {"model": self.model, "max_tokens": sampling.max_new_tokens}
        try:
            completion = self.client.chat.completions.create(messages=messages, **options)
        except (openai.OpenAIError, ValueError) as error:
            raise self.failure(error) from error
        try:
            choice, message = completion.choices[0], completion.choices[0].message
            if not isinstance(message.content, str | None):
                raise TypeError("the content is not a text")
        except (AttributeError, LookupError, TypeError) as error:
            sent = str(completion)[:160]
            raise UserError(f"the server {self.url} sent no chat completion but {sent!r}") from error
        tokens = getattr(completion.usage, "completion_tokens", None)
        if not isinstance(tokens, int):
            raise UserError(f"the server {self.url} does not send usage.completion_tokens, which is reported")
        text = message.content or ""
        if reasoning := getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None):
            text = f"<think>\n{reasoning}\n</think>\n\n{text}"
        # A server may cut a surrogate pair in two; half of it cannot be written to a file.
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        return Generated(text, tokens, choice.finish_reason not in FINISHED)

    def ask_all(self, conversations: list[list[dict]], samplings: list[Sampling]) -> Iterator[tuple[int, Generated]]:
        """Yield (index, the model's turn) as they come, `concurrency` under way, up to the first `UserError`."""
        failed = threading.Event()

        def work(index: int) -> tuple[int, Generated] | None:
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
