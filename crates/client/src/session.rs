use std::{
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::uri::PathAndQuery;
use opentelemetry::trace::TraceContextExt;
use prost::Message;
use souk_event_sourcing::HeldToken;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Request, Status, client::Grpc, metadata::AsciiMetadataValue, transport::Channel};
use tonic_prost::ProstCodec;
use tracing::{Instrument, Span, field};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use crate::{
    Command, Error, Query, Souk,
    pool::Turn,
    retry::{delay, is_retryable, is_timeout, is_unreached},
    rpc::Door,
};

/// The server's default as well.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(10);

/// One caller's thread of calls. Consistency tokens of all replies are kept and sent with the next query, so that
/// reads see the session's own writes and never go backwards. Clones share the tokens.
#[derive(Debug, Clone)]
pub struct Session {
    souk: Souk,
    token: Arc<Mutex<HeldToken>>,
    caller: Option<AsciiMetadataValue>,
    traceparent: Option<AsciiMetadataValue>,
    deadline: Duration,
}

/// What a call is, apart from its messages.
struct Call<'a> {
    door: Door,
    path: &'static str,
    request_id: &'a str,
    /// Of a command's entity.
    routing_hash: Option<u32>,
    retry_aborted: bool,
}

/// Whom a call is sent to.
enum Way {
    /// The owner of the entity's log, by name.
    Owner(String, Channel),
    /// Whose turn it is.
    Turn(Turn),
}

impl Way {
    fn channel(&self) -> Channel {
        match self {
            Self::Owner(_, channel) | Self::Turn(Turn { channel, .. }) => channel.clone(),
        }
    }
}

impl Session {
    pub(crate) fn new(souk: Souk) -> Self {
        Self { souk, token: Arc::default(), caller: None, traceparent: None, deadline: DEFAULT_DEADLINE }
    }

    /// Who calls, stored as the actor of every event; text that is no visible ASCII is left out.
    #[must_use]
    pub fn caller(mut self, name: &str) -> Self {
        self.caller = name.parse().ok();
        self
    }

    /// Time for a whole call with all its retries.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// W3C traceparent sent when no span of this process is traced.
    #[must_use]
    pub fn traceparent(mut self, traceparent: &str) -> Self {
        self.traceparent = traceparent.parse().ok();
        self
    }

    /// The consistency token of all replies so far, to be carried elsewhere.
    pub fn token(&self) -> String {
        self.held().text()
    }

    /// Takes in a token from elsewhere; text that is none is ignored.
    pub fn merge_token(&self, token: &str) {
        // A reply with a token of a later layout is no reason to fail the call it came with.
        if self.held().merge(token).is_err() {
            tracing::warn!("a consistency token of unknown layout was ignored");
        }
    }

    /// Forgets all tokens: the next query takes whatever the read side has.
    pub fn forget(&self) {
        *self.held() = HeldToken::default();
    }

    /// Sends a command. Its request id is made when empty and stays the same over all retries, so that it takes effect
    /// once; UNAVAILABLE and RESOURCE_EXHAUSTED are repeated within the deadline, ABORTED when it carries no etag.
    ///
    /// # Errors
    /// The last answer when it was final or no time was left.
    pub async fn command<C: Command>(&self, mut command: C) -> Result<C::Reply, Error> {
        if command.request_id().is_empty() {
            *command.request_id() = Uuid::now_v7().to_string();
        }
        let request_id = command.request_id().clone();
        let routing_hash = if C::DOOR == Door::Command { command.routing_hash() } else { None };
        let call = Call { door: C::DOOR, path: C::PATH, request_id: &request_id, routing_hash, retry_aborted: command.etag().is_empty() };
        let reply = self.call::<C, C::Reply>(call, command).await?;
        self.merge_token(C::token(&reply));
        Ok(reply)
    }

