"""What becomes of a submission: `JobAdmitted`, `JobRejected`, or nothing because its job is known already. Pure."""

import msgspec
from msgspec import Struct

from llmos.contracts.jobs import Fault, JobAdmitted, JobRejected
from llmos.specs import check_spec
from llmos_scheduler.effects import Emit
from llmos_scheduler.records import State

LONGEST_ID = 100  # characters of a job id


def admit(
    state: State, *, tenant: str, job: str, data: bytes, now: float, cause: str = "", traceparent: str = ""
) -> Emit | None:
    """The fact that follows from the submission `data` to `llmos.job.submit.<tenant>.<job>`.

    `None` for a job of this tenant that was taken before: a redelivery, or an id used twice (the first use counts).
    """
    owner = state.jobs[job].tenant if job in state.jobs else None
    owner = state.turned_away[job].tenant if job in state.turned_away else owner
    if owner == tenant:
        return None
    if owner is not None:
        fault = Fault("", f"the job id {job} is taken; submit the job under another one")
        return Emit(JobRejected(job, tenant, [fault]), f"{job}.{tenant}.taken", cause, traceparent)
    if len(job) > LONGEST_ID:
        fault = Fault("", f"the job id has {len(job)} characters; at most {LONGEST_ID} leave room for its tasks' ids")
        return Emit(JobRejected(job, tenant, [fault], _name(data)), f"{job}.rejected", cause, traceparent)
    spec, faults = check_spec(data, tenant=tenant, now=now)
    if spec is not None and spec.deploy is not None:
        claimant = state.claimant(spec.deploy.name)
        if claimant not in ("", tenant):
            faults = [Fault("deploy.name", f"{spec.deploy.name!r} belongs to another tenant; choose another name")]
    if spec is None or faults:
        return Emit(JobRejected(job, tenant, faults, _name(data)), f"{job}.rejected", cause, traceparent)
    return Emit(JobAdmitted(job, spec, now, traceparent), f"{job}.admitted", cause, traceparent)


class _Named(Struct):
    name: str = ""


def _name(data: bytes) -> str:
    """What a spec that can't be admitted calls its job, if that much can be read."""
    try:
        return msgspec.json.decode(data, type=_Named).name[:128]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
