use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use souk_event_sourcing::{Etag, EventId, LogId, LogPosition, Region, RequestId, StreamId, UnixMillis, UnknownRegion, Version};
use souk_event_store::Fingerprint;
use souk_runtime::TooLong;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::Model;

/// What a decision may rest on: the entities named by the job, in its order.
pub type Decide<M> = Box<dyn Fn(&[&<M as Model>::Entity]) -> Result<Vec<(usize, <M as Model>::Event)>, Refusal> + Send + Sync>;
/// Makes the encoded response, without its token, from the entities as the decision left them.
pub type Respond<M> = Box<dyn Fn(&[(&<M as Model>::Entity, Version)]) -> Bytes + Send + Sync>;

/// One command on its way through the committer.
pub struct Job<M: Model> {
    pub log: LogId,
    /// All of one partition, the one that names the ledger entry first.
    pub streams: Vec<StreamId>,
    pub etag: Option<Etag>,
    pub request: Request,
    pub decide: Decide<M>,
    pub respond: Respond<M>,
    pub answer: oneshot::Sender<Result<Answer, CommandError>>,
}

/// Who asked for what, and under which name.
#[derive(Debug, Clone)]
pub struct Request {
    pub id: RequestId,
    /// Full name of the RPC.
    pub method: &'static str,
    /// The caller's request, canonically encoded.
    pub body: Bytes,
    pub fingerprint: Fingerprint,
    pub actor: String,
    pub received: UnixMillis,
    /// That of the server's span of this call, empty when there is none.
    pub traceparent: String,
    pub causation_id: Option<EventId>,
    pub correlation_id: Option<Uuid>,
}

/// An accepted command: durable, or a repeat of one that is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Encoded response without its token.
    pub response: Bytes,
    /// Its last event, or the head it was decided at when it led to none.
    pub at: LogPosition,
}

/// A rule refused on the state of the entities; remembered like a reply, but for conflicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    pub class: RefusalClass,
    pub reason: String,
    pub message: String,
    pub metadata: BTreeMap<String, String>,
}

impl Refusal {
    /// Whether the facts that came with the command must be gathered again.
    pub fn is_conflict(&self) -> bool {
        self.class == RefusalClass::Conflict
    }
}

/// Kinds of refusal, as far as they are answered and remembered differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalClass {
    NotFound,
    AlreadyExists,
    Rule,
    /// The facts that came with the command do not fit any more; not remembered.
    Conflict,
}

/// Why a command was not carried out.
#[derive(Debug, Clone, thiserror::Error)]
pub enum CommandError {
    #[error("{}", .0.message)]
    Refused(Refusal),
    #[error("request id {0} was used before for another command")]
    RequestIdReused(RequestId),
    #[error("the etag is stale: {stream} is at version {current}")]
    StaleEtag { stream: StreamId, current: Version },
    #[error("others were faster {attempts} times")]
    Conflict { attempts: u32 },
    #[error("this process does not own log {0}")]
    NotOwner(LogId),
    #[error(transparent)]
    UnknownRegion(#[from] UnknownRegion),
    /// The home of an entity cannot be reached; nothing was written there.
    #[error("region {0} is not reached")]
    HomeAway(Region),
    /// The home was asked and has not answered; what became of it there is not known.
    #[error("region {0} has not answered")]
    HomeSilent(Region),
    /// Refused at the door: there is no room for more.
    #[error("the queue of this lane is full")]
    Overloaded,
    /// Refused at the door: it would have waited too long.
    #[error(transparent)]
    TooLong(#[from] TooLong),
    /// Not carried out, or not known to be: repeat under the same id.
    #[error("write store unavailable")]
    Unavailable,
    /// Not carried out by this attempt: the database has no room on its disk.
    #[error("the write store's disk is full")]
    StoreFull,
    /// The database refused the data of this one command.
    #[error("the command's data cannot be stored: {0}")]
    Unstorable(String),
    #[error("the remembered reply cannot be read")]
    DamagedReply,
    #[error(transparent)]
    Damaged(#[from] super::DamagedHistory),
}

/// How long a caller should wait before it repeats a command that met [`CommandError::Unavailable`].
pub const RETRY_AFTER: Duration = Duration::from_millis(500);
