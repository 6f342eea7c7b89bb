"""Medical multiple-choice sources in, a chat data set for supervised fine-tuning out."""

import os
import sys

# Before tqdm is imported, which reads them: the libraries' bars and ours appear for work that takes its time alone. In
# a log file, where every redrawing is a line, they appear after a minute and are redrawn once a minute.
os.environ.setdefault("TQDM_DELAY", "2" if sys.stderr and sys.stderr.isatty() else "60")
if os.environ["TQDM_DELAY"] == "60":
    os.environ.setdefault("TQDM_MININTERVAL", "60")
    os.environ.setdefault("TQDM_MAXINTERVAL", "60")
