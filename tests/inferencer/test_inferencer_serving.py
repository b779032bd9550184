"""A deployment from assignment to answer, on a real bus."""

import asyncio
import time
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from llmos.contracts import subjects
from llmos.contracts.dead import DeadLetter
from llmos.contracts.deployments import ReplicaFailed, ReplicaReady, ReplicaUnloaded
from llmos.contracts.inference import InferenceAnswered, InferenceMetered, InferenceRequested
from llmos.contracts.models import Statement
from llmos.signing import SigningKey

SLOW = 250  # rounds of a model that takes the better part of a second


def labels(answer: InferenceAnswered) -> list[str]:
    assert answer.problem is None, answer.problem
    return [output.label for output in answer.outputs]


async def test_an_assigned_version_is_loaded_and_answers_both_classes(stand: Any) -> None:
    async with stand.running():
        ready = await stand.ready(await stand.deploy(await stand.register()))
        for klass in ("interactive", "batch"):
            answer = await stand.ask("the service was great", "awful", klass=klass)
            assert labels(answer) == ["up-1", "down-1"]
            assert (answer.model, answer.version, answer.node) == ("mood", 1, ready.node)
        assert labels(await stand.ask()) == []


# --- refusals ---


async def test_a_version_that_nobody_signed_is_refused_and_says_so(stand: Any) -> None:
    version = replace(await stand.register(), signature=None)
    async with stand.running():
        failed = await stand.failed(await stand.deploy(version))
        assert not failed.retryable
        assert "not signed" in failed.problem.message


async def test_a_signature_by_another_key_is_refused(stand: Any) -> None:
    version = await stand.register()
    usurper = SigningKey("vault-1", SigningKey.new_secret())
    async with stand.running():
        failed = await stand.failed(await stand.deploy(stand.sign("mood", 1, version.artifact, usurper)))
        assert not failed.retryable
        assert "does not verify" in failed.problem.message


