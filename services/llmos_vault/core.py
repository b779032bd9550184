"""The vault's decisions: who gets a tenant's key, and what is signed for whom. Pure."""

import re

from msgspec import Struct

from llmos.contracts.keys import KeyRequested, SignRequested
from llmos.contracts.models import ModelRecord, Statement
from llmos.contracts.subjects import token
from llmos.errors import Rejected
from llmos_vault.state import State

PRINCIPAL = re.compile(r"([a-z][a-z0-9-]{0,63})/([A-Za-z0-9_-]{1,128})")
ARTIFACT = re.compile(r"sha256:[0-9a-f]{64}")
# Which task kinds a service works on.
WORKERS = {"trainer": ("check", "train"), "exporter": ("export",)}


class Verdict(Struct, frozen=True):
    """A decision; `reason` says why in words that may be shown to the asker."""

    allowed: bool
    reason: str


def check_request(request: KeyRequested) -> None:
    """Refuse what can't even be recorded. Raises `Rejected` naming the field."""
    token(request.tenant)
    token(request.subject)


def decide_release(state: State, request: KeyRequested) -> Verdict:
    """Whether `request.principal` gets a key of `request.tenant` for `request.subject`.

    A trainer or exporter: while a task of that tenant and of its kind holds a lease on its node. An inferencer: to
    decrypt, while a deployment assigns a private version of that tenant to its node. Nobody else.
    """
    service, node = _parse(request.principal)
    if not node:
        return Verdict(False, "the principal is not <service>/<node>")
    if (request.purpose == "encrypt") != (request.version == 0):
        return Verdict(False, "encrypting takes the newest version (0), decrypting names one")
    if request.version < 0:
        return Verdict(False, "there is no such version")
    if service in WORKERS:
        return _decide_worker(state, request, service, node)
    if service == "inferencer":
        return _decide_inferencer(state, request, node)
    return Verdict(False, f"a {service} has no use for data keys")


def _decide_worker(state: State, request: KeyRequested, service: str, node: str) -> Verdict:
    held = state.placed.get(request.subject)
    if held is None:
        return Verdict(False, f"no task {request.subject} is placed, or it has ended")
    if held.tenant != request.tenant:
        return Verdict(False, f"the task {request.subject} is not of the tenant {request.tenant}")
    if held.node != node or held.kind not in WORKERS[service]:
        return Verdict(False, f"the task {request.subject} is not placed on {request.principal}")
    return Verdict(True, f"lease {held.lease} of {request.subject}")


def _decide_inferencer(state: State, request: KeyRequested, node: str) -> Verdict:
    replica = state.replicas.get((node, request.subject))
    if replica is None or replica.version is None:
        return Verdict(False, f"the deployment {request.subject} is not assigned to {node}")
    if request.purpose != "decrypt":
        return Verdict(False, "an inferencer only decrypts")
    if replica.version.tenant != request.tenant:
        return Verdict(False, f"the deployment {request.subject} serves no version of the tenant {request.tenant}")
    if not replica.version.private:
        return Verdict(False, f"{replica.version.model}@{replica.version.version} is not private: it needs no key")
    return Verdict(True, f"generation {replica.generation} of {request.subject}")


def check_statement(statement: Statement) -> None:
    """Refuse what can't be a model version. Raises `Rejected` naming the field."""
    token(statement.tenant)
    token(statement.model)
    if statement.version < 1:
        raise Rejected("a model's versions start at 1", param="statement.version")
    if not ARTIFACT.fullmatch(statement.artifact):
        raise Rejected("the artifact is no address (sha256: and 64 hex digits)", param="statement.artifact")


def decide_signing(state: State, request: SignRequested, record: ModelRecord | None) -> Verdict:
    """Whether the statement is signed: an exporter asks, with an export task of that tenant leased on its node.

    A version that is registered with another artifact, or a name that another tenant owns, is never signed again.
    """
    service, node = _parse(request.principal)
    statement = request.statement
    if service != "exporter" or not node:
        return Verdict(False, "only an exporter has models signed")
    tasks = [
        task
        for task, held in state.placed.items()
        if (held.node, held.kind, held.tenant) == (node, "export", statement.tenant)
    ]
    if not tasks:
        return Verdict(False, f"no export task of the tenant {statement.tenant} is placed on {request.principal}")
    if record is not None:
        if record.tenant != statement.tenant:
            return Verdict(False, f"the model name {statement.model} belongs to another tenant")
        if any(v.version == statement.version and v.artifact != statement.artifact for v in record.versions):
            return Verdict(False, f"{statement.model}@{statement.version} is registered with another artifact")
    return Verdict(True, f"export task {', '.join(sorted(tasks))}")


def _parse(principal: str) -> tuple[str, str]:
    """Service and node; both empty when the principal is malformed."""
    match = PRINCIPAL.fullmatch(principal)
    return (match[1], match[2]) if match else ("", "")
