use std::{sync::Arc, time::Duration};

use tonic::transport::{Channel, Endpoint};

use crate::{
    Session,
    owners::Owners,
    pool::{Pool, Turn},
    rpc::Door,
};

/// Where a Souk installation is. Each of the urls may be several, separated by commas: the replicas of a service, where no
/// load balancer stands before them.
#[derive(Debug, Clone)]
pub struct Endpoints {
    pub command: String,
    pub query: String,
    /// The command service's internal port; only our own processes know it.
    pub internal: Option<String>,
    /// Connections to each of them. A connection carries at most 256 calls at a time.
    pub connections: usize,
}

/// An endpoint that is no url.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a url like http://host:port")]
pub struct InvalidEndpoint(String);

/// The connections to a Souk installation. They are made when first used and made again when broken, resolving the
/// host name anew. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Souk {
    doors: Arc<Doors>,
}

#[derive(Debug)]
struct Doors {
    owners: Owners,
    command: Pool,
    query: Pool,
    internal: Option<Pool>,
}

impl Endpoints {
    pub fn new(command: impl Into<String>, query: impl Into<String>) -> Self {
        Self { command: command.into(), query: query.into(), internal: None, connections: 1 }
    }

    #[must_use]
    pub fn internal(mut self, url: impl Into<String>) -> Self {
        self.internal = Some(url.into());
        self
    }

    #[must_use]
    pub fn connections(mut self, connections: usize) -> Self {
        self.connections = connections;
        self
    }
}

impl Souk {
    /// Prepares the connections; none is made yet. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// When an endpoint is no url.
    pub fn connect(endpoints: &Endpoints) -> Result<Self, InvalidEndpoint> {
        let pool = |url: &String| Pool::new(url, endpoints.connections.max(1));
        let internal = endpoints.internal.as_ref().map(pool).transpose()?;
        let doors = Doors { owners: Owners::default(), command: pool(&endpoints.command)?, query: pool(&endpoints.query)?, internal };
        Ok(Self { doors: Arc::new(doors) })
    }

    /// A new session, without tokens.
    pub fn session(&self) -> Session {
        Session::new(self.clone())
    }

    /// What replies told of owners.
    pub(crate) fn owners(&self) -> &Owners {
        &self.doors.owners
    }

    /// A channel to one door; `None` for the internal one when its endpoint was not given.
    pub fn channel(&self, door: Door) -> Option<Channel> {
        self.turn(door).map(|turn| turn.channel)
    }

    /// The same, and how it went is to be told.
    pub(crate) fn turn(&self, door: Door) -> Option<Turn> {
        match door {
            Door::Command => Some(self.doors.command.turn()),
            Door::Query => Some(self.doors.query.turn()),
            Door::Internal => self.doors.internal.as_ref().map(Pool::turn),
        }
    }
}

/// How every connection is made.
///
/// # Errors
/// When the text is no url.
pub(crate) fn endpoint(url: &str) -> Result<Endpoint, InvalidEndpoint> {
    let invalid = || InvalidEndpoint(url.to_owned());
    let uri: http::Uri = url.parse().map_err(|_| invalid())?;
    if uri.scheme().is_none() || uri.host().is_none_or(str::is_empty) {
        return Err(invalid());
    }
    let endpoint = Endpoint::from(uri)
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .tcp_keepalive(Some(Duration::from_secs(15)))
        // A peer that vanished or hangs without a word is noticed in seconds, also between calls.
        .http2_keep_alive_interval(Duration::from_secs(1))
        .keep_alive_timeout(Duration::from_secs(2))
        .keep_alive_while_idle(true);
    Ok(endpoint)
}
