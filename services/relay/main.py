"""Wires the relay: settings → store and bus → publish."""

from services.foundation.bus import Bus
from services.foundation.config import ServiceSettings
from services.foundation.eventstore import EventStore
from services.foundation.run import Process, run
from services.relay.relay import Relay


async def wire(settings: ServiceSettings, process: Process) -> None:
    store = await EventStore.connect(settings.eventstore_uri)
    process.on_close(store.close)
    bus = await Bus.connect(settings.nats_url, name="relay")
    process.on_close(bus.close)
    process.background("relay", Relay(store, bus).run())


if __name__ == "__main__":
    run("relay", ServiceSettings, wire)
