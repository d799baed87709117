"""Webhooks and real receivers: signatures, retries, dead letters, replay, isolation, kills and forbidden targets."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import hmac
import json
import os
import re
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import grpc
import pytest
import pytest_asyncio
from aiohttp import web

from infra.local import ports as port_numbers
from infra.local.parts import ROOT
from recorrido.actions.v1 import webhook_service_pb2 as pb
from recorrido.actions.v1.events import ActionCommented
from recorrido.actions.v1.webhook_service_pb2_grpc import WebhookServiceStub
from services.actions.domain.webhooks import MAX_WEBHOOKS, Keyring, Webhook, networks
from services.actions.handlers import webhooks as webhook_handlers
from services.actions.handlers.webhooks import WebhookHandlers
from services.actions.receivers import Receivers
from services.actions.views import outbox
from services.foundation.events import Pending, stream_name
from services.foundation.eventstore import NO_STREAM, StreamAppend
from tests.support.cli import recorrido
from tests.support.cluster import running
from tests.support.office import Office, connected, unique
from tests.support.rpc_errors import info, refusal, violations
from tests.support.wait import until

FAST = {
    "RECORRIDO_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8",
    "RECORRIDO_WEBHOOK_RETRY_SECONDS": "0.05",
    "RECORRIDO_WEBHOOK_GIVE_UP_SECONDS": "1",
    "RECORRIDO_WEBHOOK_TIMEOUT_SECONDS": "2",
}
PENDING, DELIVERED, ABANDONED = (
    pb.DELIVERY_STATE_PENDING,
    pb.DELIVERY_STATE_DELIVERED,
    pb.DELIVERY_STATE_ABANDONED,
)


@dataclass
class Receiver:
    """An HTTP server that keeps what it gets. `answer` tells its status, given how much it got."""

    url: str = ""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    answer: Callable[[int], Awaitable[web.Response]] | None = None

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.got.append(({name.lower(): value for name, value in request.headers.items()}, body))
        if self.answer is not None:
            return await self.answer(len(self.got))
        return web.Response()

    @property
    def ids(self) -> list[str]:
        return [headers["webhook-id"] for headers, _ in self.got]

    async def until_got(self, count: int) -> None:
        await until(lambda: len(self.got) >= count, 20, what=f"{count} deliveries, {len(self.got)} came")


def status(number: int, headers: dict[str, str] | None = None) -> Callable[[int], Awaitable[web.Response]]:
    async def answer(_: int) -> web.Response:
        return web.Response(status=number, headers=headers)

    return answer


@contextlib.asynccontextmanager
async def listening() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    application = web.Application()
    application.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


@contextlib.asynccontextmanager
async def receiver_of_the_docs(folder: Path, secret: str, port: int) -> AsyncIterator[asyncio.StreamReader]:
    """The program that docs/webhooks.md gives, as it stands; yields what it prints."""
    page = (ROOT / "docs/webhooks.md").read_text(encoding="utf-8")
    program = folder / "receiver.py"
    program.write_text("\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL)), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(program)),
        env={**os.environ, "SECRET": secret, "PORT": str(port)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.kill()
        await process.wait()


@dataclass
class Desk:
    """A running actions service and its webhooks."""

    office: Office
    webhooks: Any

    async def register(self, url: str, **fields: Any) -> pb.RegisterWebhookResponse:
        given = {"url": url, "actor": "maja", "request_id": unique("w")}
        return await self.webhooks.RegisterWebhook(  # type: ignore[no-any-return]
            pb.RegisterWebhookRequest(**{**given, **fields}), timeout=20
        )

    async def ask(self, call: str, webhook_id: str, **fields: Any) -> Any:
        given = {"webhook_id": webhook_id, "actor": "maja", "request_id": unique("w")}
        return await getattr(self.webhooks, call)(getattr(pb, f"{call}Request")(**{**given, **fields}))

    async def deliveries(self, webhook_id: str, **fields: Any) -> list[pb.Delivery]:
        request = pb.ListDeliveriesRequest(webhook_id=webhook_id, **fields)
        return list((await self.webhooks.ListDeliveries(request)).deliveries)

    async def until_state(self, webhook_id: str, state: int, count: int = 1) -> list[pb.Delivery]:
        async def reached() -> list[pb.Delivery] | None:
            found = await self.deliveries(webhook_id, state=state)
            return found if len(found) == count else None

        return await until(reached, 20, what=f"{count} deliveries in state {state}")

    async def line(self, webhook_id: str) -> pb.Webhook:
        async def listed() -> pb.Webhook | None:
            answer = await self.webhooks.ListWebhooks(pb.ListWebhooksRequest())
            return next((each for each in answer.webhooks if each.webhook_id == webhook_id), None)

        return await until(listed, 20)

    @contextlib.asynccontextmanager
    async def tables(self) -> AsyncIterator[Any]:
        """What is to be delivered, as PostgreSQL holds it."""
        async with asyncpg.create_pool(
            self.office.cluster.environment["RECORRIDO_POSTGRES_DSN"], min_size=1, max_size=2
        ) as pool:
            yield pool

    @contextlib.asynccontextmanager
    async def hooked(self, **fields: Any) -> AsyncIterator[tuple[Receiver, str]]:
        """Listen and be told, only of what this test opens: by its own type of event, then no more."""
        async with listening() as receiver:
            answer = await self.register(receiver.url, **fields)
            yield receiver, answer.webhook.webhook_id
            await self.ask("DeleteWebhook", answer.webhook.webhook_id)


@contextlib.asynccontextmanager
async def desk_of(data: Path, **env: str) -> AsyncIterator[Desk]:
    async with (
        running(["actions"], data=data, env={**FAST, **env}) as cluster,
        connected(cluster) as office,
        grpc.aio.insecure_channel(cluster.address("actions")) as channel,
    ):
        yield Desk(office, WebhookServiceStub(channel))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def desk(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Desk]:
    async with desk_of(tmp_path_factory.mktemp("data")) as it:
        yield it


pytestmark = pytest.mark.asyncio(loop_scope="module")


def signed(headers: dict[str, str], body: bytes, secret: str) -> bool:
    """Check as a receiver would, by the specification and nothing of ours."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return expected in headers["webhook-signature"].split(" ")


