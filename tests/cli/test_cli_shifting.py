"""`llmos deploy`, `canary` and `rollback` against a scripted scheduler."""

from llmos.bus import Bus
from llmos.contracts.deployments import RollbackRequested, ShiftRequested
from llmos.contracts.jobs import DataSource, JobSpec, ModelSource
from llmos.contracts.models import ModelRecord
from llmos.testing.commands import Commands
from llmos.testing.scripted import ScriptedInferencer, ScriptedScheduler, version_of


async def test_versions_are_shifted_by_number_and_taken_back(
    llmos: Commands, scheduler: ScriptedScheduler, bus: Bus
) -> None:
    spec = JobSpec("intents", ModelSource("hf:a/b"), DataSource("file:///a"))
    versions = [version_of(f"job-{number}", spec, number) for number in (1, 2)]
    await bus.bucket("models").put("intents", ModelRecord("intents", "default", versions))
    assert (await llmos.run("canary", "intents", "--version", "2")).code == 3  # nothing is deployed
    await ScriptedInferencer(bus, "intents").deploy()
    done = await llmos.run("canary", "intents", "--version", "2", "--weight", "15")
    assert done.out == "intents: intents version 1 on scripted, version 2 answers 15 %\n"
    await llmos.run("deploy", "intents", "--version", "2", "--pin", "--idle", "60")
    assert (await llmos.run("rollback", "intents", "-o", "json")).json()["deployment"] == "intents"
    canary, promoted, back = scheduler.asked
    assert isinstance(canary, ShiftRequested) and (canary.version, canary.weight) == (versions[1], 15)
    assert isinstance(promoted, ShiftRequested) and (promoted.weight, promoted.pinned, promoted.idle) == (100, True, 60)
    assert isinstance(back, RollbackRequested) and back.requested_by.startswith("cli/")
    missing = await llmos.run("deploy", "intents", "--version", "9")
    assert missing.code == 3 and "It has: 1, 2" in missing.err
