"""The work of a `train` task: a child from the newest checkpoint on, its checkpoints kept, again if it dies."""

import hashlib
import os
from pathlib import Path

import msgspec

from llmos.contracts.tasks import CheckpointPointer, GangMeeting, TaskAssigned, TaskCheckpointed
from llmos_trainer import core, gangs
from llmos_trainer.core import Effect
from llmos_trainer.keeping import Keeper, Superseded
from llmos_trainer.orders import Progressed, Report, Snapshotted, TrainOrder
from llmos_trainer.runs import Run


async def train(run: Run) -> Effect:
    """Train to the end, or to where the run is told to stop."""
    keeper = _keeper(run)
    try:
        pointer = await run.unless_told(keeper.newest())
        await run.say_started(pointer.step if pointer else None)
        run.progress(Progressed("fetching", step=pointer.step if pointer else 0))
        dataset = await run.unless_told(run.bring("dataset"))
        base = await run.unless_told(run.bring("base"))
        async with keeper:
            effect = await _train(run, keeper, dataset, base)
    except Superseded:
        return core.LetGo()
    run.context.telemetry.count("llmos.train.steps", max(0, run.step - (pointer.step if pointer else 0)))
    return effect


async def _train(run: Run, keeper: Keeper, dataset: Path, base: Path) -> Effect:
    assigned, crashes = run.assigned, 0
    while True:
        resume = run.folder / f"resume-{crashes}"
        meeting = await run.unless_told(gangs.find_meeting(run)) if assigned.rank else None
        if meeting is None:
            artifact = await run.unless_told(keeper.bring(resume))
        elif artifact := meeting.resume:
            await run.unless_told(keeper.bring_the(artifact, resume))
        order = TrainOrder(
            task=assigned.task,
            recipe=recipe(assigned),
            dataset=str(dataset),
            base=str(base),
            work=str(run.folder / f"work-{crashes}"),
            settings=assigned.spec.train,
            threads=threads(assigned),
            device="cuda" if assigned.devices else "cpu",
            gpu_milli=assigned.gpu_milli,
            gpu_memory=assigned.gpu_memory,
            checkpoint_every_s=run.context.config.checkpoint_every_s,
            resume=str(resume) if artifact else "",
        )
        env = environment(assigned)
        if gangs.in_gang(assigned):
            end, exit = await _in_gang(run, keeper, order, env, meeting, artifact)
        else:
            end, exit = await run.child(gangs.TARGET, order, env, lambda report: _offered(keeper, report))
        if run.intent not in ("cancel", "superseded"):
            await keeper.settled()  # what the child could still save counts
        await gangs.heard_of(run, end)
        if assigned.world > 1:
            return core.decide_member_ended(end, exit, run.intent)
        effect = core.decide_ended(end, exit, run.intent, crashes)
        if not isinstance(effect, core.StartAgain):
            return effect
        run.log.warning("a child died", exit=exit)
        crashes += 1


async def _in_gang(
    run: Run, keeper: Keeper, order: TrainOrder, env: dict[str, str], meeting: GangMeeting | None, artifact: str
) -> gangs.Ended:
    async def opened(meeting: GangMeeting) -> None:
        if run.assigned.world > 1:
            await gangs.open_meeting(run, msgspec.structs.replace(meeting, resume=artifact))

    env |= gangs.network(gangs.own_address(run), os.environ)
    parts = gangs.orders(run, order, meeting)
    return await gangs.together(run, parts, env, keeper.offer, opened)


def _offered(keeper: Keeper, report: Report) -> None:
    if isinstance(report, Snapshotted):
        keeper.offer(report)


def recipe(assigned: TaskAssigned) -> str:
    """A digest of all that the trained weights are made from: a checkpoint of another recipe is not resumed."""
    made_from = {"settings": assigned.spec.train, "inputs": assigned.inputs, "task": assigned.spec.task}
    return hashlib.sha256(msgspec.json.encode(made_from, order="sorted")).hexdigest()


def threads(assigned: TaskAssigned) -> int:
    """CPU threads of a run: the leased cores, whole ones."""
    return max(1, int(assigned.cpus))


def environment(assigned: TaskAssigned) -> dict[str, str]:
    """What a child must find in its environment before it touches CUDA or a thread pool."""
    return {
        "CUDA_VISIBLE_DEVICES": ",".join(assigned.devices),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # cuBLAS repeats its results only with a fixed workspace
        "RAYON_NUM_THREADS": str(threads(assigned)),
        "TOKENIZERS_PARALLELISM": "true",
    }


def _keeper(run: Run) -> Keeper:
    async def kept(pointer: CheckpointPointer) -> None:
        assigned = run.assigned
        await run.emit(
            TaskCheckpointed(
                assigned.task, assigned.job, assigned.tenant, assigned.lease, pointer.step, pointer.artifact
            )
        )

    keeper = Keeper(
        run.context.bus.bucket("state"),
        run.context.store,
        run.assigned.task,
        run.assigned.lease,
        job=run.assigned.job,
        unsealing=run.unsealing,
        sealing=run.sealing,
        kept=kept,
        superseded=lambda: run.tell("superseded"),
        log=run.log,
    )

    async def afterwards(effect: Effect) -> None:
        """A lease that is over needs no meeting point, and a task that nobody will resume no pointer."""
        if run.assigned.world > 1:
            await gangs.close_meeting(run)
        match effect:
            case core.SaySucceeded() | core.SayFailed(retryable=False):
                await keeper.forget()
            case core.SayCancelled() if run.intent == "cancel":
                await keeper.forget()

    if not run.silent:
        run.afterwards = afterwards
    return keeper
