use std::{io, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version, header, uri::PathAndQuery};
use tokio::task::JoinSet;

use crate::{
    connection::{self, Connection, Link},
    source::Request,
};

/// Why there is nothing to send load to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} is no address such as http://127.0.0.1:4100")]
    Address(String),
    #[error("{0:?} asks for TLS, which this loader does not speak: what it measures is the server")]
    Tls(String),
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: io::Error },
    #[error("{0:?} is no path such as /package.Service/Method")]
    Path(String),
    #[error("no timer: {0}")]
    Timer(io::Error),
}

/// The servers under load, with all connections to them. Several runs may use them, one after the other.
#[derive(Debug, Default)]
pub struct Target {
    services: Vec<Service>,
    /// Keep the connections up; end with the target.
    keepers: JoinSet<()>,
}

/// One of the services of a [`Target`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceId(usize);

#[derive(Debug)]
struct Service {
    authority: String,
    connections: Vec<Connection>,
}

impl Target {
    /// Connects to a service, so many times in all. Several replicas are separated by commas and get the connections in turn.
    ///
    /// # Errors
    /// When the address is none, or a replica does not accept.
    pub async fn connect(&mut self, addresses: &str, connections: usize) -> Result<ServiceId, Error> {
        let replicas = addresses.split(',').map(|address| authority(address.trim())).collect::<Result<Vec<_>, _>>()?;
        let mut opened = Vec::new();
        for replica in replicas.iter().cycle().take(connections.max(replicas.len())) {
            let (connection, keeper) =
                connection::open(replica.clone()).await.map_err(|source| Error::Connect { address: replica.clone(), source })?;
            self.keepers.spawn(keeper);
            opened.push(connection);
        }
        self.services.push(Service { authority: replicas[0].clone(), connections: opened });
        Ok(ServiceId(self.services.len() - 1))
    }

    /// A method of a service that was connected.
    ///
    /// # Errors
    /// When the path is none.
    ///
    /// # Panics
    /// When the service is of another target.
    pub fn rpc(&self, service: ServiceId, path: &str) -> Result<Rpc, Error> {
        Rpc::new(service, &self.services[service.0].authority, path)
    }

    /// The connections of one worker, by service: workers share them in turn.
    pub(crate) fn links(&self, worker: usize) -> Vec<Link> {
        self.services.iter().map(|service| service.connections[worker % service.connections.len()].link()).collect()
    }

    /// Connections lost so far.
    pub(crate) fn lost(&self) -> u64 {
        self.services.iter().flat_map(|service| &service.connections).map(Connection::lost).sum()
    }
}

fn authority(address: &str) -> Result<String, Error> {
    let uri: Uri = address.parse().map_err(|_| Error::Address(address.to_owned()))?;
    if uri.scheme_str() == Some("https") {
        return Err(Error::Tls(address.to_owned()));
    }
    match uri.authority() {
        Some(authority) if authority.port_u16().is_some() && uri.path().len() <= 1 => Ok(authority.to_string()),
        _ => Err(Error::Address(address.to_owned())),
    }
}

/// What all calls of a method have in common: where it is served, its path, metadata and deadline.
#[derive(Clone, Debug)]
pub struct Rpc {
    service: ServiceId,
    head: http::Request<()>,
    deadline: Duration,
}

impl Rpc {
    const DEADLINE: Duration = Duration::from_secs(10);

    fn new(service: ServiceId, authority: &str, path: &str) -> Result<Self, Error> {
        let no_path = || Error::Path(path.to_owned());
        let path_and_query: PathAndQuery = path.parse().map_err(|_| no_path())?;
        let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path_and_query).build().map_err(|_| no_path())?;
        let mut head = http::Request::new(());
        *head.method_mut() = Method::POST;
        *head.version_mut() = Version::HTTP_2;
        *head.uri_mut() = uri;
        *head.headers_mut() = HeaderMap::with_capacity(4);
        head.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        head.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        Ok(Self { service, head, deadline: Self::DEADLINE }.deadline(Self::DEADLINE))
    }

    /// Time for each call, from when it is sent; the server is told, and a call without an answer by then has ended. 10 s unless set.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        // The protocol allows eight digits.
        let text = match deadline.as_micros() {
            micros @ 0..=99_999_999 => format!("{micros}u"),
            micros => format!("{}m", (micros / 1000).min(99_999_999)),
        };
        let value = HeaderValue::try_from(text).expect("digits and a letter");
        self.head.headers_mut().insert(HeaderName::from_static("grpc-timeout"), value);
        Self { deadline, ..self }
    }

    /// Sends this along with each call.
    #[must_use]
    pub fn metadata(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.head.headers_mut().append(name, value);
        self
    }

    /// A call of this method.
    pub fn request(self: &Arc<Self>, message: bytes::Bytes) -> Request {
        Request::new(self, message)
    }

    pub(crate) fn service(&self) -> usize {
        self.service.0
    }

    pub(crate) fn head(&self) -> http::Request<()> {
        self.head.clone()
    }

    pub(crate) fn time(&self) -> Duration {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_checked() {
        for good in ["http://127.0.0.1:4100", "127.0.0.1:4100", "http://localhost:1/", "[::1]:80"] {
            assert!(authority(good).is_ok(), "{good}");
        }
        for bad in ["", "http://", "localhost", "http://localhost", "http://localhost:1/path", "local host:1"] {
            assert!(matches!(authority(bad), Err(Error::Address(_))), "{bad}");
        }
        assert!(matches!(authority("https://localhost:1"), Err(Error::Tls(_))));
    }

    #[test]
    fn the_server_is_told_the_deadline() {
        let told = |deadline| {
            let rpc = Rpc::new(ServiceId(0), "localhost:1", "/souk.Echo/Say").expect("a method").deadline(deadline);
            rpc.head.headers()["grpc-timeout"].to_str().expect("text").to_owned()
        };
        assert_eq!(told(Duration::from_millis(250)), "250000u");
        assert_eq!(told(Duration::from_secs(99)), "99000000u");
        assert_eq!(told(Duration::from_secs(100)), "100000m");
        assert_eq!(told(Duration::MAX), "99999999m");
        assert!(Rpc::new(ServiceId(0), "localhost:1", "no path").is_err());
    }
}
