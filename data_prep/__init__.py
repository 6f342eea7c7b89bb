"""Medical multiple-choice sources in, a chat data set for supervised fine-tuning out."""

import os
import sys

# tqdm reads these when it is imported; they hold for the libraries' progress bars and for ours. On a terminal a bar
# appears after two seconds. In a log file every redrawing is a line: a bar appears after a minute, and once a minute.
if sys.stderr and sys.stderr.isatty():
    os.environ.setdefault("TQDM_DELAY", "2")
else:
    for name in ("TQDM_DELAY", "TQDM_MININTERVAL", "TQDM_MAXINTERVAL"):
        os.environ.setdefault(name, "60")
