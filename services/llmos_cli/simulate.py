"""`llmos simulate …`: becomes the scheduler's simulator, which knows its own options."""

import os
import sys
from importlib.util import find_spec
from typing import Annotated

from cyclopts import App, Parameter

from llmos.errors import Fatal

app = App(name="simulate", help="Try placement policies on a trace.", help_flags=[], version_flags=[])


@app.default
def simulate(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> None:
    """Try placement policies on a trace; does not return."""
    if any(find_spec(name) is None for name in ("llmos_scheduler", "numpy")):
        raise Fatal("simulations need the scheduler", remedy="pip install 'llmos[scheduler]'")
    os.execv(sys.executable, [sys.executable, "-m", "llmos_scheduler.simulate", *arguments])
