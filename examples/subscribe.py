"""Follow events durably, so that each has its effect once, whatever is killed when.

    python examples/subscribe.py [--type recorrido.ingest.v1.InteractionRecorded] [--durable my-team]
    python examples/subscribe.py --replay NAME      # what `recorrido republish --as NAME` published again

Needs nats-py. The effect here is a row in an SQLite file. The id of the event is written in the same transaction, so an
event that is delivered again finds itself there and does nothing: that is all that idempotency takes.
"""

import argparse
import asyncio
import sqlite3
import sys

import nats
from nats.js.api import AckPolicy, ConsumerConfig, DeliverPolicy


def open_state(file: str) -> sqlite3.Connection:
    state = sqlite3.connect(file)
    state.execute("CREATE TABLE IF NOT EXISTS handled (event_id TEXT PRIMARY KEY)")
    state.execute("CREATE TABLE IF NOT EXISTS seen (type TEXT, stream TEXT, revision INTEGER, body TEXT)")
    return state


def handle(state: sqlite3.Connection, headers: dict[str, str], body: bytes) -> bool:
    """Have the effect, unless it was had before; return whether it was had now."""
    with state:  # one transaction
        new = state.execute("INSERT OR IGNORE INTO handled VALUES (?)", (headers["ce-id"],)).rowcount == 1
        if new:
            row = (headers["ce-type"], headers["ce-subject"], int(headers["recorrido-revision"]), body.decode())
            state.execute("INSERT INTO seen VALUES (?, ?, ?, ?)", row)
    return new


async def follow(options: argparse.Namespace) -> None:
    state = open_state(options.state)
    # By default a lost connection would be given up after two minutes.
    client = await nats.connect(options.nats, name=options.durable, max_reconnect_attempts=-1)
    stream = f"RECORRIDO_REPLAY_{options.replay}" if options.replay else "RECORRIDO"
    subjects = f"recorrido_replay.{options.replay}.{options.type}.>" if options.replay else f"{options.type}.>"
    # A durable consumer is kept by the server, with how far it is: it is made once, and then found again.
    consumer = await client.jetstream().pull_subscribe(
        subjects,
        durable=options.durable,
        stream=stream,
        config=ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, deliver_policy=DeliverPolicy.ALL, ack_wait=30),
    )
    handled = 0
    while not options.limit or handled < options.limit:
        try:
            messages = await consumer.fetch(100, timeout=5)
        except TimeoutError:
            if options.replay and (await consumer.consumer_info()).num_pending == 0:
                break  # a replay has an end
            continue
        for message in messages:
            headers = dict(message.headers or {})
            new = handle(state, headers, message.data)
            # Only now: what is not acknowledged comes again.
            await message.ack()
            handled += 1
            sys.stdout.write(f"{'new ' if new else 'again'} {headers['ce-type']} {headers['ce-subject']}\n")
            sys.stdout.flush()
    await client.flush()  # the acknowledgements
    await client.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nats", default="nats://127.0.0.1:4222", help="the bus")
    parser.add_argument("--type", default="recorrido.ingest.v1.InteractionRecorded", help="full name of the type")
    parser.add_argument("--durable", default="example-python", help="name of the consumer; never rename it")
    parser.add_argument("--replay", default="", metavar="NAME", help="read this replay to its end instead")
    parser.add_argument("--state", default="subscribe.sqlite", metavar="FILE", help="where the effects are")
    parser.add_argument("--limit", type=int, default=0, help="end after so many messages; 0: never")
    asyncio.run(follow(parser.parse_args()))


if __name__ == "__main__":
    main()