async def test_a_flipped_byte_in_the_artifact_is_refused(stand: Any) -> None:
    version = await stand.register()
    largest = max((stand.folder / "artifacts" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    async with stand.running():
        failed = await stand.failed(await stand.deploy(version))
        assert (failed.problem.code, failed.retryable) == ("damaged", False)


async def test_a_version_that_is_refused_leaves_the_one_before_serving(stand: Any) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(first := await stand.register()))
        await stand.failed(await stand.deploy(replace(await stand.register(2), signature=None)))
        assert labels(await stand.ask("good")) == ["up-1"]
        back = await stand.ready(await stand.deploy(first))  # what the scheduler does then: nothing is loaded for it
        assert (back.version, back.load_s) == (1, 0.0)
        assert not [event for event in stand.events if isinstance(event, ReplicaUnloaded)]


async def test_an_artifact_store_that_comes_back_is_waited_for(stand: Any) -> None:
    version, objects = await stand.register(), stand.folder / "artifacts" / "sha256"
    objects.chmod(0)
    away = objects.with_name("away")
    objects.rename(away)
    async with stand.running():
        (stand.folder / "artifacts" / "sha256").rmdir()
        (stand.folder / "artifacts" / "sha256").write_bytes(b"not a directory")  # every read of it is an OSError
        assigned = await stand.deploy(version)
        await asyncio.sleep(0.3)
        (stand.folder / "artifacts" / "sha256").unlink()
        away.rename(objects)
        objects.chmod(0o755)
        await stand.ready(assigned)
        assert not [event for event in stand.events if isinstance(event, ReplicaFailed)]


# --- swapping ---


async def test_a_hot_swap_under_load_loses_no_request_and_mixes_no_versions(stand: Any) -> None:
    answers: list[InferenceAnswered] = []
    enough = asyncio.Event()

    async def client(number: int) -> None:
        while not enough.is_set():
            answers.append(await stand.ask("good", "the service was bad", *["fine"] * (number % 5)))

    async with stand.running():
        await stand.ready(await stand.deploy(await stand.register(1)))
        clients = [asyncio.create_task(client(number)) for number in range(12)]
        for number in (2, 3):
            await asyncio.sleep(0.2)
            await stand.ready(await stand.deploy(await stand.register(number)))
            await stand.unloaded(version=number - 1, reason=f"replaced by version {number}")
        await asyncio.sleep(0.2)
        enough.set()
        await asyncio.gather(*clients)
    assert {answer.version for answer in answers} == {1, 2, 3}
    for answer in answers:
        given = labels(answer)
        assert {label.rpartition("-")[2] for label in given} == {str(answer.version)}
        assert [label[:2] for label in given] == ["up", "do", *["up"] * (len(given) - 2)]


async def test_a_swap_for_which_there_is_no_room_beside_the_old_version_holds_requests_and_loses_none(
    stand: Any,
) -> None:
    async with stand.running(memory="64MiB"):
        await stand.ready(await stand.deploy(await stand.register(1, megabytes=24)))
        assigned = await stand.deploy(await stand.register(2, megabytes=24))
        answers = [await stand.ask("good")]
        while answers[-1].version != 2:
            answers += await asyncio.gather(*(stand.ask("good") for _ in range(4)))
        await stand.ready(assigned)
        assert "memory" in (await stand.unloaded(version=1)).reason
    assert all(labels(answer) == [f"up-{answer.version}"] for answer in answers)


# --- memory ---


async def test_the_least_recently_used_model_makes_room_and_comes_back_when_it_is_asked(stand: Any) -> None:
    async with stand.running(memory="64MiB"):  # room for two of them
        for name in "abc":
            await stand.ready(await stand.deploy(await stand.register(model=name, megabytes=24), name=name))
        unloaded = await stand.unloaded("a")
        assert "memory" in unloaded.reason
        for names in ("aab", "cab", "bcca" * 3):  # held while their model is loaded
            answers = await asyncio.gather(*(stand.ask("good", name=name) for name in names))
            assert [(answer.model, *labels(answer)) for answer in answers] == [(name, "up-1") for name in names]
        for name in "bc":
            await stand.unloaded(name)


async def test_a_model_that_is_larger_than_the_budget_is_refused_with_the_remedy(stand: Any) -> None:
    async with stand.running(memory="20MiB"):
        failed = await stand.failed(await stand.deploy(await stand.register(megabytes=24)))
        assert failed.problem.code == "no_memory"
        assert "LLMOS_MEMORY" in failed.problem.remedy


async def test_an_idle_model_that_was_unloaded_holds_its_requests_until_their_deadline(stand: Any) -> None:
    versions = {name: await stand.register(model=name, megabytes=24, rounds=4 * SLOW * (name == "b")) for name in "ab"}
    async with stand.running(memory="64MiB"):
        for name, version in versions.items():
            await stand.ready(await stand.deploy(version, name=name))
        busy = asyncio.create_task(stand.ask("good", name="b"))
        await asyncio.sleep(0.2)
        late = await stand.ask("good", name="a", deadline=time.time() + 0.2)  # b can't make room before it has answered
        assert late.problem.code == "deadline"
        assert labels(await busy) == ["up-1"]


# --- bad requests ---


async def test_a_poison_input_costs_its_own_request_an_error_and_its_neighbours_nothing(stand: Any) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(await stand.register()))
        texts = ["good", "poison", "bad", "nan", "great"] * 6
        answers = await asyncio.gather(*(stand.ask("fine", text) for text in texts))
    for text, answer in zip(texts, answers, strict=True):
        if text in ("poison", "nan"):
            assert (answer.problem.code, answer.problem.param) == ("unanswerable", "inputs[1]")
            assert (answer.outputs, answer.version) == ([], 1)
        else:
            assert labels(answer) == ["up-1", "down-1" if text == "bad" else "up-1"]


async def test_a_request_whose_deadline_passed_is_answered_with_a_problem(stand: Any) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(await stand.register()))
        late = await stand.ask("good", deadline=time.time() - 1)
        assert (late.problem.code, late.outputs) == ("deadline", [])
        assert labels(await stand.ask("good", deadline=time.time() + 60)) == ["up-1"]


async def test_too_many_inputs_are_refused_with_the_limit(stand: Any) -> None:
    async with stand.running(max_inputs=8):
        await stand.ready(await stand.deploy(await stand.register()))
        assert len(labels(await stand.ask(*["good"] * 8))) == 8
        refused = await stand.ask(*["good"] * 9)
        assert (refused.problem.code, refused.problem.param) == ("rejected", "inputs")
        assert "8" in refused.problem.message


