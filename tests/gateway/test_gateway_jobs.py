"""Jobs over HTTP: submitting, reading, cancelling, and what is refused."""

import asyncio
from typing import Any

import httpx
import pytest

from llmos.bus import Bus
from llmos.contracts import jobs, tasks
from llmos.errors import Problem
from llmos.testing.scripted import NODE, ScriptedInferencer, ScriptedScheduler, playing, rejected
from llmos_gateway.door import allowed_names, host_name

SPEC: dict[str, Any] = {"name": "intents", "model": {"base": "hf:a/b"}, "data": {"train": "file:///rows.jsonl"}}


def check_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code), body
    assert response.headers["content-type"] == "application/problem+json"
    assert body["type"] == f"urn:llmos:problem:{code}"
    return body


async def test_an_admitted_job_is_created_and_says_where_it_is(
    http: httpx.AsyncClient, scheduler: ScriptedScheduler
) -> None:
    response = await http.post("/v1/jobs", json=SPEC)
    body = response.json()
    assert (response.status_code, body["state"]) == (201, "queued")
    assert response.headers["location"] == f"/v1/jobs/{body['job']}"
    view = (await http.get(response.headers["location"])).json()
    assert (view["job"], view["name"]) == (body["job"], "intents")


async def test_a_rejected_job_lists_every_fault(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    scheduler.story = rejected
    body = check_problem(await http.post("/v1/jobs", json=SPEC), 422, "rejected")
    assert [fault["line"] for fault in body["faults"]] == [2, 7]


async def test_a_job_that_the_scheduler_has_not_seen_yet_is_accepted(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/jobs", json=SPEC)
    assert (response.status_code, response.json()["state"]) == (202, "submitted")


async def test_a_job_of_another_tenant_under_the_same_id_is_not_taken_for_ours(
    http: httpx.AsyncClient, bus: Bus
) -> None:
    theirs = jobs.JobSpec("x", jobs.ModelSource("hf:a/b"), jobs.DataSource("file:///a"), tenant="theirs")
    await bus.emit(jobs.JobAdmitted("job-7", theirs, 1.0))
    response = await http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "job-7"})
    assert response.status_code == 202


async def test_an_idempotency_key_is_the_jobs_id_and_repeating_makes_no_second_job(
    http: httpx.AsyncClient, scheduler: ScriptedScheduler
) -> None:
    for _ in range(2):
        response = await http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "job-7"})
        assert (response.status_code, response.json()["job"]) == (201, "job-7")
    assert len(scheduler.heard) == 1


