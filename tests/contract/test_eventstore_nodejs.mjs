// Drives the server at KURRENTDB_URI with the official Node.js client. Run by test_eventstore_nodejs.py.

import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import { after, test } from "node:test";

const require = createRequire(`${process.env.KURRENTDB_MODULES}/`);
const {
  ANY,
  AppendConsistencyViolationError,
  AppendRecordSizeExceededError,
  BACKWARDS,
  END,
  FORWARDS,
  KurrentDBClient,
  MaxAppendSizeExceededError,
  NO_STREAM,
  PARK,
  PersistentSubscriptionDoesNotExistError,
  PersistentSubscriptionExistsError,
  RETRY,
  SKIP,
  START,
  STREAM_EXISTS,
  StreamDeletedError,
  StreamNotFoundError,
  UnsupportedError,
  WrongExpectedVersionError,
  eventTypeFilter,
  jsonEvent,
  binaryEvent,
  persistentSubscriptionToAllSettingsFromDefaults,
  persistentSubscriptionToStreamSettingsFromDefaults,
  streamNameFilter,
} = require("@kurrent/kurrentdb-client");

const client = KurrentDBClient.connectionString(process.env.KURRENTDB_URI);
const other = KurrentDBClient.connectionString(process.env.KURRENTDB_URI);
after(() => Promise.all([client.dispose(), other.dispose()]));

const fresh = () => `customer-${randomUUID()}`;
const events = (count, type = "Recorded") => Array.from({ length: count }, (_, n) => jsonEvent({ type, data: { n } }));
const collect = async (read) => {
  const collected = [];
  for await (const item of read) collected.push(item);
  return collected;
};
const take = async (subscription, count) => {
  const taken = [];
  for await (const item of subscription) {
    taken.push(item);
    if (taken.length === count) break;
  }
  return taken;
};

// A nack has no answer: wait until the parked event is in the group's own stream.
const parked = (stream, group) => take(client.subscribeToStream(`$persistentsubscription-${stream}::${group}-parked`), 1);

test("append, read in both directions, from any revision", async () => {
  const stream = fresh();
  const result = await client.appendToStream(stream, events(5), { streamState: NO_STREAM });
  assert.equal(result.success, true);
  assert.equal(result.nextExpectedRevision, 4n);
  const read = async (options) =>
    (await collect(client.readStream(stream, options))).map(({ event }) => event.revision);
  assert.deepEqual(await read({}), [0n, 1n, 2n, 3n, 4n]);
  assert.deepEqual(await read({ direction: BACKWARDS, fromRevision: END }), [4n, 3n, 2n, 1n, 0n]);
  assert.deepEqual(await read({ direction: FORWARDS, fromRevision: 2n, maxCount: 2 }), [2n, 3n]);
});

test("an event comes back as it went in", async () => {
  const stream = fresh();
  const json = jsonEvent({ type: "Json", data: { text: "niña, Češka" }, metadata: { traceparent: "00-ab" } });
  const binary = binaryEvent({ type: "Binary", data: Uint8Array.from([0, 1, 255]) });
  await client.appendToStream(stream, [json, binary]);
  const [first, second] = (await collect(client.readStream(stream))).map(({ event }) => event);
  assert.equal(first.id, json.id);
  assert.deepEqual(first.data, json.data);
  assert.deepEqual(first.metadata, json.metadata);
  assert.equal(first.isJson, true);
  assert.ok(Math.abs(Date.now() - Number(first.created)) < 60_000);
  assert.deepEqual([...second.data], [0, 1, 255]);
});

test("expected state: refused, and repeated", async () => {
  const stream = fresh();
  const first = events(2);
  await client.appendToStream(stream, first, { streamState: NO_STREAM });
  await client.appendToStream(stream, first, { streamState: NO_STREAM });
  await assert.rejects(
    client.appendToStream(stream, events(1), { streamState: NO_STREAM }),
    (error) => error instanceof WrongExpectedVersionError && error.actualState === 1n
  );
  await assert.rejects(client.appendToStream(fresh(), events(1), { streamState: STREAM_EXISTS }), WrongExpectedVersionError);
  assert.equal((await collect(client.readStream(stream))).length, 2);
});

test("typed errors: not found, deleted, tombstoned", async () => {
  const stream = fresh();
  await assert.rejects(collect(client.readStream(stream)), StreamNotFoundError);
  await client.appendToStream(stream, events(2));
  await client.deleteStream(stream);
  await assert.rejects(collect(client.readStream(stream)), StreamNotFoundError);
  await client.appendToStream(stream, events(1));
  assert.deepEqual((await collect(client.readStream(stream))).map(({ event }) => event.revision), [2n]);
  await client.tombstoneStream(stream);
  await assert.rejects(collect(client.readStream(stream)), StreamDeletedError);
  await assert.rejects(client.appendToStream(stream, events(1)), StreamDeletedError);
});

