"""The processes that work on chunks of rows: what each of them knows, and how their results come back in order."""

import argparse
import contextlib
import gc
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from sft.common.command import UserError

STOPPING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


options = argparse.Namespace()  # of data_prep/prepare.py
rationales: dict[str, list[str]] | str | None = None  # by row id, or the column that holds them
tokenizer: Any = None
fingerprint = ""  # of the tokenizer


def start(new: argparse.Namespace, new_rationales: dict[str, list[str]] | str | None) -> None:
    """Keep the options and rationales, and load the tokenizer that they name, in this process.

    Raises `UserError` if the tokenizer cannot be loaded, or has no chat template.
    """
    global options, rationales, tokenizer, fingerprint
    if new is options:  # as in a forked process
        return
    options, rationales, tokenizer, fingerprint = new, new_rationales, None, ""
    if model := new.pretokenize or new.tokenizer:
        from sft.common.chat_template import tokenizer_fingerprint
        from sft.common.models import load_tokenizer

        tokenizer = load_tokenizer(model, new.chat_template, new.chat_template_kwargs)
        fingerprint = tokenizer_fingerprint(tokenizer)


def _start_process(*words: Any) -> None:
    # Ctrl-C reaches every process of the terminal; the parent alone answers to it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as it is under nohup
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
    # One process a core: threads of the tokenizer's own would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Rows hold no cycles, and looking for some takes a quarter of the time.
    gc.disable()
    start(*words)


@contextlib.contextmanager
def ordered_map(num_proc: int) -> Iterator[Callable]:
    """Yield `apply(function, items)`, which yields the results in the order of the items.

    With one process all happens here. At most two items a process are read ahead, so that reading never outruns the
    work. Raises `UserError` if a process was killed, which on most machines means that memory ran out.
    """
    # pyarrow imports pandas at its first conversion: better once here than in every process, where it takes half a
    # second, and where a Ctrl-C that comes meanwhile is lost.
    with contextlib.suppress(ImportError):
        import pandas  # noqa: F401
    if num_proc == 1:
        gc.disable()
        try:
            yield map
        finally:
            gc.enable()
        return
    # Forked where that is possible: the children share what the parent has loaded.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    executor = ProcessPoolExecutor(num_proc, context, _start_process, (options, rationales))
    # Python loses the exception of a signal that comes while it forks. So all processes start here, at a first piece
    # of work, and a signal waits until they have.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        executor.submit(int)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)

    def apply(function: Callable, items: Iterable) -> Iterator:
        waiting = deque()
        for item in items:
            waiting.append(executor.submit(function, item))
            if len(waiting) > 2 * num_proc:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield apply
    except BrokenProcessPool as error:
        raise UserError("a worker process was killed: is the memory full? Try --num_proc 1") from error
    finally:
        executor.shutdown(cancel_futures=True)