async def test_every_change_is_delivered_once_signed_and_in_full(desk: Desk) -> None:
    async with listening() as receiver:
        registered = await desk.register(receiver.url, event_types=["recorrido.actions.v1.Action*"])
        assert registered.secret.startswith("whsec_")
        opened = await desk.office.open(title="Call Ána")
        await desk.office.accept(opened.action_id)
        await receiver.until_got(2)
        stored = await desk.office.store.read(f"action-{opened.action_id}")
        for (headers, body), recorded in zip(receiver.got, stored, strict=True):
            assert signed(headers, body, registered.secret)
            assert not signed(headers, body + b" ", registered.secret)
            assert abs(int(headers["webhook-timestamp"]) - time.time()) < 60
            event = json.loads(body)
            assert (event["id"], event["type"]) == (str(recorded.event_id), recorded.type_name)
            assert event["data"] == json.loads(recorded.data)
            assert event["subject"] == recorded.stream
        found = await desk.until_state(registered.webhook.webhook_id, DELIVERED, 2)
        assert sorted(each.delivery_id for each in found) == sorted(receiver.ids)
        assert {(each.attempts, each.last_status) for each in found} == {(1, 200)}

        # The secret is nowhere to be had again: not in answers, not in events.
        key = registered.webhook.webhook_id
        again = await desk.register(receiver.url, event_types=["recorrido.actions.v1.Action*"], request_id="secret")
        repeated = await desk.register(receiver.url, event_types=["recorrido.actions.v1.Action*"], request_id="secret")
        assert again.secret
        assert (repeated.webhook.webhook_id, repeated.secret) == (again.webhook.webhook_id, "")
        assert registered.secret not in str(await desk.webhooks.ListWebhooks(pb.ListWebhooksRequest()))
        everything = [item.data async for item in desk.office.store.read_all(None)]
        everything += [item.data for item in await desk.office.store.read(f"webhook-{key}")]
        hidden = registered.secret.removeprefix("whsec_")
        assert not any(hidden.encode() in data or base64.b64decode(hidden) in data for data in everything)
        assert any(b'"salt"' in data for data in everything)
        # Rotated: for a day both sign.
        rotated = await desk.ask("RotateWebhookSecret", key)
        await desk.ask("DeleteWebhook", again.webhook.webhook_id)
        await desk.office.open()
        count = len(receiver.got)
        await until(lambda: any(signed(*got, rotated.secret) for got in receiver.got), 20, what=f"a third, of {count}")
        headers, body = next(got for got in receiver.got if signed(*got, rotated.secret))
        assert signed(headers, body, registered.secret)
        await desk.ask("DeleteWebhook", key)


