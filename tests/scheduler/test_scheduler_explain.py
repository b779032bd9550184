"""Why a job waits: the sentences that `llmos explain` shows; and how jobs and nodes are listed."""

from typing import Any

from llmos.contracts.jobs import Fault, JobCancelling, JobRejected, JobsRequested
from llmos.contracts.nodes import NodeCordoned
from llmos.contracts.tasks import TaskProgressed
from llmos_scheduler.explain import explain
from llmos_scheduler.views import view_job, view_jobs
from llmos_scheduler.views_cluster import view_nodes

GIB = 1 << 30


def why(world: Any, job: str) -> Any:
    return explain(world.state, world.brain, world.state.jobs[job], world.now)


def test_without_a_trainer_it_says_to_start_one(world: Any) -> None:
    world.node("edge", cpus=0, kinds=("serve",))
    world.submit("j")
    world.settle()
    said = why(world, "j")
    assert said.summary == "No living node takes check work."
    assert said.reasons == ["edge: no worker takes check"]
    assert said.remedies == ["Start a trainer on a node."]


def test_without_an_inventory_it_asks_for_a_hw_agent(world: Any) -> None:
    world.node("a", cpus=0)
    world.submit("j")
    world.settle()
    assert why(world, "j").reasons == ["a: its hardware is not known; is a hw-agent running there?"]


def test_a_check_that_only_closed_nodes_could_take_waits_for_them(world: Any) -> None:
    world.node("a").say(NodeCordoned("a", reason="loud fan"))
    world.submit("j")
    world.settle()
    said = why(world, "j")
    assert said.summary == "Check waits for a place: the nodes that check data are closed: a."
    assert [waits.kind for waits in said.waits_for] == ["cordon"]
    assert said.remedies == ["Let a node take work again: llmos uncordon a."]


def test_it_names_what_each_node_lacks_and_who_holds_it(world: Any) -> None:
    world.node("a", cpus=2).node("b", cpus=1, memory=1 * GIB).node("gone").lose("gone")
    world.submit("big", cpus=1.5)
    world.run("big", until="training")
    world.submit("j", cpus=2, memory=2 * GIB)
    world.check("j").settle()
    said = why(world, "j")
    assert said.state == "queued"
    assert said.summary == "Train needs 2 cpus, 2GiB and waits: 1 node without GPUs: on a 0.5 of 2 cpus are free."
    assert said.reasons == [
        "a: needs 2 cpus, 0.5 of 2 are free; held by big",
        "b: needs 2 cpus, 1 of 1 are free; 2GiB of memory, 1GiB of 1GiB are free",
        "gone: is away",
    ]
    assert said.remedies == ["It starts when enough of that is free again; a higher priority lets it go first."]


def test_a_request_larger_than_any_node_says_what_would_fit(world: Any) -> None:
    world.node("a", cpus=2, gpus=1)
    world.submit("j", cpus=64, gpus=2, memory=1 * GIB)
    world.check("j").settle()
    said = why(world, "j")
    assert said.reasons == ["a: needs 64 cpus, 2 of 2 are free; 2 GPUs, 1 of 1 are free"]
    assert said.remedies == [
        "Add a node with 64 cpus, 1GiB, 2 GPUs.",
        "Ask for less: resources.cpus of at most 2.",
        "Ask for less: resources.gpus of at most 1.",
    ]


def test_it_names_the_jobs_that_come_first(world: Any) -> None:
    world.node("a", cpus=1)
    for id, priority in (("running", 50), ("urgent", 90), ("old", 50), ("j", 50), ("late", 50)):
        world.submit(id, priority=priority)
        world.check(id)
    world.settle()
    assert why(world, "j").ahead == ["urgent", "old"]


def test_a_back_off_says_how_long_and_what_went_wrong(world: Any) -> None:
    world.node("a")
    world.submit("j", attempts=3)
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.fail(key)
    said = why(world, "j")
    assert said.summary == "Check failed on a and is tried again in 2 s."
    assert said.reasons == ["attempt 2 of 3; the last one ended because: it broke"]


