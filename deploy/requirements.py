"""Print the requirements of llmos with the extras given as arguments, for a container's dependency layer."""

import re
import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
extras = project["optional-dependencies"]


def expand(requirement: str) -> list[str]:
    """Follow `llmos[a,b]` to what those extras need."""
    own = re.fullmatch(r"llmos\[(.+)\]", requirement)
    if own is None:
        return [requirement]
    return [found for name in own[1].split(",") for wanted in extras[name.strip()] for found in expand(wanted)]


names = [name for extra in sys.argv[1:] for listed in extras[extra] for name in expand(listed)]
print("\n".join(sorted({*project["dependencies"], *names})))