async def test_only_what_was_asked_for_is_told(desk: Desk) -> None:
    async with desk.hooked(event_types=["recorrido.actions.v1.ActionAccepted"]) as (receiver, key):
        opened = await desk.office.open()
        await desk.office.accept(opened.action_id)
        await receiver.until_got(1)
        assert json.loads(receiver.got[0][1])["type"].endswith("ActionAccepted")
        await desk.until_state(key, DELIVERED, 1)
        assert len(await desk.deliveries(key)) == 1


async def test_a_failure_is_tried_again_under_the_same_id(desk: Desk) -> None:
    async with desk.hooked() as (receiver, key):

        async def third_time(count: int) -> web.Response:
            return web.Response(status=500 if count < 3 else 204)

        receiver.answer = third_time
        await desk.office.open()
        (delivery,) = await desk.until_state(key, DELIVERED)
        assert receiver.ids == [delivery.delivery_id] * 3
        assert (delivery.attempts, delivery.last_status, delivery.last_error) == (3, 204, "")


async def test_what_fails_for_too_long_is_abandoned_told_and_replayed(desk: Desk) -> None:
    async with desk.hooked() as (receiver, key):
        receiver.answer = status(503)
        await desk.office.open()
        (delivery,) = await desk.until_state(key, ABANDONED)
        assert (delivery.last_status, delivery.last_error) == (503, "answered 503")
        assert delivery.attempts > 2
        assert (await desk.line(key)).abandoned == 1
        (told,) = [
            json.loads(item.data)
            async for item in desk.office.store.read_all(None, ["recorrido.actions.v1.DeliveryAbandoned"])
            if item.stream == f"webhook-{key}"
        ]
        assert (told["deliveryId"], told["eventId"]) == (delivery.delivery_id, delivery.event_id)
        receiver.answer = None
        await desk.ask("ReplayWebhook", key, reason="it is back")
        (again,) = await desk.until_state(key, DELIVERED)
        assert (again.delivery_id, again.attempts) == (delivery.delivery_id, 1)
        # What was delivered comes again only when that is asked for.
        count = len(receiver.got)
        await desk.ask("ReplayWebhook", key, delivered_too=True)
        await receiver.until_got(count + 1)
        assert set(receiver.ids) == {delivery.delivery_id}


async def test_redirects_are_not_followed_and_long_answers_not_read(desk: Desk) -> None:
    async with desk.hooked() as (receiver, key), listening() as elsewhere:
        receiver.answer = status(307, {"Location": elsewhere.url})
        await desk.office.open()
        (delivery,) = await desk.until_state(key, ABANDONED)
        assert (delivery.last_status, elsewhere.got) == (307, [])

        async def endless(_: int) -> web.Response:
            return web.Response(body=b"x" * 50_000_000)

        receiver.answer = endless
        await desk.ask("ReplayWebhook", key)
        await desk.until_state(key, DELIVERED)