    /// Sends a query with the session's token, and takes in the one of its reply.
    ///
    /// # Errors
    /// The last answer when it was final or no time was left. After LOG_RESTORED the session has forgotten its tokens:
    /// they named events that a restore took back.
    pub async fn query<Q: Query>(&self, mut query: Q) -> Result<Q::Reply, Error> {
        let mut token = self.held().clone();
        if !query.token().is_empty() {
            // One the holder cannot read is the service's to judge.
            match token.merge(query.token()) {
                Ok(()) => *query.token() = token.text(),
                Err(_) => tracing::debug!("a token of unknown layout is sent as it is"),
            }
        } else {
            *query.token() = token.text();
        }
        let call = Call { door: Door::Query, path: Q::PATH, request_id: "", routing_hash: None, retry_aborted: true };
        let reply = self.call::<Q, Q::Reply>(call, query).await.inspect_err(|error| {
            if error.reason() == "LOG_RESTORED" {
                self.forget();
            }
        })?;
        if let Some(as_of) = Q::as_of(&reply) {
            self.merge_token(&as_of.token);
        }
        Ok(reply)
    }

    /// Sends until there is a final answer or the deadline passes.
    async fn call<M, R>(&self, call: Call<'_>, message: M) -> Result<R, Error>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let until = Instant::now() + self.deadline;
        let mut attempts = 0;
        loop {
            attempts += 1;
            let span = client_span(call.path, attempts);
            let status = match self.attempt(&call, message.clone(), until).instrument(span).await {
                Ok(reply) => return Ok(reply),
                Err(status) => status,
            };
            let pause = delay(&status, attempts);
            if !is_retryable(&status, call.retry_aborted) || Instant::now() + pause >= until {
                return Err(Error::new(status, attempts, call.request_id));
            }
            tracing::debug!(path = call.path, attempts, code = ?status.code(), ?pause, "trying again");
            sleep(pause).await;
        }
    }

    async fn attempt<M, R>(&self, call: &Call<'_>, message: M, until: Instant) -> Result<R, Status>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let owner = call.routing_hash.and_then(|hash| self.souk.owners().of(hash));
        let way = match owner {
            Some((name, channel)) => Way::Owner(name, channel),
            None => Way::Turn(self.souk.turn(call.door).ok_or_else(|| Status::failed_precondition("no internal endpoint was given"))?),
        };
        let channel = way.channel();
        let mut request = self.request(message);
        // Sent along, so that the service stops when nobody waits any more; and kept here, should it not answer.
        request.set_timeout(until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
        let sent = async {
            let mut grpc = Grpc::new(channel);
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            grpc.unary(request, PathAndQuery::from_static(call.path), ProstCodec::<M, R>::default()).await
        };
        let late = || Status::deadline_exceeded("no answer within the deadline");
        let result = timeout_at(until, sent).await.unwrap_or_else(|_| Err(late()));
        let result = result.map_err(|status| if is_timeout(&status) && status.details().is_empty() { late() } else { status });
        let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
        Span::current().record("rpc.grpc.status_code", code as i64);
        if let (Ok(response), Some(_)) = (&result, call.routing_hash) {
            self.souk.owners().learn(response.metadata());
        }
        match (way, result.as_ref().err()) {
            // It is gone, or it hangs: the next attempt goes through the common door.
            (Way::Owner(owner, _), Some(status)) if is_unreached(status) || is_timeout(status) => self.souk.owners().forget(&owner),
            (Way::Owner(..), _) => {}
            (Way::Turn(turn), failed) => turn.ended(!failed.is_some_and(|status| status.source().is_some() || is_timeout(status))),
        }
        result.map(tonic::Response::into_inner)
    }

    /// The request with what this session sends with every call.
    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(caller) = &self.caller {
            metadata.insert("souk-caller", caller.clone());
        }
        if let Some(traceparent) = current_traceparent().or_else(|| self.traceparent.clone()) {
            metadata.insert("traceparent", traceparent);
        }
        request
    }

    pub(crate) fn souk(&self) -> &Souk {
        &self.souk
    }

    fn held(&self) -> std::sync::MutexGuard<'_, HeldToken> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn client_span(path: &'static str, attempt: u32) -> Span {
    tracing::info_span!(
        target: "rpc",
        "rpc",
        otel.name = &path[1..],
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.grpc.status_code = field::Empty,
        attempt,
    )
}

fn current_traceparent() -> Option<AsciiMetadataValue> {
    let context = Span::current().context();
    let span = context.span().span_context().clone();
    let text = || format!("00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags().to_u8() & 1);
    span.is_valid().then(text)?.parse().ok()
}
