"""Ask a model behind an OpenAI-compatible server (vLLM, SGLang, TGI, transformers serve): the way to a cluster.

The server applies its own chat template to the same messages that a local model is asked with. It writes text; the
log-likelihood of a given text is nothing that these servers tell alike, so generation is the only score here.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from data_prep.command import UserError, first_line
from sft.generation import Generated, Sampling


@dataclass
class Server:
    """A model on a server.

    Args:
        base_url: where the API begins, as in http://127.0.0.1:8000/v1.
        model: its name there.
        concurrency: requests that are under way at once.
        retries: how often a request is tried again, with growing pauses, when the server is busy or the network fails.
        timeout: seconds that one request may take.

    The environment variable OPENAI_API_KEY is sent along; a server on one's own machine needs none.
    """

    base_url: str
    model: str
    concurrency: int = 8
    retries: int = 5
    timeout: float = 600.0

    def __post_init__(self) -> None:
        """Refuse at once what cannot work.

        Raises:
            UserError: the openai package is missing, or the server does not answer.
        """
        try:
            import openai
        except ImportError:
            raise UserError("--backend openai needs the openai package: pip install '.[server]'") from None
        key = os.environ.get("OPENAI_API_KEY", "none")
        self.client = openai.OpenAI(
            base_url=self.base_url, api_key=key, max_retries=self.retries, timeout=self.timeout
        )
        try:
            # Tells a wrong address at once, without the retries that a long evaluation wants.
            self.client.with_options(max_retries=0, timeout=min(self.timeout, 30.0)).models.list()
        except (openai.APIConnectionError, openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise self.failure(error) from error
        except openai.OpenAIError:
            pass  # it is there; not every server can list its models (transformers serve needs a Hub cache for it)

    def failure(self, error: Exception) -> UserError:
        """What went wrong with the server, in one line."""
        cause = f": {first_line(error.__cause__)}" if error.__cause__ else ""
        return UserError(
            f"the server {self.base_url} failed: {first_line(error)}{cause}: check --base_url and its log"
        )

    def ask(self, messages: list[dict], sampling: Sampling) -> Generated:
        """The model's turn. Reasoning that the server has split off is put back before the answer.

        Raises:
            UserError: the server refuses, is silent for too long, or sends something that is not a chat completion.
        """
        import openai

        try:
            completion = self.client.chat.completions.create(
                model=self.model,
                messages=messages,
                max_tokens=sampling.max_new_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                seed=sampling.seed,
            )
        except (openai.OpenAIError, ValueError) as error:
            raise self.failure(error) from error
        try:
            choice = completion.choices[0]
            message, finish = choice.message, choice.finish_reason
            content, tokens = message.content or "", completion.usage.completion_tokens
        except (AttributeError, IndexError, TypeError) as error:
            raise UserError(
                f"the server {self.base_url} sent no chat completion but {str(completion)[:80]!r}: check --base_url"
            ) from error
        reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
        text = f"<think>\n{reasoning}\n</think>\n\n{content}" if reasoning else content
        return Generated(text, tokens, finish == "length")

    def ask_all(
        self, conversations: Sequence[list[dict]], sampling: Sequence[Sampling]
    ) -> Iterator[tuple[int, Generated]]:
        """Yield (index, the model's turn) as they come, at most `concurrency` under way.

        Raises:
            UserError: as `ask`; nothing new is asked after the first failure.
        """
        waiting = iter(range(len(conversations)))
        pool = ThreadPoolExecutor(self.concurrency)
        under_way: dict[Any, int] = {}
        try:
            while True:
                while len(under_way) < self.concurrency and (index := next(waiting, None)) is not None:
                    under_way[pool.submit(self.ask, conversations[index], sampling[index])] = index
                if not under_way:
                    return
                for done in wait(under_way, return_when=FIRST_COMPLETED).done:
                    yield under_way.pop(done), done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