async def test_an_answer_that_no_message_can_hold_is_a_problem_and_not_silence(stand: Any) -> None:
    async with stand.running(max_inputs=100_000):
        await stand.ready(await stand.deploy(await stand.register()))
        refused = await stand.ask(*["good"] * 6000)
        assert "too large" in refused.problem.message
        assert len(labels(await stand.ask(*["good"] * 2000, top=1))) == 2000


async def test_what_is_no_request_dies_with_its_payload_and_disturbs_nobody(stand: Any) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(await stand.register()))
        body = {"client": "c", "inputs": ["good", 7]}
        await stand.bus.publish(subjects.infer("mood", "bad-1"), body, type="llmos.inference.requested.v1")
        body = InferenceRequested("no token", ["good"])
        await stand.bus.publish(subjects.infer("mood", "bad-2"), body, type="llmos.inference.requested.v1")
        assert labels(await stand.ask("good")) == ["up-1"]
        dead: list[str] = []
        async with asyncio.timeout(10):
            async for heard in stand.bus.follow("DEAD"):
                letter = msgspec.json.decode(heard.data, type=DeadLetter)
                dead.append(letter.subject.rsplit(".", 1)[-1])
                if len(dead) == 2:
                    break
        assert sorted(dead) == ["bad-1", "bad-2"]


# --- coming and going ---


async def test_a_deployment_that_is_taken_down_leaves_its_requests_to_who_serves_it_next(stand: Any) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(version := await stand.register()))
        await stand.deploy(None)
        await stand.unloaded(reason="taken down", generation=2)
        waiting = asyncio.create_task(stand.ask("good"))
        await asyncio.sleep(0.3)
        assert not waiting.done()
        await stand.ready(await stand.deploy(version))
        assert labels(await waiting) == ["up-1"]


async def test_taking_down_what_is_not_there_is_confirmed(stand: Any) -> None:
    async with stand.running():
        await stand.deploy(None)
        await stand.unloaded(generation=1, version=0)


async def test_after_a_restart_every_deployment_comes_back_without_anybodys_help(stand: Any) -> None:
    async with stand.running():
        for name in ("a", "b"):
            await stand.ready(await stand.deploy(await stand.register(model=name), name=name))
    stand.events.clear()
    waiting = [asyncio.create_task(stand.ask("good", name=name)) for name in ("a", "b")]
    async with stand.running():
        for name, asked in zip("ab", waiting, strict=True):
            assert labels(await asked) == ["up-1"]
            await stand.until(ReplicaReady, deployment=name, generation=1)


async def test_an_assignment_said_again_is_confirmed_again(stand: Any) -> None:
    async with stand.running():
        assigned = await stand.deploy(await stand.register())
        await stand.ready(assigned)
        stand.events.clear()
        await stand.bus.publish(subjects.deploy(assigned.node, "mood"), assigned, type="llmos.replica.assigned.v1")
        assert (await stand.ready(assigned)).load_s == 0.0


async def test_a_stopping_inferencer_finishes_what_it_began_and_gives_the_rest_back(stand: Any) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(await stand.register(rounds=SLOW)))
        took = (await stand.ask("good", "bad")).compute_ms / 1000
        asked = [asyncio.create_task(stand.ask("good", "bad"))]
        await asyncio.sleep(took / 5)  # the first one is being computed
        asked += [asyncio.create_task(stand.ask("good", "bad")) for _ in range(6)]
        await asyncio.sleep(took / 5)
    done = [task for task in asked if task.done()]
    assert done[:1] == asked[:1]
    assert len(done) < len(asked)
    async with stand.running():
        started = asyncio.get_running_loop().time()
        for task in asked:
            assert labels(await task) == ["up-1", "down-1"]
        assert asyncio.get_running_loop().time() - started < 8  # at once, not after the ack wait of 12 s


async def test_what_was_served_is_summed_up_at_the_end(stand: Any) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(await stand.register()))
        await stand.ask("good")
        await stand.ask("good", "bad")
        await stand.ask("poison")
    metered = await stand.until(InferenceMetered)
    assert (metered.requests, metered.inputs, metered.failures, metered.version) == (3, 4, 1, 1)
    assert 0 < metered.p50_ms <= metered.p99_ms
    assert metered.since < metered.until


