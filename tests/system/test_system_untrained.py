"""Jobs that train nothing, end to end on separate processes: a base is checked, exported, gated, deployed and asked."""

import json
from pathlib import Path
from typing import Any

import pytest

from exporter_material import make_decoder, make_model
from exporter_rows import TAGS, tagged
from llmos import local
from llmos.client import Client
from outsider import Outsider

pytestmark = pytest.mark.system


def spec(outsider: Outsider, name: str, base: Path, rows: Path, **changes: Any) -> dict[str, Any]:
    return outsider.spec(
        name=name, model={"base": base.as_uri()}, data={"test": rows.as_uri()}, train={"method": "none"},
        deploy={"name": name}, resources={"cpus": 1, "memory": "1GiB"}, **changes,
    )  # fmt: skip


async def test_a_decoder_is_exported_in_the_form_that_measures_best_and_writes(
    outsider: Outsider, stack: local.StackInfo, material: Path
) -> None:
    base = make_decoder("llama", material / "decoder")
    rows = material / "texts.jsonl"
    rows.write_text("".join(json.dumps({"text": f"w{at} w9 w{at + 3} w30 w7"}) + "\n" for at in range(3, 40)))
    job = await outsider.submit(
        spec(
            outsider, "writer", base, rows, task="text-generation", gate={"perplexity": {"max": 1e6}},
            export={"precision": "auto", "target": "edge"},
        )
    )  # fmt: skip
    history = await outsider.history(job)
    assert history[-1][0] == "job.deployed", history[-1]
    assert {event.get("kind") for fact, event in history if fact == "task.placed"} == {"check", "export"}
    version = next(event["version"] for fact, event in history if fact == "model.exported")
    assert [one["precision"] for one in version["candidates"]] == ["fp32", "int8", "int4"]
    answer = await outsider.infer("writer", ["w5 w9 w8"])
    assert answer["outputs"][0]["token_ids"] or answer["outputs"][0]["text"]
    async with await Client.connect(stack.nats_url) as client:
        assert [task.kind for task in (await client.job(job)).tasks] == ["check", "export"]


async def test_a_tagger_is_exported_and_finds_entities(outsider: Outsider, material: Path) -> None:
    (material / "tagger").mkdir()
    base = make_model("bert", material / "tagger", head="BertForTokenClassification", labels=TAGS)
    rows = material / "tagged.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in tagged(40)))
    wanted = spec(
        outsider, "tagger", base, rows, task="token-classification", gate={"agreement": {"min": 0.8}},
        export={"precision": "int8"},
    )  # fmt: skip
    history = await outsider.history(await outsider.submit(wanted))
    assert history[-1][0] == "job.deployed", history[-1]
    answer = await outsider.infer("tagger", ["w5 w9 w8 w1 w2 w3"])
    assert "entities" in answer["outputs"][0]


async def test_a_base_that_cannot_be_exported_is_rejected_before_any_weight_is_read(
    outsider: Outsider, material: Path
) -> None:
    rows = material / "plain.jsonl"
    rows.write_text('{"text": "the phone is good"}\n' * 3)
    wanted = spec(outsider, "nothing", material / "base", rows, task="text-generation", gate={})
    history = await outsider.history(await outsider.submit(wanted))
    fact, event = history[-1]
    assert fact == "job.rejected"
    assert "a 'bert' model can't be exported for text-generation; supported are" in event["faults"][0]["message"]
