"""A deployment from assignment to answer, on a real bus."""

from typing import Any


async def test_an_assigned_version_is_loaded_and_answers(stand: Any) -> None:
    async with stand.running():
        ready = await stand.ready(await stand.deploy(await stand.register()))
        answer = await stand.ask("the service was great", "awful")
        assert (ready.model, ready.version) == ("mood", 1)
        assert [output.label for output in answer.outputs] == ["up-1", "down-1"]
