use std::time::Duration;

use prost::Message;
use souk_domain::Rejection;
use souk_event_sourcing::LogId;
use souk_runtime::{Deadline, call::CALLER, telemetry::current_traceparent};
use tokio::time::Instant;
use tonic::{
    Code, Extensions, Request, Response, Status,
    metadata::{AsciiMetadataValue, MetadataMap},
};
use tonic_types::StatusExt;

use super::failure::failure;
use crate::{
    commerce::refusal,
    committer::CommandError,
    gateway::Gateway,
    ownership::{Home, Hop, Outgoing, unreached, unsent},
};

/// Part of a caller's deadline that is kept for the way back.
const MARGIN: Duration = Duration::from_millis(20);
/// Longest wait for an owner's answer. One that hangs is noticed much earlier, by the keepalive of the connection.
const LONGEST_HOP: Duration = Duration::from_secs(60);
/// An owner that has not answered for so long is asked whether it lives, and has as long to say so.
const SILENT: Duration = Duration::from_millis(500);
/// How long to wait before an owner is asked again that has just taken the log over or given it up.
const PAUSE: Duration = Duration::from_millis(25);

/// Who carried a command out, as [`Gateway::signed`] says it.
const OWNER_HINTS: [&str; 2] = ["souk-owner", "souk-partition"];

/// Marks the response of another replica, which has done everything already.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elsewhere;

/// One call's way to the owner of its log: carried out here, or forwarded once to the log's region and once to its owner;
/// waiting while the log has no owner.
pub(super) struct Route {
    deadline: Deadline,
    /// Until when it is waited for an owner.
    patience: Instant,
    hop: Option<Hop>,
    metadata: MetadataMap,
}

/// Where a call goes next.
pub(super) enum Next {
    Here,
    There(Home),
}

impl Route {
    pub fn of<T>(gateway: &Gateway, request: &Request<T>) -> Self {
        let deadline = Deadline::of(request);
        let mut metadata = MetadataMap::new();
        if let Some(caller) = request.metadata().get(CALLER) {
            metadata.insert(CALLER, caller.clone());
        }
        Self {
            deadline,
            patience: Instant::now() + deadline.budget(MARGIN, gateway.takeover_wait()),
            hop: Hop::of(request.metadata()),
            metadata,
        }
    }

    /// Where the log is owned, waiting for that if nobody owns it.
    ///
    /// # Errors
    /// NOT_OWNER when time is up, or when this replica was thought the owner by another.
    pub async fn next(&self, gateway: &Gateway, log: LogId) -> Result<Next, Status> {
        let mut learnt = gateway.directory().watch();
        loop {
            learnt.mark_unchanged();
            if gateway.owns(log) {
                return Ok(Next::Here);
            }
            let home = gateway.home(log);
            if self.hop == Some(Hop::Owner) {
                return Err(not_owner(log, home));
            }
            if let Some(home) = home {
                return Ok(Next::There(home));
            }
            gateway.directory().ask();
            if tokio::time::timeout_at(self.patience, learnt.changed()).await.is_err() {
                return Err(not_owner(log, None));
            }
        }
    }

