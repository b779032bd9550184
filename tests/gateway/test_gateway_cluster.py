"""Nodes, queues, reservations and plans over HTTP."""

from typing import Any

import httpx

from llmos.contracts import jobs, nodes, queues
from llmos.testing.scripted import NODE, ScriptedScheduler

SPEC: dict[str, Any] = {"name": "intents", "model": {"base": "hf:a/b"}, "data": {"train": "file:///rows.jsonl"}}


async def test_a_node_is_cordoned_and_takes_work_again(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    cordoned = await http.post(f"/v1/nodes/{NODE}/cordon", json={"drain": True, "reason": "driver"})
    assert (cordoned.status_code, cordoned.json()["draining"]) == (200, True)
    assert scheduler.asked == [nodes.CordonRequested(NODE, True, "driver", "gateway")]
    (listed,) = (await http.get("/v1/nodes")).json()["nodes"]
    assert listed["reason"] == "driver"
    assert (await http.delete(f"/v1/nodes/{NODE}/cordon")).json().get("cordoned", False) is False
    assert (await http.post("/v1/nodes/none/cordon", json={})).status_code == 404
    assert (await http.post(f"/v1/nodes/{NODE}/cordon", json={"drian": True})).status_code == 400


async def test_queues_are_set_or_every_fault_is_told(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    wrong = await http.put("/v1/queues", json={"queues": [{"name": "a", "quote": 1}, {"name": "a"}]})
    assert wrong.status_code == 422
    assert [fault["path"] for fault in wrong.json()["faults"]] == ["queues[0].quote", "queues[1].name"]
    right = await http.put("/v1/queues", json={"queues": [{"name": "a", "quota": 1}]})
    assert right.json() == {"queues": [{"name": "a", "quota": 1}]} == (await http.get("/v1/queues")).json()
    assert scheduler.asked == [queues.SetQueuesRequested([queues.QueueSettings("a", quota=1)], "gateway")]


async def test_nodes_are_reserved_and_set_free(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    made = await http.put("/v1/reservations/exam", json={"nodes": ["a"], "queue": "students"})
    assert (made.status_code, made.json()["active"]) == (200, True)
    assert (await http.get("/v1/reservations")).json() == {"reservations": [made.json()]}
    assert (await http.delete("/v1/reservations/exam")).status_code == 200
    assert (await http.delete("/v1/reservations/exam")).status_code == 404


async def test_a_job_is_planned_and_not_submitted(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    answer = await http.post("/v1/plan", json=SPEC)
    assert (answer.status_code, answer.json()["held_by"]) == (200, ["job-7"])
    assert scheduler.asked == [jobs.PlanRequested("default", SPEC)]
    assert scheduler.heard == []
