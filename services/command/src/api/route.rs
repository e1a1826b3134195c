use std::time::Duration;

use prost::Message;
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
    committer::CommandError,
    gateway::Gateway,
    ownership::{FORWARDED, Home, Outgoing, unreached},
};

/// Part of a caller's deadline that is kept for the way back.
const MARGIN: Duration = Duration::from_millis(20);
/// Longest wait for an owner's answer. One that hangs is noticed much earlier, by the keepalive of the connection.
const LONGEST_HOP: Duration = Duration::from_secs(60);
/// An owner that has not answered for so long is asked whether it lives, and has as long to say so.
const SILENT: Duration = Duration::from_millis(500);
/// How long to wait before an owner is asked again that has just taken the log over or given it up.
const PAUSE: Duration = Duration::from_millis(25);

/// Marks the response of another replica, which has done everything already.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elsewhere;

/// One call's way to the owner of its log: carried out here, or forwarded once; waiting while the log has no owner.
pub(super) struct Route {
    deadline: Deadline,
    /// Until when it is waited for an owner.
    patience: Instant,
    forwarded: bool,
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
            forwarded: request.metadata().contains_key(FORWARDED),
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
            if self.forwarded {
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
        let mut metadata = self.metadata.clone();
        if let Ok(traceparent) = AsciiMetadataValue::try_from(current_traceparent()) {
            metadata.insert("traceparent", traceparent);
        }
        let patience = self.deadline.budget(MARGIN, LONGEST_HOP);
        let outgoing = Outgoing { to: &home.addresses.internal, method, metadata, patience };
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
            // Its metadata is that of the inner call; only what the owner said goes on.
            return Err(Status::with_details(status.code(), status.message(), status.details().to_vec().into()));
        }
        self.pause(log, Some(home.clone())).await?;
        Ok(None)
    }

    /// Lets a moment pass before the next attempt.
    ///
    /// # Errors
    /// NOT_OWNER when time is up.
    pub async fn pause(&self, log: LogId, home: Option<Home>) -> Result<(), Status> {
        if self.forwarded || Instant::now() + PAUSE >= self.patience {
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