test("stream metadata limits what is visible", async () => {
  const stream = fresh();
  await client.appendToStream(stream, events(5));
  await client.setStreamMetadata(stream, { maxCount: 2, owner: "cx" });
  const { metadata } = await client.getStreamMetadata(stream);
  assert.equal(metadata.maxCount, 2);
  assert.equal(metadata.owner, "cx");
  assert.equal((await collect(client.readStream(stream))).length, 2);
});

test("what is before $tb or older than $maxAge is not given out", async () => {
  const [cut, aged] = [fresh(), fresh()];
  for (const stream of [cut, aged]) await client.appendToStream(stream, events(5));
  await client.setStreamMetadata(cut, { truncateBefore: 3 });
  assert.deepEqual((await collect(client.readStream(cut))).map(({ event }) => event.revision), [3n, 4n]);
  await client.setStreamMetadata(aged, { maxAge: 1 });
  const deadline = Date.now() + 20_000;
  // Of a stream all of whose events are too old, none is given, or it is not found.
  const left = async () => {
    try {
      return (await collect(client.readStream(aged))).length;
    } catch (error) {
      assert.ok(error instanceof StreamNotFoundError);
      return 0;
    }
  };
  while ((await left()) > 0) assert.ok(Date.now() < deadline, "still there after 20 s");
});

test("typed errors: too large", async () => {
  const large = (mib) => jsonEvent({ type: "Large", data: { text: "x".repeat(mib * 1024 * 1024) } });
  await assert.rejects(client.appendToStream(fresh(), large(17)), MaxAppendSizeExceededError);
  const records = [{ streamName: fresh(), record: large(17) }];
  await assert.rejects(client.appendRecords(records), AppendRecordSizeExceededError);
});

test("append records to many streams, all or nothing", async () => {
  const [a, b] = [fresh(), fresh()];
  const records = () => [a, b].map((streamName) => ({ streamName, record: jsonEvent({ type: "Recorded", data: {} }) }));
  const { responses } = await client.appendRecords(records(), [{ type: "streamState", streamName: a, expectedState: NO_STREAM }]);
  assert.deepEqual(new Set(responses.map(({ streamName }) => streamName)), new Set([a, b]));
  await assert.rejects(
    client.appendRecords(records(), [{ type: "streamState", streamName: a, expectedState: NO_STREAM }]),
    AppendConsistencyViolationError
  );
  assert.equal((await collect(client.readStream(b))).length, 1);
});

test("append a session to many streams", async () => {
  const [a, b] = [fresh(), fresh()];
  await client.multiStreamAppend([
    { streamName: a, events: events(2), expectedState: NO_STREAM },
    { streamName: b, events: events(1), expectedState: ANY },
  ]);
  await assert.rejects(
    client.multiStreamAppend([
      { streamName: b, events: events(1), expectedState: ANY },
      { streamName: a, events: events(1), expectedState: NO_STREAM },
    ]),
    WrongExpectedVersionError
  );
  assert.equal((await collect(client.readStream(b))).length, 1);
});

test("read all through filters", async () => {
  const stream = fresh();
  await client.appendToStream(stream, [...events(3, "Wanted"), ...events(3, "Other")]);
  const byName = streamNameFilter({ prefixes: [stream] });
  const seen = await collect(client.readAll({ direction: FORWARDS, fromPosition: START, filter: byName }));
  assert.equal(seen.length, 6);
  const last = await collect(client.readAll({ direction: BACKWARDS, fromPosition: END, maxCount: 2 }));
  assert.equal(last.length, 2);
  const after = await collect(client.readAll({ direction: FORWARDS, fromPosition: seen[3].event.position }));
  assert.deepEqual(after[0].event.position, seen[3].event.position);
});

test("read all by prefix and by regular expression, of names and of types, in both directions", async () => {
  const key = randomUUID().replaceAll("-", "");
  for (const n of [0, 1, 2, 3]) {
    await client.appendToStream(`${key}${n % 2 ? "odd" : "even"}-${n}`, events(2, `${key}Kind${n}`));
  }
  const count = async (filter, more = {}) => (await collect(client.readAll({ filter, ...more }))).length;
  const backwards = { direction: BACKWARDS, fromPosition: END };
  for (const more of [{}, backwards]) {
    assert.equal(await count(streamNameFilter({ prefixes: [`${key}odd`] }), more), 4);
    assert.equal(await count(streamNameFilter({ regex: `^${key}(odd|even)-[03]$` }), more), 4);
    assert.equal(await count(eventTypeFilter({ prefixes: [`${key}Kind1`, `${key}Kind2`] }), more), 4);
    assert.equal(await count(eventTypeFilter({ regex: `^${key}Kind[^1]$` }), more), 6);
    assert.equal(await count(eventTypeFilter({ regex: `^${key}` }), { ...more, maxCount: 3 }), 3);
  }
});

