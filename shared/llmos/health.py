"""`python -m llmos.health [SERVICE]`: exit 0 if the service of this data directory is ready, else 1. For containers."""

import os
import sys
import time
from pathlib import Path

from llmos.local import default_data_dir
from llmos.service import is_ready


def main() -> int:
    """Check the service named by the argument or by `LLMOS_SERVICE`."""
    name = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("LLMOS_SERVICE", "")
    return 0 if is_ready(Path(default_data_dir()), name, time.time()) else 1


if __name__ == "__main__":
    sys.exit(main())