async def test_a_slow_receiver_stalls_no_other(desk: Desk) -> None:
    async with desk.hooked() as (slow, slow_key), desk.hooked() as (quick, quick_key):
        released = asyncio.Event()

        async def wait(_: int) -> web.Response:
            await released.wait()
            return web.Response()

        slow.answer = wait
        for _ in range(20):
            await desk.office.open()
        await desk.until_state(quick_key, DELIVERED, 20)
        assert await desk.deliveries(slow_key, state=DELIVERED) == []
        assert len(set(quick.ids)) == len(quick.ids) == 20
        # Pages, last first.
        first = await desk.webhooks.ListDeliveries(pb.ListDeliveriesRequest(webhook_id=quick_key, page_size=15))
        rest = await desk.deliveries(quick_key, page_size=15, before=first.next_before)
        positions = [each.position for each in (*first.deliveries, *rest)]
        assert (positions, len(positions)) == (sorted(positions, reverse=True), 20)
        released.set()


async def test_the_command_line_does_the_same(desk: Desk) -> None:
    cluster = desk.office.cluster
    async with listening() as receiver:
        registered = await recorrido(cluster, "webhook", "register", receiver.url, "--request-id", "by hand")
        key = registered.out.split()[1]
        assert "secret whsec_" in registered.out
        again = await recorrido(cluster, "webhook", "register", receiver.url, "--request-id", "by hand")
        assert "whsec_" not in again.out
        await desk.line(key)
        assert (await recorrido(cluster, "webhook", "pause", key, "--reason", "a move")).out == f"paused: {key}\n"
        failed = await recorrido(cluster, "webhook", "pause", key)
        assert (failed.code, "paused already" in failed.err) == (1, True)
        await desk.office.open()
        await recorrido(cluster, "webhook", "resume", key)
        await receiver.until_got(1)
        await desk.until_state(key, DELIVERED)
        listed = await recorrido(cluster, "webhook", "deliveries", key, "--state", "delivered")
        assert receiver.ids[0] in listed.out
        assert "secret whsec_" in (await recorrido(cluster, "webhook", "rotate", key)).out
        await recorrido(cluster, "webhook", "replay", key, "--delivered", "--since", "2026-01-01")
        await receiver.until_got(2)
        assert receiver.url in (await recorrido(cluster, "webhook", "list")).out
        assert (await recorrido(cluster, "webhook", "delete", key)).code == 0


async def test_the_receiver_of_the_docs_takes_what_is_genuine(desk: Desk, tmp_path: Path) -> None:
    cluster, port = desk.office.cluster, port_numbers.free().ingest
    url = f"http://127.0.0.1:{port}/"
    refused = await recorrido(cluster, "webhook", "register", url, "--type", "ActionOpend", COLUMNS="2000")
    assert (refused.code, "did you mean ActionOpened?" in refused.err) == (2, True)
    registered = await recorrido(cluster, "webhook", "register", url, "--type", "ActionOpened")
    _, key, _, secret = registered.out.split()
    async with receiver_of_the_docs(tmp_path, secret, port) as printed:
        title = unique("Call back")
        action_id = (await desk.office.open(title=title)).action_id
        line = await asyncio.wait_for(printed.readline(), 30)
        assert line.decode() == f"recorrido.actions.v1.ActionOpened {title}\n"
        # Of what else happens to it, nothing was asked for.
        await desk.office.accept(action_id)
        other = unique("Call again")
        await desk.office.open(title=other)
        assert other in (await asyncio.wait_for(printed.readline(), 30)).decode()
    await recorrido(cluster, "webhook", "delete", key)
    async with receiver_of_the_docs(tmp_path, "whsec_" + base64.b64encode(b"another").decode(), port) as printed:
        again = await recorrido(cluster, "webhook", "register", url, "--type", "ActionOpened")
        await desk.office.open()
        assert (await asyncio.wait_for(printed.readline(), 30)).endswith(b" not genuine\n")
        await recorrido(cluster, "webhook", "delete", again.out.split()[1])


