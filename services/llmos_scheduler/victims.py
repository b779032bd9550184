"""Which running jobs give way, when one that may preempt needs their GPUs. Gangs are stopped whole or not at all."""

from collections.abc import Iterable

from llmos_scheduler.order import Job


def choose_victims(needed: int, running: Iterable[Job]) -> list[Job]:
    """The jobs to stop so that at least `needed` GPUs come free, or none if all together would not do.

    Least work lost since a checkpoint first, in GPU-milliseconds, then the newest; then whoever is not needed after
    all is spared, the one that would lose most first. So no victim can be left out (the set is minimal).
    """
    victims: list[Job] = []
    freed = 0
    for job in sorted(running, key=_loss):
        if freed >= needed:
            break
        victims.append(job)
        freed += job.gpus
    if freed < needed:
        return []
    for job in sorted(victims, key=_loss, reverse=True):
        if freed - job.gpus >= needed:
            victims.remove(job)
            freed -= job.gpus
    return victims


def _loss(job: Job) -> tuple[int, int, int]:
    return job.unsaved * job.gpus, -job.since, -job.number
