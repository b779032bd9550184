"""The work of a `check` task: bring what the spec refers to, and have a child read all of it."""

from pathlib import Path

from llmos.contracts.jobs import Fault
from llmos.contracts.models import ModelRecord
from llmos.errors import Busy, NotFound, Rejected
from llmos.references import fetch, parse
from llmos_trainer import core
from llmos_trainer.core import Effect
from llmos_trainer.orders import CheckOrder, Progressed
from llmos_trainer.runs import Run
from llmos_trainer.splits import SPLITS

NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


async def check(run: Run) -> Effect:
    """Resolve every reference, then check what arrived; what did not is a fault beside the others."""
    await run.say_started()
    spec = run.assigned.spec
    data, untrained, faults = spec.data, spec.train.method == "none", []
    references = {f"data.{name}": text for name in SPLITS if (text := getattr(data, name))}
    references["model.base"] = run.assigned.spec.model.base
    arrived: dict[str, str] = {}
    away: dict[str, Busy] = {}
    for at, (field, text) in enumerate(references.items()):
        run.progress(Progressed(f"fetching {field}", fraction=0.25 * at / len(references)))
        try:
            arrived[field] = str(await run.unless_told(_fetch(run, text, run.folder / field)))
        except Rejected as error:
            faults.append(Fault(field, str(error)))
        except Busy as error:  # it may come with another attempt; what is wrong beside it is said now
            away[field] = error
            faults.append(Fault(field, str(error)))
    crashes = 0
    while True:
        order = CheckOrder(
            files={name: arrived[f"data.{name}"] for name in SPLITS if f"data.{name}" in arrived},
            references={name: references[f"data.{name}"] for name in SPLITS if f"data.{name}" in references},
            faults=faults,
            text=data.columns.get("text", data.text),
            label=data.columns.get("label", data.label),
            base=arrived.get("model.base", ""),
            max_length=(spec.export.max_length or 0) if untrained else spec.train.max_length,
            work=str(run.folder / f"trees-{crashes}"),
            task=spec.task,
            columns=data.columns,
            untrained=untrained,
        )
        end, exit = await run.child("llmos_trainer.checking:run", order, NO_GPU)
        effect = core.decide_ended(end, exit, run.intent, crashes)
        if isinstance(effect, core.SayRejected) and away and all(fault.path in away for fault in effect.faults):
            raise next(iter(away.values()))
        if not isinstance(effect, core.StartAgain):
            return effect
        crashes += 1


async def _fetch(run: Run, text: str, dest: Path) -> Path:
    async def trained(name: str, version: int | None) -> str:
        """The trained artifact of a registered version of the job's tenant."""
        entry = await run.context.bus.bucket("models").get(name, ModelRecord)
        versions = entry.value.versions if entry and entry.value.tenant == run.assigned.tenant else []
        for found in reversed(versions):
            if version in (None, found.version) and found.trained:
                return found.trained
        named = name if version is None else f"{name}@{version}"
        raise NotFound(
            f"there is no model {named} to train on", remedy="`llmos get models` lists those that there are."
        )

    return await fetch(
        parse(text),
        dest,
        store=run.context.store,
        file_roots=run.context.config.file_roots,
        models=trained,
        ciphers=run.unsealing,
    )