async def test_paused_it_waits_and_gone_it_is_paused(desk: Desk) -> None:
    async with desk.hooked() as (receiver, key):
        receiver.answer = status(410)
        await desk.office.open()

        async def paused() -> bool:
            return (await desk.line(key)).state == pb.WEBHOOK_STATE_PAUSED

        await until(paused, 20)
        error = await refusal(desk.ask("PauseWebhook", key))
        assert info(error).reason == "ILLEGAL_TRANSITION"
        receiver.answer = None
        receiver.got.clear()
        await desk.office.open()

        async def waiting() -> bool:
            return (await desk.line(key)).pending == 2

        await until(waiting, 20)
        assert receiver.got == []
        await desk.ask("ResumeWebhook", key)
        await desk.until_state(key, DELIVERED, 2)


async def test_what_failed_before_a_pause_is_not_given_up_at_once_after_it(desk: Desk) -> None:
    async with desk.hooked() as (receiver, key), desk.tables() as pool:
        receiver.answer = status(503)
        await desk.ask("PauseWebhook", key)
        await desk.office.open()
        await desk.until_state(key, PENDING)
        # As if it had failed once, a day before.
        failed = "UPDATE actions_webhooks.delivery SET attempts = 1, first_at = $2 WHERE webhook_id = $1"
        await pool.execute(failed, key, datetime.now(UTC) - timedelta(days=1))
        await desk.ask("ResumeWebhook", key)
        (given_up,) = await desk.until_state(key, ABANDONED)
        # It had its time, and not one attempt only.
        assert given_up.attempts > 2


async def test_who_is_paused_is_told_nothing_before_the_outbox_hears_of_it(desk: Desk) -> None:
    now, day = datetime.now(UTC), timedelta(days=1)
    async with desk.hooked(event_types=["recorrido.actions.v1.ActionVerified"]) as (_, key), desk.tables() as pool:
        await desk.ask("PauseWebhook", key)

        async def paused() -> bool:
            return (await desk.line(key)).state == pb.WEBHOOK_STATE_PAUSED

        await until(paused, 20)
        # As it was before; and due tomorrow, so that the service leaves it to us.
        await pool.execute("UPDATE actions_webhooks.webhook SET paused = false WHERE webhook_id = $1", key)
        await pool.execute(
            """INSERT INTO actions_webhooks.delivery (delivery_id, webhook_id, event_id, event_type, stream, revision,
               position, recorded_at, next_at) VALUES ($1, $2, $3, 'x', 'action-x', 0, 1, $4, $5)""",
            *(str(uuid4()), key, uuid4(), now, now + day),
        )
        receivers, given = Receivers((), 2.0), {"first_wait_s": 1.0, "give_up_s": 10.0}
        store, box = desk.office.store, outbox.Outbox(pool, 2.0)
        handlers = WebhookHandlers(store, box, receivers, Keyring(()), lambda: now + 2 * day, **given)
        await handlers._work(key)
        await receivers.close()
        (delivery,) = await desk.deliveries(key)
        assert (delivery.state, delivery.attempts) == (PENDING, 0)


async def test_who_repeats_the_last_registration_is_not_one_too_many(desk: Desk) -> None:
    async with desk.tables() as pool:
        registered = {"url": "http://127.0.0.1:9/", "request_id": unique("w")}
        first = await desk.register(**registered)
        key = first.webhook.webhook_id
        await desk.line(key)
        try:
            await pool.execute(
                """INSERT INTO actions_webhooks.webhook (webhook_id, url, event_types, description, registered_at,
                   registered_by, position) SELECT 'many ' || n, '', '{}', '', now(), '', 0
                   FROM generate_series(1, $1) AS n""",
                MAX_WEBHOOKS - 1,
            )
            assert info(await refusal(desk.register("http://127.0.0.1:9/"))).reason == "TOO_MANY_WEBHOOKS"
            again = await desk.register(**registered)
            assert (again.webhook.webhook_id, again.secret) == (key, "")
        finally:
            await pool.execute("DELETE FROM actions_webhooks.webhook WHERE webhook_id LIKE 'many %'")
            await desk.ask("DeleteWebhook", key)


