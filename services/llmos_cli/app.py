"""The commands of `llmos`, each loaded only when it is called: `--help` imports none of them."""

from cyclopts import App

import llmos

HELP = """An operating system for language models.

Exit codes: 0 done, 1 failed, 2 wrong input, 3 not found, 4 no stack, 5 busy or timed out, 130 interrupted.
"""

# name → where it lives, and its line in the list of commands
COMMANDS: dict[str, tuple[str, str]] = {
    "up": ("stack:up", "Start the whole stack on this machine."),
    "down": ("stack:down", "Stop the stack of this machine."),
    "status": ("stack:status", "Show which services of the stack are ready."),
    "run": ("stack:run", "Run one service, configured by the environment."),
    "submit": ("submit:submit", "Submit a job from a YAML or JSON file."),
    "get": ("get:get", "List jobs, models, nodes or deployments, or show one."),
    "describe": ("describe:describe", "Tell everything about a job, a model or a node."),
    "logs": ("logs:logs", "Show the logs of services, or the events of a job."),
    "cancel": ("jobs:cancel", "Cancel a job."),
    "explain": ("jobs:explain", "Say why a job waits."),
    "plan": ("plan:plan", "Say what would become of a job, without submitting it."),
    "queues": ("queues:app", "Show the queues, or change how they divide the cluster."),
    "cordon": ("nodes:cordon", "Let nothing new start on a node."),
    "uncordon": ("nodes:uncordon", "Let a node take work again."),
    "drain": ("nodes:drain", "Cordon a node and clear it."),
    "reserve": ("reservations:reserve", "Keep nodes for a queue or a tenant."),
    "unreserve": ("reservations:unreserve", "End a reservation."),
    "deploy": ("shifting:deploy", "Serve another version of a deployed model."),
    "canary": ("shifting:canary", "Let another version answer some of the requests."),
    "rollback": ("shifting:rollback", "Go back to the version that served before."),
    "infer": ("infer:infer", "Ask a deployed model."),
    "chat": ("chat:chat", "Talk with a deployed model that generates text."),
    "bench": ("bench:bench", "Measure how fast a deployed model answers."),
    "edge": ("edge:app", "Join a box with a nats-server of its own to the hub."),
    "simulate": ("simulate:app", "Try placement policies on a trace of nodes and tasks."),
    "audit": ("audit:app", "Verify, show and prove the audit log."),
    "dead": ("dead:app", "List, show and replay messages that no service could handle."),
}


# shown below a command's own help
EXAMPLES: dict[str, str] = {
    "get": """llmos get nodes -o wide
llmos get jobs --state queued --all-tenants
llmos get events -o json > events.jsonl         # one event a line, for `llmos simulate replay --from-log`""",
    "plan": "llmos plan -f job.yaml --set resources.gpus=4 --set priority=80",
    "cordon": 'llmos cordon gpu-3 --reason "its fan is loud"',
    "drain": 'llmos drain gpu-3 --wait --reason "new driver" && ssh gpu-3 sudo reboot',
    "reserve": """llmos reserve demo --nodes gpu-1 --tenant sales --end +2h
llmos reserve exam --nodes gpu-1,gpu-2 --queue students/exam --start 2026-12-01T08:00Z --end 2026-12-01T18:00Z""",
}


def make_app() -> App:
    """The application; `llmos_cli.__main__` runs it."""
    app = App(
        name="llmos",
        help=HELP,
        help_format="plaintext",
        version=llmos.__version__,
        suppress_keyboard_interrupt=False,
        result_action="return_value",
    )
    for order, (name, (place, help)) in enumerate(COMMANDS.items()):
        more = {"help_epilogue": f"Examples:\n{EXAMPLES[name]}"} if name in EXAMPLES else {}
        app.command(f"llmos_cli.{place}", name=name, help=help, sort_key=order, **more)
    return app
