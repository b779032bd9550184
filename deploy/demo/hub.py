"""Exit 0 if a model hub answers within three seconds, else 1."""

import os
import sys
import urllib.error
import urllib.request

address = os.environ.get("HF_ENDPOINT", "https://huggingface.co") + "/api/models/sentence-transformers/all-MiniLM-L6-v2"
try:
    urllib.request.urlopen(address, timeout=3).close()  # a fixed https address
except (OSError, ValueError):
    sys.exit(1)
