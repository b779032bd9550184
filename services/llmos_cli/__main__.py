"""`llmos`, `python -m llmos_cli`: run a command; every error becomes two lines and a stable exit code."""

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    from cyclopts import CycloptsError

    from llmos.errors import LlmosError
    from llmos_cli.app import make_app
    from llmos_cli.exits import Exit, debugging, exit_code, nobody_reads, report

    app = make_app()
    try:
        result = app(arguments, exit_on_error=False, print_error=False)
        code = int(result or 0)
        try:
            sys.stdout.flush()
        except BrokenPipeError:  # whoever read has enough; how the command ended still counts
            nobody_reads()
        return code
    except CycloptsError as error:
        report(str(error).strip(), "llmos --help, or llmos COMMAND --help.")
        return Exit.USAGE
    except LlmosError as error:
        if debugging():
            raise
        report(error.problem.message, error.problem.remedy)
        return exit_code(error)
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        nobody_reads()
        return Exit.OK
    except OSError as error:
        if debugging():
            raise
        report(f"{error.filename or 'system'}: {error.strerror or error}")
        return Exit.USAGE
    except Exception as error:  # a fault of ours: a user is told in two lines, a developer sets LLMOS_DEBUG
        if debugging():
            raise
        report(f"llmos went wrong: {type(error).__name__}: {error}", "LLMOS_DEBUG=1 shows where; please report it.")
        return Exit.FAILED


if __name__ == "__main__":
    sys.exit(main())