async def test_an_idempotency_key_that_can_be_no_id_is_named(http: httpx.AsyncClient) -> None:
    for key in ("a.b", "with space", "", "*", "k" * 129):
        body = check_problem(await http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": key}), 422, "rejected")
        assert body["param"] == "Idempotency-Key"


async def test_a_body_that_is_no_json_object_is_refused(http: httpx.AsyncClient) -> None:
    kinds = (
        (b"{", 400, "bad_request"),
        (b"\xff", 400, "bad_request"),
        (b"[]", 422, "rejected"),
        (b"", 400, "bad_request"),
    )
    for content, status, code in kinds:
        response = await http.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
        check_problem(response, status, code)


async def test_only_json_is_read_so_that_no_web_page_can_post_a_job(
    http: httpx.AsyncClient, scheduler: ScriptedScheduler
) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = await http.post("/v1/jobs", content=b'{"name": "x"}', headers={"Content-Type": kind} if kind else {})
        check_problem(response, 415, "unsupported_media_type")
    assert scheduler.heard == []


async def test_a_body_above_the_limit_is_refused_however_it_is_sent(
    http: httpx.AsyncClient, scheduler: ScriptedScheduler
) -> None:
    async def pieces() -> Any:
        for _ in range(5):
            yield b" " * 1024

    contents: tuple[Any, ...] = (pieces(), b" " * 5000)
    for content in contents:
        response = await http.post("/v1/jobs", content=content, headers={"Content-Type": "application/json"})
        check_problem(response, 413, "request_entity_too_large")
    assert scheduler.heard == []


async def test_jobs_are_listed_newest_first_and_can_be_filtered(
    http: httpx.AsyncClient, scheduler: ScriptedScheduler
) -> None:
    made = [(await http.post("/v1/jobs", json={**SPEC, "tenant": tenant})).json()["job"] for tenant in ("a", "b")]
    assert [view["job"] for view in (await http.get("/v1/jobs")).json()["jobs"]] == made[::-1]
    assert [view["job"] for view in (await http.get("/v1/jobs?tenant=a")).json()["jobs"]] == made[:1]
    assert [view["job"] for view in (await http.get("/v1/jobs?limit=1")).json()["jobs"]] == made[1:]


async def test_a_query_that_does_not_fit_is_named(http: httpx.AsyncClient) -> None:
    for limit in ("0", "1001", "many"):
        body = check_problem(await http.get(f"/v1/jobs?limit={limit}"), 400, "bad_request")
        assert body["param"] == "limit"


async def test_what_is_not_there_is_404(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    jobs_ = ("none", "none/explain", "none/events", "a.b/events", "%2A/events", "%3E")
    for path in (*(f"/v1/jobs/{job}" for job in jobs_), "/v1/models/none", "/v2"):
        check_problem(await http.get(path), 404, "not_found")
    check_problem(await http.delete("/v1/jobs/none"), 404, "not_found")


async def test_a_wrong_method_is_405_and_names_the_right_ones(http: httpx.AsyncClient) -> None:
    response = await http.put("/v1/jobs")
    check_problem(response, 405, "method_not_allowed")
    assert {"GET", "POST"} <= {method.strip() for method in response.headers["allow"].split(",")}


async def test_deleting_a_job_cancels_it(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    placed = tasks.TaskPlaced("j-check", "j", "default", "check", 1, 1, NODE)
    scheduler.story = lambda job, spec: iter([placed, asyncio.Event()])
    await http.post("/v1/jobs", json=SPEC, headers={"Idempotency-Key": "j"})
    first = await http.delete("/v1/jobs/j")
    again = await http.delete("/v1/jobs/j")
    assert (first.status_code, again.status_code, again.json()["state"]) == (202, 200, "cancelled")
    assert scheduler.cancelled[0] == jobs.CancelRequested("j", "gateway")


async def test_a_waiting_job_is_explained(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    job = (await http.post("/v1/jobs", json=SPEC)).json()["job"]
    assert "GPU" in (await http.get(f"/v1/jobs/{job}/explain")).json()["summary"]


async def test_nodes_are_listed(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    assert (await http.get("/v1/nodes")).json()["nodes"][0]["node"] == NODE


async def test_a_deployed_model_answers(http: httpx.AsyncClient, bus: Bus) -> None:
    inferencer = ScriptedInferencer(bus, "intents")
    await inferencer.deploy()
    async with playing(inferencer):
        response = await http.post("/v1/models/intents/infer", json={"inputs": ["good day", "bad day"]})
    assert response.status_code == 200
    assert [output["label"] for output in response.json()["outputs"]] == ["yes", "no"]


async def test_a_silent_model_is_503_with_retry_after(http: httpx.AsyncClient, bus: Bus) -> None:
    await ScriptedInferencer(bus, "intents").deploy()
    response = await http.post("/v1/models/intents/infer", json={"inputs": ["good"]})
    check_problem(response, 503, "busy")
    assert response.headers["retry-after"] == "1"


async def test_what_the_model_refuses_is_422_with_the_models_words(http: httpx.AsyncClient, bus: Bus) -> None:
    inferencer = ScriptedInferencer(bus, "intents", problem=Problem("rejected", "text 0 is too long", "Shorten it."))
    await inferencer.deploy()
    async with playing(inferencer):
        body = check_problem(await http.post("/v1/models/intents/infer", json={"inputs": ["good"]}), 422, "rejected")
    assert (body["detail"], body["remedy"]) == ("text 0 is too long", "Shorten it.")


async def test_asking_a_model_that_is_not_deployed_is_404_at_once(http: httpx.AsyncClient) -> None:
    check_problem(await http.post("/v1/models/intents/infer", json={"inputs": ["good"]}), 404, "not_found")


async def test_a_request_that_does_not_fit_is_refused_before_the_bus(http: httpx.AsyncClient) -> None:
    good: dict[str, Any] = {"inputs": ["a"]}
    lists: tuple[list[Any], ...] = ([], [1], ["a"] * 257)
    for body in ({}, *({"inputs": inputs} for inputs in lists), good | {"top": -1}, good | {"tpo": 1}):
        told = check_problem(await http.post("/v1/models/intents/infer", json=body), 400, "bad_request")
        assert told["faults"]


async def test_a_trace_goes_in_and_out_and_on_to_the_bus(http: httpx.AsyncClient, scheduler: ScriptedScheduler) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    response = await http.post("/v1/jobs", json=SPEC, headers=headers)
    assert response.headers["traceparent"].split("-")[1] == trace
    assert scheduler.heard[0][1]["traceparent"].split("-")[1] == trace


async def test_a_request_without_a_trace_gets_one(http: httpx.AsyncClient) -> None:
    traces = [(await http.get("/healthz")).headers["traceparent"] for _ in range(2)]
    assert traces[0] != traces[1]


async def test_a_request_for_another_host_name_is_refused(http: httpx.AsyncClient) -> None:
    check_problem(await http.get("/healthz", headers={"Host": "evil.example"}), 421, "wrong_host")


@pytest.mark.parametrize(
    ("header", "name"), [("[::1]:80", "::1"), ("LOCALHOST:1", "localhost"), ("a.b", "a.b"), ("[", ""), ("", "")]
)
def test_a_host_header_is_read_without_its_port(header: str, name: str) -> None:
    assert host_name(header) == name


def test_a_gateway_for_the_network_answers_for_any_name_unless_told() -> None:
    assert allowed_names("0.0.0.0", []) == frozenset()
    assert allowed_names("0.0.0.0", ["API.example"]) == {"api.example"}
    assert "localhost" in allowed_names("127.0.0.1", [])