def test_running_work_says_how_far_it_is(world: Any) -> None:
    world.node("a")
    world.submit("j")
    world.settle()
    (key,) = world.queue
    assert why(world, "j").summary == "Check was given to a 0 s ago and is about to start."
    world.start(key)
    world.say(TaskProgressed("j-check", "j", "default", "check", key[1], "a", "read", 3, 12, eta=9.4))
    assert why(world, "j").summary == "Check runs on a: step 3 of 12, about 9 s left."
    world.say(JobCancelling("j", "default"))
    assert why(world, "j").summary == "The job is cancelled: check on a has been told to stop."


def test_a_rollout_says_what_is_missing(world: Any) -> None:
    world.node("a")
    world.submit("j", deploy=2)
    world.run("j", until="deploying")
    world.settle()
    said = why(world, "j")
    assert said.summary == "0 of 2 replicas of j are ready: a can serve, one replica a node."
    assert said.remedies == ["Start an inferencer on another node."]


def test_an_ended_job_says_how(world: Any) -> None:
    world.node("a")
    world.submit("j", attempts=1)
    world.settle()
    (key,) = world.queue
    world.start(key)
    world.fail(key)
    world.settle()
    said = why(world, "j")
    assert said.summary == "The job has ended: failed."
    assert said.reasons == ["check failed on a (attempt 1 of 1): it broke"]


def test_a_submission_that_was_turned_away_is_explained_and_listed(world: Any) -> None:
    world.say(JobRejected("j", "acme", [Fault("train.epochs", "must be at least 1")], "mood"))
    known = world.state.turned_away["j"]
    assert explain(world.state, world.brain, known, world.now).reasons == ["train.epochs: must be at least 1"]
    (view,) = view_jobs(world.state, JobsRequested(tenant="acme"))
    assert (view.job, view.state, view.name, view.faults) == ("j", "rejected", "mood", known.faults)


def test_jobs_are_listed_newest_first_and_filtered(world: Any) -> None:
    world.node("a")
    for number in range(3):
        world.now += 1
        world.submit(f"j{number}", tenant=("red", "blue")[number % 2])
    world.settle()
    assert [view.job for view in view_jobs(world.state, JobsRequested())] == ["j2", "j1", "j0"]
    assert [view.job for view in view_jobs(world.state, JobsRequested(tenant="red"))] == ["j2", "j0"]
    assert [view.job for view in view_jobs(world.state, JobsRequested(limit=1))] == ["j2"]
    assert [view.job for view in view_jobs(world.state, JobsRequested(state="queued"))] == ["j2"]
    assert [view.job for view in view_jobs(world.state, JobsRequested(state="checking"))] == ["j1", "j0"]


def test_a_list_of_jobs_fits_into_one_message(world: Any) -> None:
    import msgspec

    from llmos.contracts.jobs import JobList

    for number in range(600):
        world.say(JobRejected(f"j{number}", "acme", [Fault("train.epochs", "x" * 2000)]))
    views = view_jobs(world.state, JobsRequested(limit=10_000))
    assert 100 < len(views) < 600
    assert len(msgspec.json.encode(JobList(views))) < 512 * 1024


def test_a_job_is_shown_with_its_tasks_its_model_and_its_trace(world: Any) -> None:
    world.node("a")
    world.submit("j", deploy=1)
    world.run("j")
    view = view_job(world.state.jobs["j"])
    assert (view.state, view.model, view.version, view.metrics) == ("deployed", "j", 1, {"accuracy": 0.9})
    assert [(task.kind, task.state, task.attempt, task.node) for task in view.tasks] == [
        ("check", "succeeded", 1, "a"),
        ("train", "succeeded", 1, "a"),
        ("export", "succeeded", 1, "a"),
    ]
    assert view.trace == "1" * 32
    assert view.spec is not None


def test_a_node_is_shown_with_what_is_leased_of_it(world: Any) -> None:
    world.node("a", cpus=4, gpus=1).node("b")
    world.lose("b")
    world.submit("j", cpus=3, gpus=1)
    world.run("j", until="training")
    world.submit("k")
    world.settle()
    a, b = view_nodes(world.state, world.now)
    assert (a.alive, a.cpus_leased, a.memory_leased, a.gpus_leased) == (True, 3, GIB, ["a-gpu0"])
    assert a.tasks == ["j-train", "k-check"]
    assert a.services == ["worker"]
    assert (b.alive, b.services, b.tasks) == (False, [], [])
