"""Train, evaluate and ask language models on the data sets that `data_prep` writes."""

import logging
import os

# Before any Hugging Face library is imported: nothing is reported to anybody unless the user turns it on.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# On a CPU, bitsandbytes advises at every import to install a package that it works without.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
