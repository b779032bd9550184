"""Read a job spec before anything is published: from YAML or JSON, with its local files found and every fault named."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from llmos.contracts.jobs import Fault
from llmos.errors import NotFound, Rejected
from llmos.specs import check_spec
from llmos_cli.exits import Exit, say
from llmos_cli.options import Target
from llmos_cli.spec_references import find_absent, find_local, replace
from llmos_cli.specfile import SpecFile, override, read_spec


class Prepared(msgspec.Struct, frozen=True):
    """A spec as the file has it; `spec` with what was set on the command line; `resolved` with local files as
    `file://`; `found` maps fields to those files."""

    read: SpecFile
    spec: dict[str, Any]
    resolved: dict[str, Any]
    found: dict[str, Path]
    faults: list[Fault]


def prepare(file: str, settings: Sequence[str], target: Target) -> Prepared:
    """Read and check the spec in `file` (`-`: stdin). Raises `NotFound`, or `Rejected` for what is no YAML or JSON."""
    read = read_spec(read_text(file), "stdin" if file == "-" else file, as_json=file.endswith(".json"))
    spec = override(read.spec, settings)
    found, faults = find_local(spec, Path.cwd() if file == "-" else Path(file).absolute().parent)
    absent = find_absent(spec)
    if target.stack() is not None:  # the nodes are this machine
        faults += absent
    else:
        for fault in absent:
            say(f"note: {fault} on this machine; the node that runs the job has to have it")
    resolved = replace(spec, {field: path.as_uri() for field, path in found.items()})
    return Prepared(read, spec, resolved, found, _check(resolved, target.tenant, faults))


def read_text(file: str) -> str:
    """A file's text (`-`: stdin). Raises `NotFound`, `Rejected`."""
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"there is no file {file}", remedy="Correct the path.") from None
    except UnicodeDecodeError as error:
        raise Rejected(f"{file}: not UTF-8 at byte {error.start}", remedy="Save the file as UTF-8 text.") from error


def _check(spec: dict[str, Any], tenant: str, missing: list[Fault]) -> list[Fault]:
    """Everything that is wrong with a spec, as the scheduler would say it, and the files that are not there."""
    named = spec.get("tenant", tenant)
    tenant = named if isinstance(named, str) else tenant
    _, faults = check_spec(msgspec.json.encode(spec), tenant=tenant, now=time.time())
    said = {fault.path for fault in missing}
    return [*missing, *(fault for fault in faults if fault.path not in said)]


def reject(lines: list[str]) -> int:
    """Say every fault; the exit code."""
    for line in lines:
        say(f"error: {line}")
    say(f"  try: correct {'it' if len(lines) == 1 else f'all {len(lines)}'} and try again.")
    return Exit.USAGE
