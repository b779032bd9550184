"""Release and signing as pure decisions over what the history says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from msgspec.structs import replace

from llmos.contracts.deployments import ReplicaAssigned
from llmos.contracts.keys import KeyRequested, SignRequested
from llmos.contracts.models import ModelRecord, ModelVersion, Statement
from llmos.contracts.tasks import (
    TaskCancelled,
    TaskFailed,
    TaskLost,
    TaskPlaced,
    TaskRefused,
    TaskRejected,
    TaskStarted,
    TaskSucceeded,
)
from llmos.errors import Problem, Rejected
from llmos_vault.core import check_request, check_statement, decide_release, decide_signing
from llmos_vault.state import State, apply

ARTIFACT = "sha256:" + "0" * 64
OTHER = "sha256:" + "1" * 64


def fold(*facts: Struct) -> State:
    state = State()
    for fact in facts:
        state = apply(state, fact)
    return state


def placed(kind: str = "train", *, lease: int = 1, node: str = "n1", tenant: str = "acme") -> TaskPlaced:
    return TaskPlaced(f"job-{kind}", "job", tenant, kind, 1, lease, node)  # type: ignore[arg-type]


def version(*, tenant: str = "acme", private: bool = True, number: int = 1, artifact: str = ARTIFACT) -> ModelVersion:
    return ModelVersion("tickets", number, tenant, "text-classification", artifact, "job", 0.0, private=private)


def assigned(
    *, node: str = "n1", desired: str = "present", of: ModelVersion | None = None, generation: int = 1
) -> ReplicaAssigned:
    return ReplicaAssigned("tickets", node, generation, desired, of or version(), "job", "acme")  # type: ignore[arg-type]


def ask(principal: str = "trainer/n1", purpose: str = "encrypt", **changes: object) -> KeyRequested:
    number = 0 if purpose == "encrypt" else 1
    asked = KeyRequested(principal, "acme", purpose, "job-train", "", number)  # type: ignore[arg-type]
    return replace(asked, **changes)


def ends(kind: str = "train", *, lease: int = 1) -> list[Struct]:
    head = (f"job-{kind}", "job", "acme")
    return [
        TaskSucceeded(*head, kind, lease, "n1"),  # type: ignore[arg-type]
        TaskFailed(*head, kind, lease, "n1", Problem("error", "x")),  # type: ignore[arg-type]
        TaskRejected(*head, lease, "n1"),
        TaskRefused(*head, lease, "n1"),
        TaskCancelled(*head, kind, lease, "n1"),  # type: ignore[arg-type]
        TaskLost(*head, kind, lease, "n1", "node lost"),  # type: ignore[arg-type]
    ]


def test_a_worker_gets_keys_for_a_task_that_is_placed_on_it() -> None:
    state = fold(placed("check"), placed("train"), placed("export"))
    for principal, subject in (
        ("trainer/n1", "job-check"),
        ("trainer/n1", "job-train"),
        ("exporter/n1", "job-export"),
    ):
        for purpose in ("encrypt", "decrypt"):
            assert decide_release(state, ask(principal, purpose, subject=subject)).allowed


@pytest.mark.parametrize(
    "request_, why",
    [
        (ask("trainer/n2"), "not placed on trainer/n2"),
        (ask("exporter/n1"), "not placed on exporter/n1"),
        (ask("trainer/n1", subject="job-export"), "not placed on trainer/n1"),
        (ask(tenant="other"), "not of the tenant other"),
        (ask(subject="job2-train"), "no task job2-train"),
        (ask("gateway/n1"), "no use for data keys"),
        (ask("vault/n1"), "no use for data keys"),
        (ask("inferencer/n1", "decrypt"), "not assigned to n1"),
        (ask("inferencer/n1", "decrypt", subject="job-train"), "not assigned to n1"),
        (ask(""), "not <service>/<node>"),
        (ask("trainer"), "not <service>/<node>"),
        (ask("trainer/n1/x"), "not <service>/<node>"),
        (ask("trainer/n1\n"), "not <service>/<node>"),
        (ask("trainer/n1", "encrypt", version=1), "newest version"),
        (ask("trainer/n1", "decrypt", version=0), "newest version"),
        (ask("trainer/n1", "decrypt", version=-1), "no such version"),
    ],
)
def test_everybody_else_is_denied_with_a_reason(request_: KeyRequested, why: str) -> None:
    verdict = decide_release(fold(placed("train"), placed("export")), request_)
    assert not verdict.allowed
    assert why in verdict.reason


@pytest.mark.parametrize("end", ends(), ids=lambda end: type(end).__name__)
def test_a_task_that_ended_gets_no_key(end: Struct) -> None:
    assert decide_release(fold(placed(), TaskStarted("job-train", "job", "acme", "train", 1, "n1")), ask()).allowed
    assert not decide_release(fold(placed(), end), ask()).allowed


@pytest.mark.parametrize("end", ends(lease=1), ids=lambda end: type(end).__name__)
def test_what_an_ended_lease_still_says_takes_no_key_from_the_next_one(end: Struct) -> None:
    state = fold(placed(lease=1), placed(lease=2, node="n2"), end)
    assert decide_release(state, ask("trainer/n2")).allowed
    assert not decide_release(state, ask("trainer/n1")).allowed


def test_a_placement_that_is_heard_again_changes_nothing() -> None:
    assert fold(placed(lease=2, node="n2"), placed(lease=1)) == fold(placed(lease=2, node="n2"))


def test_an_inferencer_decrypts_what_is_deployed_to_its_node() -> None:
    state = fold(assigned())
    request = ask("inferencer/n1", "decrypt", subject="tickets")
    assert decide_release(state, request).allowed
    for changed, why in (
        (replace(request, principal="inferencer/n2"), "not assigned to n2"),
        (replace(request, subject="other"), "not assigned"),
        (replace(request, tenant="other"), "no version of the tenant"),
        (replace(request, purpose="encrypt", version=0), "only decrypts"),
    ):
        verdict = decide_release(state, changed)
        assert (verdict.allowed, why in verdict.reason) == (False, True)


def test_an_inferencer_gets_no_key_after_the_deployment_left_its_node_or_for_a_public_version() -> None:
    request = ask("inferencer/n1", "decrypt", subject="tickets")
    gone = fold(assigned(), assigned(desired="absent", generation=2))
    assert not decide_release(gone, request).allowed
    public = fold(assigned(), assigned(of=version(private=False, number=2), generation=2))
    assert "not private" in decide_release(public, request).reason
    foreign = fold(assigned(), assigned(of=version(tenant="other"), generation=2))
    assert not decide_release(foreign, request).allowed


FACTS = st.one_of(
    st.builds(
        placed, st.just("train"), lease=st.integers(1, 3), node=st.sampled_from(["n1", "n2"]), tenant=st.just("acme")
    ),
    st.integers(1, 3).flatmap(lambda lease: st.sampled_from(ends(lease=lease))),
)


@given(st.lists(FACTS, max_size=12))
def test_no_key_is_released_that_the_newest_lease_does_not_cover(facts: list[Struct]) -> None:
    state = fold(*facts)
    for node in ("n1", "n2"):
        if decide_release(state, ask(f"trainer/{node}")).allowed:
            leases = [fact.lease for fact in facts if isinstance(fact, TaskPlaced) and fact.node == node]
            held = state.placed["job-train"]
            assert held.node == node
            assert held.lease in leases
            after = facts[max(i for i, f in enumerate(facts) if isinstance(f, TaskPlaced) and f.lease == held.lease) :]
            assert all(isinstance(fact, TaskPlaced) or fact.lease != held.lease for fact in after)  # type: ignore[attr-defined]


def sign(principal: str = "exporter/n1", **changes: object) -> SignRequested:
    return SignRequested(principal, replace(Statement("acme", "tickets", 2, ARTIFACT), **changes))


def test_an_exporter_with_an_export_task_of_the_tenant_has_models_signed() -> None:
    state = fold(placed("export"))
    assert decide_signing(state, sign(), None).allowed
    record = ModelRecord("tickets", "acme", [version(number=1, artifact=OTHER)])
    assert decide_signing(state, sign(), record).allowed
    same = ModelRecord("tickets", "acme", [version(number=2, artifact=ARTIFACT)])
    assert decide_signing(state, sign(), same).allowed


@pytest.mark.parametrize(
    "facts, request_, why",
    [
        ([placed("export")], sign("trainer/n1"), "only an exporter"),
        ([placed("export")], sign("exporter/"), "only an exporter"),
        ([placed("export")], sign("exporter/n2"), "no export task"),
        ([placed("export")], sign(tenant="other"), "no export task"),
        ([placed("train")], sign(), "no export task"),
        ([placed("export"), ends("export")[0]], sign(), "no export task"),
        ([], sign(), "no export task"),
    ],
)
def test_nobody_else_has_anything_signed(facts: list[Struct], request_: SignRequested, why: str) -> None:
    verdict = decide_signing(fold(*facts), request_, None)
    assert not verdict.allowed
    assert why in verdict.reason


def test_a_registered_version_or_a_foreign_name_is_not_signed_again() -> None:
    state = fold(placed("export"))
    taken = ModelRecord("tickets", "acme", [version(number=2, artifact=OTHER)])
    assert "another artifact" in decide_signing(state, sign(), taken).reason
    foreign = ModelRecord("tickets", "other", [])
    assert "another tenant" in decide_signing(state, sign(), foreign).reason


@pytest.mark.parametrize(
    "changes",
    [
        {"tenant": "a.b"}, {"tenant": ""}, {"model": "a b"}, {"model": "*"}, {"version": 0}, {"version": -1},
        {"artifact": ""}, {"artifact": "sha256:abc"}, {"artifact": ARTIFACT.upper()}, {"artifact": ARTIFACT + "\n"},
    ],
)  # fmt: skip
def test_a_statement_that_is_no_model_version_is_rejected(changes: dict[str, object]) -> None:
    check_statement(sign().statement)
    with pytest.raises(Rejected):
        check_statement(replace(sign().statement, **changes))


@pytest.mark.parametrize("changes", [{"tenant": "a.b"}, {"tenant": ">"}, {"subject": ""}, {"subject": "a b"}])
def test_a_request_that_could_not_be_recorded_is_rejected(changes: dict[str, str]) -> None:
    with pytest.raises(Rejected):
        check_request(ask(**changes))