async def test_whoever_dies_loses_nothing(tmp_path: Path) -> None:
    async with desk_of(tmp_path, RECORRIDO_WEBHOOK_GIVE_UP_SECONDS="600") as desk, listening() as receiver:
        registered = await desk.register(receiver.url)
        begun = asyncio.Event()
        released = asyncio.Event()

        async def slow(_: int) -> web.Response:
            begun.set()
            await released.wait()
            return web.Response(status=500)

        receiver.answer = slow
        opened = [(await desk.office.open()).action_id for _ in range(3)]
        await asyncio.wait_for(begun.wait(), 20)
        cluster = desk.office.cluster
        # Appended, and dead before anybody put down what is to be delivered.
        left = ActionCommented(action_id=unique("a"), actor="x", text="x", request_id="1")
        # What starts again finds the tables of an earlier version.
        async with desk.tables() as pool:
            await pool.execute("ALTER TABLE actions_webhooks.webhook DROP COLUMN resumed_at")
        killing = asyncio.create_task(cluster.kill_and_restart("actions"))
        stream = stream_name("action", left.action_id)
        await desk.office.store.append([StreamAppend(stream, NO_STREAM, [Pending(left, uuid4())])])
        await killing
        opened.append(left.action_id)
        receiver.answer = None
        released.set()
        opened += [(await desk.office.open()).action_id for _ in range(3)]

        def all_told() -> bool:
            told = {json.loads(body)["subject"] for _, body in receiver.got}
            return told >= {stream_name("action", key) for key in opened}

        # What the dead process was trying is tried again when its lease is over.
        await until(all_told, 90)
        found = await desk.until_state(registered.webhook.webhook_id, DELIVERED, 7)
        assert set(receiver.ids) == {each.delivery_id for each in found}


async def test_a_large_replay_runs_beside_deliveries_and_other_replays(desk: Desk) -> None:
    """Several parts of it, from several sides at once: everything comes again, and nobody waits in a circle."""
    count = 2 * outbox.PART + 100
    async with desk.hooked(event_types=["recorrido.actions.v1.ActionCommented"]) as (receiver, key):
        events = [ActionCommented(action_id=unique("a"), actor="x", text="x", request_id="1") for _ in range(count)]
        for at in range(0, count, 250):
            await desk.office.store.append(
                [
                    StreamAppend(stream_name("action", each.action_id), NO_STREAM, [Pending(each, uuid4())])
                    for each in events[at : at + 250]
                ]
            )

        async def all_told(times: int) -> bool:
            line = await desk.line(key)
            return line.pending == 0 and len(receiver.got) >= times * count

        await until(lambda: all_told(1), 60, every_s=0.1)
        assert len(set(receiver.ids)) == len(receiver.ids) == count
        # While what was asked for first is sent, it is asked for again.
        await desk.ask("ReplayWebhook", key, delivered_too=True)
        await receiver.until_got(count + 200)
        await asyncio.gather(*(desk.ask("ReplayWebhook", key, delivered_too=True) for _ in range(3)))
        await until(lambda: all_told(2), 60, every_s=0.1)
        assert len(set(receiver.ids)) == count
        (first, *_) = receiver.ids
        assert receiver.ids.count(first) >= 2
    # What is left of a webhook that was deleted goes, some at a time.

    async def dropped() -> bool:
        sql = "SELECT count(*) FROM actions_webhooks.delivery WHERE webhook_id = $1"
        connection = await asyncpg.connect(desk.office.cluster.environment["RECORRIDO_POSTGRES_DSN"])
        try:
            return bool(await connection.fetchval(sql, key) == 0)
        finally:
            await connection.close()

    await until(dropped, 30, every_s=0.2)
    assert desk.office.cluster.restarts("actions") == 0


