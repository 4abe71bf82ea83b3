"""Names of encoders that a file from elsewhere may give."""

from __future__ import annotations

import re

# Names that open_clip looks up. A path or another scheme would load a file of the sender's choice.
MODEL_NAME = re.compile(r"[\w.@-]+|hf-hub:[\w.@-]+/[\w.@-]+")
TAG = re.compile(r"[\w.-]*")
# What a recipe calls weights that were given as a file; their path means nothing elsewhere.
FROM_FILE = "file"
