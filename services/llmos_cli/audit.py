"""`llmos audit verify|show|prove`: check an audit log offline, with nothing but its directory and its public key."""

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from llmos.errors import NotFound
from llmos_cli.exits import Exit, say
from llmos_cli.options import DataDir, Output
from llmos_cli.printing import print_fields, print_table, print_value

app = App(name="audit", help="Verify, show and prove the audit log.", help_format="plaintext")

Log = Annotated[
    Path | None, Parameter(name="--log", help="The log's directory (default: that of this machine's stack).")
]
Key = Annotated[
    str | None,
    Parameter(name="--key", help="The log's public key, or a file that holds it (default: the stack's own)."),
]


def _directory(log: Path | None, data_dir: Path | None) -> Path:
    from llmos import local
    from llmos.auditlog import log_directory

    return log or log_directory(data_dir or local.default_data_dir())


def _key(key: str | None, data_dir: Path | None) -> str:
    """The verifier key: an argument that names a file is read."""
    from llmos import local
    from llmos.auditlog import verifier_key_file

    file = Path(key) if key else verifier_key_file(data_dir or local.default_data_dir())
    if key and not file.is_file():
        return key
    try:
        return file.read_text().strip()
    except FileNotFoundError:
        raise NotFound(f"there is no public key in {file}", remedy="Give it with --key.") from None


@app.command
def verify(
    *,
    log: Log = None,
    key: Key = None,
    remember: Path | None = None,
    data_dir: DataDir = None,
    output: Output = "table",
) -> int:
    """Recompute the log from its entries and compare it with its signed checkpoint. The exit code is 1 if it is wrong.

    Parameters
    ----------
    remember
        A file of the auditor's own: the checkpoint in it must be the beginning of the log, and the log's newest one is
        written there if all is well. Only so a log that was rewritten from its start is found.
    """
    import msgspec

    from llmos import auditlog

    verifier_key = _key(key, data_dir)
    if key is None:
        say("the key comes from the log's own machine: an auditor keeps a copy and gives it with --key")
    before = auditlog.read_remembered(remember, verifier_key) if remember else None
    report = auditlog.verify_log(_directory(log, data_dir), verifier_key, remembered=before)
    if remember and report.ok:
        auditlog.remember(remember, report.checkpoint)
    if output != "table":
        print_value({"report": {"ok": report.ok, **msgspec.structs.asdict(report)}}, output)
    else:
        print("the log verifies" if report.ok else "THE LOG DOES NOT VERIFY")
        print_fields([("origin", report.origin), ("entries", str(report.size)), ("root", report.root)])
        print_fields([("grown from", f"{before.size} entries" if before else "")])
        for fault in report.problems:
            print(f"  {fault.code}: {fault}")
    return Exit.OK if report.ok else Exit.FAILED


@app.command
def show(
    *,
    log: Log = None,
    start: int = 0,
    limit: int = 100,
    data_dir: DataDir = None,
    output: Output = "table",
) -> int:
    """List entries of the log, oldest first (not verified: see `verify`).

    Parameters
    ----------
    start
        The first entry's index.
    limit
        At most so many.
    """
    from llmos.auditlog import read_entries

    views = read_entries(_directory(log, data_dir), start, limit)
    if output == "table":
        rows = [
            (
                view.index,
                view.entry.sequence,
                view.entry.headers.get("ce-time"),
                view.entry.subject,
                view.entry.headers.get("ce-source"),
            )
            for view in views
        ]
        print_table(["INDEX", "SEQUENCE", "TIME", "SUBJECT", "SOURCE"], rows)
    else:
        print_value(views, output)
    return Exit.OK


@app.command
def prove(
    entry: str | None = None,
    /,
    *,
    check: Annotated[str | None, Parameter(allow_leading_hyphen=True)] = None,
    log: Log = None,
    key: Key = None,
    data_dir: DataDir = None,
) -> int:
    """Print the proof that an entry is in the log as JSON, or check one that somebody gave.

    Parameters
    ----------
    entry
        The entry's index, or its event's id.
    check
        Check the proof in this file (- for stdin) against the key, without the log.
    """
    import msgspec

    from llmos.auditlog import find_event, inclusion_proof, verify_proof
    from llmos.contracts.audit import ProofAnswered
    from llmos.errors import Rejected

    if (entry is None) == (check is None):
        raise Rejected("give an entry to prove, or --check FILE", remedy="llmos audit prove 17")
    if check is not None:
        data = sys.stdin.buffer.read() if check == "-" else Path(check).read_bytes()
        try:
            proof = msgspec.json.decode(data, type=ProofAnswered)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Rejected(f"{check} holds no proof: {error}", remedy="Make one with `llmos audit prove`.") from error
        try:
            checkpoint = verify_proof(proof, _key(key, data_dir))
        except Rejected as error:
            print(f"THE PROOF DOES NOT HOLD: {error}")
            return Exit.FAILED
        print(f"entry {proof.index} of {checkpoint.size} of {checkpoint.origin}: {proof.entry.subject}")
        return Exit.OK
    assert entry is not None
    directory = _directory(log, data_dir)
    proof = inclusion_proof(directory, int(entry) if entry.isdecimal() else find_event(directory, entry))
    verify_proof(proof, _key(key, data_dir))
    print_value(proof, "json")
    return Exit.OK
