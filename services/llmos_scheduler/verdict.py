from llmos_scheduler.planning import Facts, Planning
from llmos_scheduler.work import Cause, Verdict, Work


def explain(facts: Facts, made: Planning, work: Work, now: int) -> Verdict:
    for start in made.starts:
        if start.work is work:
            return Verdict(starts_on=tuple(node for node, _ in start.places))
    by = tuple(stop.work.id for stop in made.stops if stop.by is work)
    if by:
        return Verdict(preempts=by)
    return Verdict(causes=(Cause("resources", "?"),))