async def test_what_was_claimed_and_not_begun_in_time_is_given_back(desk: Desk) -> None:
    key, day = str(uuid4()), timedelta(days=1)
    now = datetime.now(UTC)
    pool = await asyncpg.create_pool(desk.office.cluster.environment["RECORRIDO_POSTGRES_DSN"], min_size=1, max_size=2)
    receivers = Receivers(networks("127.0.0.0/8"), 2.0)
    try:
        await pool.execute(
            """INSERT INTO actions_webhooks.webhook (webhook_id, url, event_types, description, registered_at,
               registered_by, position) VALUES ($1, 'http://127.0.0.1:9/', '{}', '', $2, 'x', 0)""",
            *(key, now),
        )
        # Due tomorrow, so that the service leaves them to us.
        await pool.executemany(
            """INSERT INTO actions_webhooks.delivery (delivery_id, webhook_id, event_id, event_type, stream, revision,
               position, recorded_at, next_at) VALUES ($1, $2, $3, 'x', 'action-x', 0, $4, $5, $6)""",
            [(str(uuid4()), key, uuid4(), position, now, now + day) for position in range(3)],
        )
        box = outbox.Outbox(pool, 2.0)
        clock = lambda: now + 2 * day  # noqa: E731 - as short as it is
        given = {"first_wait_s": 1.0, "give_up_s": 10.0}
        handlers = WebhookHandlers(desk.office.store, box, receivers, Keyring(()), clock, **given)
        dues = await box.claim(key, clock(), 8)
        assert [due.attempts for due in dues] == [1, 1, 1]
        assert await box.claim(key, clock(), 8) == []
        await handlers._deliver_all(webhook_handlers._Claimed(Webhook(), dues, before=0.0))
        again = await box.claim(key, clock(), 8)
        assert [due.attempts for due in again] == [1, 1, 1]
        # What somebody else has by now is not given back.
        await box.release([dataclasses.replace(due, attempts=7) for due in again], clock())
        assert await box.claim(key, clock(), 8) == []
    finally:
        await pool.execute("DELETE FROM actions_webhooks.delivery WHERE webhook_id = $1", key)
        await pool.execute("DELETE FROM actions_webhooks.webhook WHERE webhook_id = $1", key)
        await receivers.close()
        await pool.close()


async def test_what_is_over_for_long_is_dropped(desk: Desk) -> None:
    key, now = str(uuid4()), datetime.now(UTC)
    long_ago, lately = now - outbox.KEPT - timedelta(hours=1), now - outbox.KEPT + timedelta(hours=1)
    pool = await asyncpg.create_pool(desk.office.cluster.environment["RECORRIDO_POSTGRES_DSN"], min_size=1, max_size=2)
    rows = [
        (state, tried if state != "PENDING" else None, tried if state == "DELIVERED" else None)
        for state in ("DELIVERED", "ABANDONED", "PENDING")
        for tried in (long_ago, lately)
    ]
    try:
        # Of a webhook that the service does not know, so that it leaves what is pending alone.
        await pool.executemany(
            """INSERT INTO actions_webhooks.delivery (delivery_id, webhook_id, event_id, event_type, stream, revision,
               position, recorded_at, next_at, state, first_at, delivered_at)
               VALUES ($1, $2, $3, 'x', 'action-x', 0, $4, $5, $5, $6, $7, $8)""",
            [(str(uuid4()), key, uuid4(), position, long_ago, *row) for position, row in enumerate(rows)],
        )
        box = outbox.Outbox(pool, 2.0)
        while await box.prune(now):
            pass
        left = await pool.fetch(
            "SELECT position FROM actions_webhooks.delivery WHERE webhook_id = $1 ORDER BY position", key
        )
        assert [row["position"] for row in left] == [1, 3, 4, 5]
    finally:
        await pool.execute("DELETE FROM actions_webhooks.delivery WHERE webhook_id = $1", key)
        await pool.close()


# -- keys ----------------------------------------------------------------------------------------------------------