    /// Sends the call to the owner; `None` when another attempt makes sense.
    ///
    /// # Errors
    /// What the owner answered, unchanged; or NOT_OWNER when time is up.
    pub async fn forward<M, R>(
        &self,
        gateway: &Gateway,
        home: &Home,
        log: LogId,
        method: &'static str,
        message: M,
    ) -> Result<Option<Response<R>>, Status>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let outgoing = self.outgoing(&home.addresses.internal, Hop::Owner, method);
        metrics::counter!("souk_forwarded_total").increment(1);
        let status = tokio::select! {
            answer = gateway.peers().call::<M, R>(outgoing, message) => match answer {
                Ok(mut response) => {
                    response.extensions_mut().insert(Elsewhere);
                    return Ok(Some(response));
                }
                Err(status) => status,
            },
            // The next owner answers the same request id, whatever became of it there.
            () = moved(gateway, home, log) => return Ok(None),
        };
        if unreached(&status) {
            gateway.directory().suspect(&home.owner);
        } else if is_not_owner(&status) {
            gateway.directory().ask();
        } else {
            return Err(told(&status));
        }
        self.pause(log, Some(home.clone())).await?;
        Ok(None)
    }

    /// Sends the call to the region where its log is at home, once. Another of its endpoints is tried only as long as nothing was
    /// sent.
    ///
    /// # Errors
    /// What was answered there, unchanged; HOME_REGION_AWAY when nothing was sent, HOME_REGION_SILENT when that is not known.
    pub async fn abroad<M, R>(&self, gateway: &Gateway, log: LogId, method: &'static str, message: M) -> Result<Response<R>, Status>
    where
        M: Message + Clone + 'static,
        R: Message + Default + 'static,
    {
        let ways = gateway.ways_to(log.region);
        if ways.is_empty() {
            // Of the ids that callers choose the home was looked for already. Minted ones are of orders, and none was placed there.
            return Err(failure(CommandError::Refused(refusal(Rejection::OrderNotFound))).into());
        }
        // Whoever sent it here takes this region for its home: one of us does not know the topology in force yet.
        for endpoint in ways.iter().filter(|_| self.hop.is_none()) {
            metrics::counter!("souk_forwarded_abroad_total", "region" => log.region.to_string()).increment(1);
            let outgoing = self.outgoing(endpoint, Hop::Region, method);
            match gateway.peers().call::<M, R>(outgoing, message.clone()).await {
                Ok(mut response) => {
                    // Its owner is nobody for callers of this region to call.
                    OWNER_HINTS.iter().for_each(|key| drop(response.metadata_mut().remove(*key)));
                    response.extensions_mut().insert(Elsewhere);
                    return Ok(response);
                }
                Err(status) if unsent(&status) => tracing::debug!(%log, endpoint, %status, "a region is not reached"),
                Err(status) if unreached(&status) => return Err(failure(CommandError::HomeSilent(log.region)).into()),
                Err(status) => return Err(told(&status)),
            }
        }
        Err(failure(CommandError::HomeAway(log.region)).into())
    }

    /// A call with what goes along: caller, trace, the rest of the deadline.
    fn outgoing<'a>(&self, to: &'a str, hop: Hop, method: &'static str) -> Outgoing<'a> {
        let mut metadata = self.metadata.clone();
        if let Ok(traceparent) = AsciiMetadataValue::try_from(current_traceparent()) {
            metadata.insert("traceparent", traceparent);
        }
        Outgoing { to, hop, method, metadata, patience: self.deadline.budget(MARGIN, LONGEST_HOP) }
    }

    /// Lets a moment pass before the next attempt.
    ///
    /// # Errors
    /// NOT_OWNER when time is up.
    pub async fn pause(&self, log: LogId, home: Option<Home>) -> Result<(), Status> {
        if self.hop == Some(Hop::Owner) || Instant::now() + PAUSE >= self.patience {
            return Err(not_owner(log, home));
        }
        tokio::time::sleep(PAUSE).await;
        Ok(())
    }
}

/// Waits until the log is at home elsewhere. An owner that answers nothing at all is suspected meanwhile: it hangs, and if
/// it misses its heartbeat as well, its logs are free.
async fn moved(gateway: &Gateway, home: &Home, log: LogId) {
    let mut learnt = gateway.directory().watch();
    loop {
        learnt.mark_unchanged();
        if gateway.owns(log) || gateway.home(log).is_some_and(|now| now.owner != home.owner) {
            return;
        }
        let silent = tokio::time::timeout(SILENT, learnt.changed()).await.is_err();
        if silent && !gateway.peers().answers(&home.addresses.internal, SILENT).await {
            gateway.directory().suspect(&home.owner);
        }
    }
}

/// What was answered elsewhere. Its metadata is that of the inner call; only what was said goes on.
fn told(status: &Status) -> Status {
    Status::with_details(status.code(), status.message(), status.details().to_vec().into())
}

/// Whether a response came from another replica.
pub(super) fn was_elsewhere(extensions: &Extensions) -> bool {
    extensions.get::<Elsewhere>().is_some()
}

pub(super) fn is_not_owner(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.get_details_error_info().is_some_and(|info| info.reason == "NOT_OWNER")
}

fn not_owner(log: LogId, home: Option<Home>) -> Status {
    let told = failure(CommandError::NotOwner(log));
    match home {
        Some(home) => told.with("owner", home.owner).with("epoch", home.epoch).into(),
        None => told.into(),
    }
}
