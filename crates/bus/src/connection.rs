use std::time::Duration;

use async_nats::{Client, ConnectOptions, Event, connection::State};
use tokio::{sync::watch, time::timeout};
use tracing::{debug, info, warn};

use crate::BusError;

/// Half-open connections show within twice this; the default leaves them for minutes.
const PING_INTERVAL: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the first session is waited for.
const FIRST_SESSION: Duration = Duration::from_millis(500);
/// Messages buffered per subscription before further ones are dropped.
const SUBSCRIPTION_CAPACITY: usize = 16 * 1024;

/// A connection to NATS that is kept: it reconnects for ever, also when the first attempt fails. Clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    client: Client,
    sessions: watch::Receiver<u64>,
}

impl Connection {
    /// Connects as `name` to one of the servers in `url`, separated by commas. Returns before it is connected.
    ///
    /// # Errors
    /// When `url` is malformed.
    pub async fn open(url: &str, name: &str) -> Result<Self, BusError> {
        let (session, sessions) = watch::channel(0);
        let client = ConnectOptions::new()
            .name(name)
            .ping_interval(PING_INTERVAL)
            .request_timeout(Some(REQUEST_TIMEOUT))
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .retry_on_initial_connect()
            .max_reconnects(None)
            .reconnect_delay_callback(|attempt| Duration::from_millis(50 << attempt.min(5)))
            .event_callback(move |event| {
                report(&event);
                if event == Event::Connected {
                    session.send_modify(|session| *session += 1);
                }
                std::future::ready(())
            })
            .connect(url.split(',').map(str::trim).collect::<Vec<_>>())
            .await
            .map_err(|error| BusError::Unavailable(error.to_string()))?;
        Ok(Self { client, sessions })
    }

    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Counts sessions with a server; a change means that what was under way in the one before is lost.
    pub(crate) fn sessions(&self) -> watch::Receiver<u64> {
        let mut sessions = self.sessions.clone();
        sessions.mark_unchanged();
        sessions
    }

    /// As [`Self::up`], but a process that has just started is connected first: else all that it missed would be asked of the
    /// event log, which is there for what the bus has not.
    pub(crate) async fn came_up(&self) -> Result<(), BusError> {
        let mut sessions = self.sessions.clone();
        let _ = timeout(FIRST_SESSION, sessions.wait_for(|session| *session > 0)).await;
        self.up()
    }

    /// Refuses at once while there is no server. async-nats would queue what is sent, and wait without limit for a
    /// place in that queue once it is full.
    pub(crate) fn up(&self) -> Result<(), BusError> {
        match self.client.connection_state() {
            State::Connected => Ok(()),
            State::Pending | State::Disconnected => Err(BusError::Unavailable("not connected to NATS".into())),
        }
    }
}

fn report(event: &Event) {
    match event {
        Event::Connected => info!("connected to NATS"),
        Event::Disconnected => warn!("connection to NATS lost; reconnecting"),
        // One for every attempt to reconnect.
        Event::ClientError(error) => debug!(%error, "nats"),
        event => warn!(%event, "nats"),
    }
}
