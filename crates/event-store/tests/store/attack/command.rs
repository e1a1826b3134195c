use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use bytes::Bytes;
use rand::{Rng, rngs::SmallRng};
use souk_event_sourcing::{Epoch, EventId, Hlc, LogHash, LogId, Position, RecordedEvent, RequestId, StreamId, UnixMillis, Version};
use souk_event_store::{Belief, Fingerprint, LedgerEntry, LogBatch, StreamAdvance};
use uuid::Uuid;

use super::report::Reply;

/// Streams of a log that are written at one time; with the log they move on, so that none grows for ever.
const STREAMS: u32 = 16;
const POSITIONS_PER_GENERATION: u64 = 400;

/// A caller's request.
#[derive(Debug, Clone)]
pub struct Command {
    pub request: RequestId,
    /// The first is the one the ledger remembers it under.
    pub streams: Vec<StreamId>,
    pub kind: Kind,
    /// How often it was sent without an answer.
    pub sent: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// So many events on each of its streams.
    Write(Vec<u64>),
    /// Answered without events, and remembered.
    Refuse,
    /// Answered without events, not remembered.
    Ask,
    /// Sent with a version its stream does not have.
    Stale,
    /// Answered before, with this.
    Repeat(Reply),
}

impl Command {
    /// A new one for a log that ends at `position`.
    pub fn draw(rng: &mut SmallRng, position: Position) -> Self {
        let kind = match rng.random_range(0..100) {
            0..40 => Kind::Write(vec![rng.random_range(1..=2)]),
            40..65 => Kind::Write(vec![1, rng.random_range(1..=2)]),
            65..80 => Kind::Refuse,
            80..92 => Kind::Ask,
            _ => Kind::Stale,
        };
        let count = if let Kind::Write(events) = &kind { events.len() } else { 1 };
        let generation = position.0 / POSITIONS_PER_GENERATION;
        let numbers = rand::seq::index::sample(rng, STREAMS as usize, count);
        let streams = numbers.iter().map(|number| StreamId::new("entity", &format!("{generation}-{number}"))).collect();
        let request = RequestId(if rng.random_ratio(1, 8) { Uuid::new_v4() } else { Uuid::now_v7() });
        Self { request, streams, kind, sent: 0 }
    }
}

/// One log's part of an append and what each command is answered with once it is done.
pub struct Part {
    pub batch: LogBatch,
    pub replies: Vec<Reply>,
}

impl Part {
    /// Decides commands in order; those on one stream see each other.
    pub fn of(log: LogId, belief: Belief, stored: &HashMap<StreamId, u64>, commands: &[Command], rng: &mut SmallRng) -> Self {
        let mut part = Self { batch: LogBatch { log, belief, ledger: vec![], streams: vec![], events: vec![] }, replies: vec![] };
        let mut spoilt = HashSet::new();
        for command in commands {
            let reply = match &command.kind {
                Kind::Write(events) => part.write(command, events, stored),
                Kind::Stale => {
                    spoilt.insert(&command.streams[0]);
                    part.write(command, &[1], stored)
                }
                Kind::Refuse => {
                    let (version, position) = (part.touch(&command.streams[0], stored).new.0, part.end());
                    Reply::Refused { version, position }
                }
                Kind::Ask => {
                    let (version, position) = (part.touch(&command.streams[0], stored).new.0, part.end());
                    Reply::Seen { version, position }
                }
                // Rests on nothing but its being known.
                Kind::Repeat(_) => Reply::Refused { version: 0, position: 0 },
            };
            part.remember(command, reply);
        }
        for advance in part.batch.streams.iter_mut().filter(|advance| spoilt.contains(&advance.stream)) {
            let behind = advance.expected.0 > 0 && rng.random();
            advance.expected = Version(if behind { advance.expected.0 - 1 } else { advance.expected.0 + 1 });
        }
        part
    }

    /// What the owner believes once the part is done.
    pub fn after(&self) -> Belief {
        souk_event_store::conformance::after(&self.batch)
    }

    fn end(&self) -> u64 {
        self.batch.belief.position.0 + self.batch.events.len() as u64
    }

    fn touch(&mut self, stream: &StreamId, stored: &HashMap<StreamId, u64>) -> &mut StreamAdvance {
        let streams = &mut self.batch.streams;
        let at = streams.iter().position(|advance| advance.stream == *stream).unwrap_or_else(|| {
            let version = Version(stored[stream]);
            streams.push(StreamAdvance { stream: stream.clone(), expected: version, new: version });
            streams.len() - 1
        });
        &mut streams[at]
    }

    fn write(&mut self, command: &Command, events: &[u64], stored: &HashMap<StreamId, u64>) -> Reply {
        let (first, all) = (self.end() + 1, events.iter().sum());
        for (stream, count) in command.streams.iter().zip(events) {
            for _ in 0..*count {
                let advance = self.touch(stream, stored);
                advance.new = advance.new.next();
                let version = advance.new;
                self.push(command.request, stream, version, all);
            }
        }
        Reply::Wrote { first, events: all }
    }

    fn push(&mut self, request: RequestId, stream: &StreamId, version: Version, of: u64) {
        let position = Position(self.end() + 1);
        let batch = &mut self.batch;
        let previous = batch.events.last().map_or(batch.belief.hash, |event| event.hash);
        let mut event = RecordedEvent {
            log: batch.log,
            position,
            epoch: batch.belief.epoch,
            hash: LogHash::EMPTY,
            stream: stream.clone(),
            version,
            kind: "Attacked".into(),
            schema_version: 1,
            // How many events the command has: none of them may be missing.
            payload: Bytes::from(of.to_string()),
            event_id: EventId(Uuid::now_v7()),
            request_id: Some(request),
            causation_id: None,
            correlation_id: None,
            actor: "attack".into(),
            hlc: Hlc::new(UnixMillis::now(), 0),
            traceparent: String::new(),
            home_epoch: Epoch(0),
            key_id: None,
        };
        event.hash = previous.after(&event);
        batch.events.push(Arc::new(event));
    }

    fn remember(&mut self, command: &Command, reply: Reply) {
        self.batch.ledger.push(LedgerEntry {
            stream: command.streams[0].clone(),
            request_id: command.request,
            method: "attack/Command",
            command: Bytes::new(),
            fingerprint: Fingerprint::new(*command.request.0.as_bytes()),
            reply: (command.kind != Kind::Ask).then(|| reply.to_string().into()),
            actor: "attack".into(),
            recorded: UnixMillis::now(),
        });
        self.replies.push(reply);
    }
}