test("subscribe from the end and from a position, and hear when all is told", async () => {
  const stream = fresh();
  await client.appendToStream(stream, events(3));
  const filter = streamNameFilter({ prefixes: [stream] });
  const [, second] = (await collect(client.readAll({ filter }))).map(({ event }) => event.position);
  const behind = client.subscribeToAll({ filter, fromPosition: second });
  const caughtUp = new Promise((resolve) => behind.once("caughtUp", resolve));
  const live = client.subscribeToAll({ filter, fromPosition: END });
  const confirmed = new Promise((resolve) => live.once("caughtUp", resolve));
  const [first, last] = [take(behind, 2), take(live, 1)];
  await Promise.all([caughtUp, confirmed]);
  await client.appendToStream(stream, events(1));
  assert.deepEqual((await first).map(({ event }) => event.revision), [2n, 3n]);
  assert.deepEqual((await last).map(({ event }) => event.revision), [3n]);
});

test("subscribe to all: history, then live, with checkpoints", async () => {
  const stream = fresh();
  const type = `Kind${randomUUID()}`;
  await client.appendToStream(stream, events(3, type));
  let reached;
  const checkpoint = new Promise((resolve) => (reached = resolve));
  const filter = eventTypeFilter({ regex: `^${type}$`, checkpointInterval: 1, checkpointReached: () => reached() });
  const subscription = client.subscribeToAll({ filter, fromPosition: START });
  await client.appendToStream(stream, [...events(3, "Other"), ...events(2, type)]);
  const revisions = [];
  for await (const { event } of subscription) {
    revisions.push(event.revision);
    if (revisions.length === 5) {
      await checkpoint;
      break;
    }
  }
  assert.deepEqual(revisions, [0n, 1n, 2n, 6n, 7n]);
});

test("subscribe to a stream", async () => {
  const stream = fresh();
  await client.appendToStream(stream, events(3));
  const taking = take(client.subscribeToStream(stream, { fromRevision: 0n }), 3);
  await client.appendToStream(stream, events(1));
  assert.deepEqual((await taking).map(({ event }) => event.revision), [1n, 2n, 3n]);
});

test("persistent subscription: ack, park, info, replay", async () => {
  const [stream, group] = [fresh(), `group-${randomUUID()}`];
  await client.appendToStream(stream, events(3));
  await client.createPersistentSubscriptionToStream(
    stream,
    group,
    persistentSubscriptionToStreamSettingsFromDefaults({ startFrom: START })
  );
  await assert.rejects(
    client.createPersistentSubscriptionToStream(stream, group, persistentSubscriptionToStreamSettingsFromDefaults()),
    PersistentSubscriptionExistsError
  );
  const subscription = other.subscribeToPersistentSubscriptionToStream(stream, group);
  const seen = [];
  for await (const resolved of subscription) {
    seen.push(resolved.event.revision);
    if (seen.length === 2) {
      await subscription.nack(PARK, "strange", resolved);
    } else {
      await subscription.ack(resolved);
    }
    if (seen.length === 3) {
      await parked(stream, group);
      await client.replayParkedMessagesToStream(stream, group);
    }
    if (seen.length === 4) break;
  }
  assert.deepEqual(seen, [0n, 1n, 2n, 1n]);
  const info = await client.getPersistentSubscriptionToStreamInfo(stream, group);
  assert.equal(info.groupName, group);
  assert.ok((await client.listAllPersistentSubscriptions()).some(({ groupName }) => groupName === group));
  await client.deletePersistentSubscriptionToStream(stream, group);
  await assert.rejects(
    client.getPersistentSubscriptionToStreamInfo(stream, group),
    PersistentSubscriptionDoesNotExistError
  );
});

test("persistent subscription to all: filter, update, retry, skip", async () => {
  const [stream, group] = [fresh(), `group-${randomUUID()}`];
  await client.appendToStream(stream, events(3));
  const settings = persistentSubscriptionToAllSettingsFromDefaults({ startFrom: START });
  await client.createPersistentSubscriptionToAll(group, settings, {
    filter: streamNameFilter({ prefixes: [stream] }),
  });
  await client.updatePersistentSubscriptionToAll(group, { ...settings, maxRetryCount: 3 });
  assert.equal((await client.getPersistentSubscriptionToAllInfo(group)).settings.maxRetryCount, 3);
  const subscription = other.subscribeToPersistentSubscriptionToAll(group);
  const seen = [];
  let retried = false;
  for await (const resolved of subscription) {
    const { revision } = resolved.event;
    seen.push(revision);
    if (revision === 0n && !retried) {
      retried = true;
      await subscription.nack(RETRY, "once more", resolved);
    } else if (revision === 1n) {
      await subscription.nack(SKIP, "of no use", resolved);
    } else {
      await subscription.ack(resolved);
    }
    if (seen.length === 4) break;
  }
  assert.deepEqual([...seen].sort(), [0n, 0n, 1n, 2n]);
  assert.ok((await client.listPersistentSubscriptionsToAll()).some(({ groupName }) => groupName === group));
  await client.deletePersistentSubscriptionToAll(group);
  await assert.rejects(client.getPersistentSubscriptionToAllInfo(group), PersistentSubscriptionDoesNotExistError);
});

test("what the node does not do is said clearly", { skip: process.env.KURRENTDB_IS_REAL === "1" }, async () => {
  await assert.rejects(
    client.getProjectionStatus("x"),
    (error) => error instanceof UnsupportedError || /not implemented/.test(error.message)
  );
});
