"""One request id stands for one request, also when two processes are asked at the same moment, on the real store."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from recorrido.actions.v1.events import ActionKind, Playbook, RecoveryRule, WebhookPaused, WebhookSecretRotated
from recorrido.inference.v1.events import Aspect
from recorrido.ingest.v1.events import Identity, IdentityKind
from recorrido.journey.v1.events import JourneyMap, Stage, Touchpoint
from services.actions.domain.action import ActionDecider, stream_of
from services.actions.domain.commands import CommentAction, OpenAction
from services.actions.domain.playbooks import Playbooks, PublishPlaybook, playbook_stream
from services.actions.domain.webhooks import ChangeWebhook, RegisterWebhook, Webhooks, webhook_stream
from services.foundation.errors import DiffersError
from services.foundation.events import Pending, derived_id, stream_name
from services.foundation.eventstore import EventStore, StreamAppend
from services.foundation.execute import Executed, Executor, Intent
from services.inference.opinions import CorrectAnalysis, Corrections
from services.ingest.identity import LinkIdentity, Links
from services.journey.domain.maps import Maps, PublishJourneyMap

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
STAGE = Stage(stage_id="use", name="Use", touchpoints=(Touchpoint(touchpoint_id="app", name="App"),))


@dataclass(frozen=True)
class Case:
    """What can be asked for; the text is what it says. `before` makes what it needs to be there."""

    decider: Any
    stream: Callable[[Any], str]
    ask: Callable[[str, str, datetime], Any]
    before: Callable[[str], Any] | None = None


def opened(key: str, text: str = "Call Ana", at: datetime = NOW) -> OpenAction:
    return OpenAction(
        kind=ActionKind.RECOVERY, customer_id="ana", title=text, actor="maja", request_id=key, occurred_at=at
    )


def commented(key: str, text: str, at: datetime) -> CommentAction:
    return CommentAction(
        action_id=opened(key).action_id, text=text, actor="maja", request_id=f"{key} comment", occurred_at=at
    )


def published_playbook(key: str, text: str, at: datetime) -> PublishPlaybook:
    playbook = Playbook(playbook_id=key, name=text, recoveries=(RecoveryRule(rule_id="call"),))
    return PublishPlaybook(playbook=playbook, actor="maja", request_id="r", occurred_at=at)


def registered(key: str, text: str = "", at: datetime = NOW) -> RegisterWebhook:
    # Each call makes a secret of its own.
    return RegisterWebhook(
        url="https://example.com/hook",
        event_types=(),
        description=text,
        actor="maja",
        request_id=key,
        key_id="key",
        salt=uuid4().hex,
        occurred_at=at,
    )


def changed_webhook(changed: type, key_id: str = "") -> Callable[[str, str, datetime], ChangeWebhook]:
    def ask(key: str, text: str, at: datetime) -> ChangeWebhook:
        return ChangeWebhook(
            changed=changed,
            webhook_id=registered(key).webhook_id,
            actor="maja",
            reason=text,
            request_id=f"{key} change",
            occurred_at=at,
            key_id=key_id,
            salt=key_id and uuid4().hex,
        )

    return ask


def published_map(key: str, text: str, _at: datetime) -> PublishJourneyMap:
    return PublishJourneyMap(JourneyMap(map_id=key, name=text, stages=(STAGE,)), "ana", "r")


def corrected(key: str, text: str, _at: datetime) -> CorrectAnalysis:
    return CorrectAnalysis("interaction", key, {Aspect.NEED: text}, "7", "mia", "", "r")


def linked(key: str, text: str, _at: datetime) -> LinkIdentity:
    device = Identity(kind=IdentityKind.DEVICE, value=key)
    return LinkIdentity(identity=device, customer_id=text, actor="a", request_id="r")


def stream_of_webhook(command: Any) -> str:
    return webhook_stream(command.webhook_id)


CASES = {
    "open": Case(ActionDecider(), lambda c: stream_of(c.action_id), opened),
    "comment": Case(ActionDecider(), lambda c: stream_of(c.action_id), commented, opened),
    "playbook": Case(Playbooks(), lambda c: playbook_stream(c.playbook.playbook_id), published_playbook),
    "register": Case(Webhooks(), stream_of_webhook, registered),
    "pause": Case(Webhooks(), stream_of_webhook, changed_webhook(WebhookPaused), registered),
    "rotate": Case(Webhooks(), stream_of_webhook, changed_webhook(WebhookSecretRotated, "new"), registered),
    "map": Case(Maps(), lambda c: stream_name("journeymap", c.map.map_id), published_map),
    "correct": Case(Corrections(), lambda c: stream_name("customer", c.customer_id), corrected),
    "link": Case(Links(), lambda c: c.stream, linked),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


async def given(store: EventStore, case: Case) -> str:
    """Return the key of something new that is there as far as it must be."""
    key = str(uuid4())
    if case.before:
        before = case.before(key)
        await Executor(store, case.decider).execute(Intent(case.stream(before), before))
    return key


async def at_once(store: EventStore, case: Case, *commands: Any) -> list[Any]:
    """Execute as so many processes would at the same moment."""
    calls = [Executor(store, case.decider).execute(Intent(case.stream(each), each)) for each in commands]
    done: list[Any] = await asyncio.gather(*calls, return_exceptions=True)
    return done


async def test_of_two_requests_under_one_id_only_the_one_that_was_recorded_is_acknowledged(
    store: EventStore, case: Case
) -> None:
    key = await given(store, case)
    commands = [case.ask(key, text, NOW) for text in ("one", "another")]
    before = len(await store.read(case.stream(commands[0])))
    done = await at_once(store, case, *commands)
    assert sorted(type(each).__name__ for each in done) == ["DiffersError", "Executed"]
    (refused,) = (each for each in done if isinstance(each, DiffersError))
    assert refused.reason in {"REQUEST_ID_REUSED", "REQUEST_DIFFERS"}
    (made,) = (each for each in done if isinstance(each, Executed))
    recorded = await store.read(case.stream(commands[0]))
    assert [each.event_id for each in recorded[before:]] == [each.event_id for each in made.events]


async def test_a_request_that_is_repeated_at_the_same_moment_is_done_once(store: EventStore, case: Case) -> None:
    key = await given(store, case)
    commands = [case.ask(key, "one", NOW + timedelta(seconds=later)) for later in range(2)]
    before = len(await store.read(case.stream(commands[0])))
    done = await at_once(store, case, *commands)
    assert [type(each) for each in done] == [Executed, Executed]
    events = max((each.events for each in done), key=len)
    assert len(await store.read(case.stream(commands[0]))) == before + len(events)
    if isinstance(commands[0], RegisterWebhook | ChangeWebhook) and commands[0].salt:
        # Who is given a secret is given the one that signs.
        (winner,) = (command for command, each in zip(commands, done, strict=True) if each.events)
        state = (await Executor(store, case.decider).load(case.stream(winner))).state
        assert state.secret.salt == winner.salt


async def test_a_request_recorded_when_ids_came_of_the_request_id_alone_is_still_known(
    store: EventStore, case: Case
) -> None:
    key = await given(store, case)
    command, executor = case.ask(key, "one", NOW), Executor(store, case.decider)
    stream = case.stream(command)
    folded = await executor.load(stream)
    events = case.decider.decide(command, folded.state)
    old = [
        Pending(event, derived_id(stream, command.request_id, event.type_name, str(index)))
        for index, event in enumerate(events)
    ]
    await store.append([StreamAppend(stream, folded.revision, old)])
    repeated, differs = await at_once(
        store, case, case.ask(key, "one", NOW + timedelta(hours=1)), case.ask(key, "another", NOW)
    )
    assert repeated.events == []
    assert isinstance(differs, DiffersError)
    assert len(await store.read(stream)) == folded.revision + 1 + len(events)