# --- keys and traces ---


async def test_without_a_trust_file_the_vault_is_asked_and_a_vault_that_is_late_is_waited_for(stand: Any) -> None:
    async with stand.running(trusted_keys=""):
        assigned = await stand.deploy(await stand.register())
        await asyncio.sleep(0.3)
        vault = asyncio.create_task(stand.vault())
        await stand.ready(assigned)
        vault.cancel()
        assert not [event for event in stand.events if isinstance(event, ReplicaFailed)]
    async with stand.running(trusted_keys=""):  # pinned: the vault is not needed any more
        stand.events.clear()
        await stand.ready(assigned)


async def test_a_private_model_is_served_with_the_key_that_the_vault_releases(stand: Any) -> None:
    version = await stand.register(private=True)
    vault = asyncio.create_task(stand.vault())
    async with stand.running():
        await stand.ready(await stand.deploy(version))
        assert labels(await stand.ask("good")) == ["up-1"]
        assert [(key.principal, key.purpose, key.subject) for key in stand.keys_asked] == [
            ("inferencer/edge-1", "decrypt", "mood")
        ]
        assert not list((stand.config.state_dir() / "models").rglob("*.onnx"))
    vault.cancel()


async def test_an_answer_and_the_readiness_of_a_replica_carry_the_trace_and_the_cause_of_what_led_to_them(
    stand: Any,
) -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    async with stand.running():
        version = await stand.register()
        assigned = await stand.deploy(version, traceparent=trace, id="assignment-1")
        await stand.ready(assigned)
        body = InferenceRequested("c-1", ["good"])
        await stand.bus.publish(
            subjects.infer("mood", "r-1"), body, type="llmos.inference.requested.v1", id="r-1", traceparent=trace
        )
        heard = {}
        async with asyncio.timeout(10):
            async for message in stand.bus.follow("REPLY", ["llmos.reply.c-1.*"]):
                heard["answer"] = message.envelope
                break
            async for message in stand.bus.follow("EVENTS", [subjects.event_filter(ReplicaReady)]):
                heard["ready"] = message.envelope
                break
    assert {name: (envelope.cause, envelope.traceparent[:35]) for name, envelope in heard.items()} == {
        "answer": ("r-1", trace[:35]),
        "ready": ("assignment-1", trace[:35]),
    }


async def test_a_signature_of_another_statement_is_refused(stand: Any) -> None:
    version = await stand.register()
    signature = stand.key.sign(Statement("default", "mood", 2, version.artifact))
    async with stand.running():
        failed = await stand.failed(await stand.deploy(replace(version, signature=signature)))
        assert not failed.retryable


@pytest.mark.parametrize("text", ["x" * 100_000, "\u0000", "🙂" * 500, "مرحبا", "\n\t"])
async def test_any_text_is_answered(stand: Any, text: str) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(await stand.register()))
        assert len(labels(await stand.ask(text))) == 1


async def test_requests_in_hand_are_answered_when_the_bus_is_killed_and_comes_back(
    stand: Any, nats_server: Any
) -> None:
    async with stand.running():
        await stand.ready(await stand.deploy(await stand.register(rounds=SLOW)))
        took = (await stand.ask("good")).compute_ms / 1000
        for at in range(5):
            body = InferenceRequested("c-1", ["good", "bad"])
            await stand.bus.publish(subjects.infer("mood", f"r-{at}"), body, type="llmos.inference.requested.v1")
        await asyncio.sleep(took / 4)
        await nats_server.kill()
        await asyncio.sleep(2 * took)  # the answers are there, and nobody to give them to
        await nats_server.start()
        answers: dict[str, InferenceAnswered] = {}
        async with asyncio.timeout(40):
            async for heard in stand.bus.follow("REPLY", ["llmos.reply.c-1.*"]):
                answer = msgspec.json.decode(heard.data, type=InferenceAnswered)
                answers[answer.id] = answer
                if len(answers) == 5:
                    break
    assert {tuple(labels(answer)) for answer in answers.values()} == {("up-1", "down-1")}
