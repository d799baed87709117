"""A single-node event store that speaks KurrentDB's gRPC protocol over SQLite.

It stands in for a KurrentDB cluster on one machine: the official clients drive it and only the connection
string differs in production. `docs/eventstore.md` lists what it does and what it does not do.

Where to read first: `model` (the words), `decide` (what an append may do), `writer` (group commit),
`reader` (pages of events), `streams_v1` and `streams_v2` (the wire), `server` (how it is put together).
"""