async def test_what_happens_does_not_wait_for_all_of_a_replay(desk: Desk) -> None:
    count = 3 * outbox.PART
    async with desk.hooked(event_types=["recorrido.actions.v1.ActionCommented"]) as (receiver, key):

        async def comment(some: int) -> None:
            events = [ActionCommented(action_id=unique("a"), actor="x", text="x", request_id="1") for _ in range(some)]
            for at in range(0, some, 250):
                await desk.office.store.append(
                    [
                        StreamAppend(stream_name("action", each.action_id), NO_STREAM, [Pending(each, uuid4())])
                        for each in events[at : at + 250]
                    ]
                )

        await comment(count)
        await until(lambda: len(receiver.got) >= count, 60, every_s=0.1)

        async def slowly(_: int) -> web.Response:
            await asyncio.sleep(0.02)
            return web.Response()

        receiver.answer = slowly
        known = set(receiver.ids)
        await desk.ask("ReplayWebhook", key, delivered_too=True)
        await receiver.until_got(count + 50)
        await comment(1)
        await until(lambda: set(receiver.ids) - known, 60, every_s=0.02)
        assert len(receiver.got) < 2 * count


async def test_secrets_go_with_their_key_and_come_back_with_another(tmp_path: Path) -> None:
    keys = [base64.b64encode(letter * 32).decode() for letter in (b"1", b"2")]
    async with listening() as receiver:
        async with desk_of(tmp_path, RECORRIDO_WEBHOOK_KEYS=keys[0]) as desk:
            registered = await desk.register(receiver.url)
            key = registered.webhook.webhook_id
            first = (await desk.line(key)).key_id
            assert first == registered.webhook.key_id
        async with desk_of(tmp_path, RECORRIDO_WEBHOOK_KEYS=keys[1]) as desk:
            await desk.office.open()
            (delivery,) = await desk.until_state(key, ABANDONED)
            assert delivery.last_error == f"the key {first} of its secret is not among the service's"
            assert receiver.got == []
            rotated = await desk.ask("RotateWebhookSecret", key)
            assert (await desk.line(key)).key_id not in ("", first)
            await desk.ask("ReplayWebhook", key)
            await desk.until_state(key, DELIVERED)
            assert signed(*receiver.got[0], rotated.secret)


# -- whom ----------------------------------------------------------------------------------------------------------


async def test_who_may_not_be_told_is_refused_at_the_registration_and_at_each_delivery(tmp_path: Path) -> None:
    async with listening() as receiver:
        async with desk_of(tmp_path) as desk:
            key = (await desk.register(receiver.url)).webhook.webhook_id
            await desk.office.open()
            await receiver.until_got(1)
            for url in ("http://10.0.0.1/", "https://192.168.0.1/x", "https://[fe80::1]/", "https://169.254.169.254/"):
                assert info(await refusal(desk.register(url))).reason == "TARGET_NOT_ALLOWED"
            # In the clear only to what was allowed on purpose.
            assert "https only" in (await refusal(desk.register("http://93.184.216.34/"))).details()
            assert info(await refusal(desk.register("https://nowhere.invalid/"))).reason == "UNKNOWN_HOST"
            assert [f for f, _ in violations(await refusal(desk.register("ftp://x", actor="")))] == ["url", "actor"]
            assert (await refusal(desk.ask("PauseWebhook", "nothing"))).code() is grpc.StatusCode.NOT_FOUND
        # Another day the same name stands for an address that is not allowed.
        async with desk_of(tmp_path, RECORRIDO_WEBHOOK_ALLOWED_NETWORKS="") as desk:
            await desk.office.open()
            (delivery,) = await desk.until_state(key, ABANDONED)
            assert delivery.last_error == "127.0.0.1 is not allowed"
            assert len(receiver.got) == 1
            for url in (receiver.url, "https://localhost/", "https://127.0.0.1/", "https://[::ffff:127.0.0.1]/"):
                assert info(await refusal(desk.register(url))).reason == "TARGET_NOT_ALLOWED"
