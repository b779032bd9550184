"""`llmos up`, `down`, `status`, `run`: the stack of this machine."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from llmos.errors import NotFound, Rejected, Unreachable
from llmos_cli.exits import Exit, say
from llmos_cli.options import DataDir, Output
from llmos_cli.printing import age, print_fields, print_table, print_value


def up(
    *,
    data_dir: DataDir = None,
    detach: Annotated[bool, Parameter(name=["--detach", "-d"], negative="")] = False,
    http_port: int = 0,
    services: list[str] | None = None,
    nats_url: str = "",
    artifacts: str = "",
    node: str = "",
    file_root: list[Path] | None = None,
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative="")] = False,
) -> int:
    """Start nats-server and every service whose packages are installed, and keep them running until Ctrl-C.

    Parameters
    ----------
    detach
        Return once all is ready; `llmos down` stops it.
    http_port
        The gateway's port; 0 takes a free one.
    services
        Start only these (repeat the option).
    nats_url
        Use this bus instead of starting one.
    artifacts
        Keep artifacts there: file:///dir or s3://bucket/prefix.
    node
        This node's name; the host's name by default.
    file_root
        Directories that file:// references of jobs may lie in; the working directory by default.
    quiet
        Don't show the services' logs.
    """
    from llmos import local

    if running := local.find_stack(data_dir):
        raise Rejected(f"a stack runs in {running.data_dir} already", remedy="Stop it with `llmos down`.")
    options = local.UpOptions(
        data_dir=data_dir or local.default_data_dir(),
        nats_url=nats_url,
        artifacts=artifacts,
        http_port=http_port,
        node=node,
        services=tuple(services or ()),
        file_roots=tuple(file_root or ()),
        detach=detach,
        quiet=quiet,
    )
    code = local.up(options)
    if detach and code == Exit.OK:
        status(data_dir=data_dir)
        say("stop it with: llmos down")
    return code


def down(*, data_dir: DataDir = None) -> int:
    """Stop the stack; every process that it started has ended when this returns."""
    from llmos import local

    try:
        return local.down(data_dir)
    except NotFound as error:
        raise Unreachable(error.problem.message, remedy=error.problem.remedy) from error


def status(*, data_dir: DataDir = None, output: Output = "table") -> int:
    """Show which services of the stack are ready. The exit code is 5 while one is not."""
    from llmos import local

    try:
        found = local.status(data_dir)
    except NotFound as error:
        raise Unreachable(error.problem.message, remedy=error.problem.remedy) from error
    if output == "table":
        stack = found.stack
        print_fields(
            [
                ("bus", stack.nats_url),
                ("http", stack.gateway_url),
                ("artifacts", stack.artifacts),
                ("data", stack.data_dir),
                ("up", age(stack.started_at)),
            ]
        )
        print()
        print_table(["SERVICE", "READY"], [(service.service, service.ready) for service in found.services])
    else:
        print_value(found, output)
    return Exit.OK if found.ready else Exit.BUSY


def run(service: str, /) -> int:
    """Run one service against LLMOS_NATS_URL, as compose, Kubernetes and an edge box do.

    Parameters
    ----------
    service
        Its name, such as trainer or inferencer.
    """
    from llmos import local

    return local.run_service(service)
