"""Train, evaluate, publish and ask language models on the data sets that `data_prep` writes."""

import logging
import os
import sys
import warnings

# Before any library that counts its users over the network is imported; whoever wants that sets these otherwise.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "0")

# On a CPU, bitsandbytes advises at every import to install a package that it works without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# LLM.int8() computes in float16; bitsandbytes says so at every matrix product, hundreds of lines a step.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
# DeepSpeed, where it is installed, says at its import that there is no GPU, in runs without it too.
logging.getLogger("DeepSpeed").addFilter(lambda record: "Setting accelerator to CPU" not in record.getMessage())
# PEFT asks transformers by an old name; nothing that a user could do about it.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

# tqdm reads these when it is imported; they hold for the libraries' progress bars and for ours. On a terminal a bar
# appears after two seconds. In a log file every redrawing is a line: a bar appears after a minute, and once a minute.
if sys.stderr and sys.stderr.isatty():
    os.environ.setdefault("TQDM_DELAY", "2")
else:
    for name in ("TQDM_DELAY", "TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
        os.environ.setdefault(name, "60")
