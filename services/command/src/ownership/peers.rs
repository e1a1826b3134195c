use std::{
    collections::HashMap,
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use http::uri::PathAndQuery;
use prost::Message;
use souk_proto::internal::v1::NudgeRequest;
use tonic::{
    Request, Response, Status,
    client::Grpc,
    metadata::{AsciiMetadataValue, MetadataMap},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

/// Marks a call that was forwarded, with the [`Hop`] it made.
pub const FORWARDED: &str = "souk-forwarded";

/// How a call came here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hop {
    /// From another replica of this region: it is not forwarded again.
    Owner,
    /// From another region: it is forwarded to its owner at most, and to no third region.
    Region,
}

impl Hop {
    const REGION: &'static str = "region";

    /// The hop that a call made; `None` when it comes from a caller.
    pub fn of(metadata: &MetadataMap) -> Option<Self> {
        metadata.get(FORWARDED).map(|hop| if hop.as_bytes() == Self::REGION.as_bytes() { Self::Region } else { Self::Owner })
    }

    fn mark(self) -> AsciiMetadataValue {
        AsciiMetadataValue::from_static(match self {
            Self::Owner => "1",
            Self::Region => Self::REGION,
        })
    }
}

/// Connections to the internal ports of the other replicas. Cheap to clone.
#[derive(Clone, Default)]
pub struct Peers(Arc<Mutex<HashMap<String, Channel>>>);

/// A call on its way to another replica.
pub struct Outgoing<'a> {
    /// `host:port` of an internal port, or its url.
    pub to: &'a str,
    pub hop: Hop,
    /// `package.Service/Method`
    pub method: &'static str,
    pub metadata: MetadataMap,
    pub patience: Duration,
}

impl Peers {
    /// Calls a method there, once.
    ///
    /// # Errors
    /// What the other replica answered, or UNAVAILABLE with a source when it could not be reached.
    pub async fn call<M, R>(&self, outgoing: Outgoing<'_>, message: M) -> Result<Response<R>, Status>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let Outgoing { to, hop, method, metadata, patience } = outgoing;
        let path = PathAndQuery::try_from(format!("/{method}")).map_err(|error| Status::internal(error.to_string()))?;
        let mut request = Request::new(message);
        *request.metadata_mut() = metadata;
        request.metadata_mut().insert(FORWARDED, hop.mark());
        request.set_timeout(patience);
        let mut grpc = Grpc::new(self.channel(to)?);
        // Boxed: it is large, every command has room for it, and hardly any makes it.
        let sent = Box::pin(async move {
            grpc.ready().await.map_err(|error| Status::from_error(error.into()))?;
            grpc.unary(request, path, ProstCodec::<M, R>::default()).await
        });
        tokio::time::timeout(patience, sent).await.unwrap_or_else(|_| Err(Status::deadline_exceeded("the owner did not answer in time")))
    }

    /// Tells a replica to look at the leases now. Nothing depends on its arrival.
    pub async fn nudge(&self, to: &str) {
        const PATIENCE: Duration = Duration::from_millis(500);
        let method = "souk.internal.v1.OwnershipService/Nudge";
        let outgoing = Outgoing { to, hop: Hop::Owner, method, metadata: MetadataMap::new(), patience: PATIENCE };
        if let Err(status) = self.call::<_, souk_proto::internal::v1::NudgeResponse>(outgoing, NudgeRequest {}).await {
            tracing::debug!(to, %status, "a replica was not nudged");
        }
    }

    /// Whether a replica says anything at all in that time.
    pub async fn answers(&self, to: &str, patience: Duration) -> bool {
        let outgoing = Outgoing { to, hop: Hop::Owner, method: "grpc.health.v1.Health/Check", metadata: MetadataMap::new(), patience };
        match self.call::<(), ()>(outgoing, ()).await {
            Ok(_) => true,
            Err(status) => !unreached(&status) && status.code() != tonic::Code::DeadlineExceeded,
        }
    }

    fn channel(&self, address: &str) -> Result<Channel, Status> {
        let mut channels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channels.get(address) {
            return Ok(channel.clone());
        }
        let url = if address.contains("://") { address.to_owned() } else { format!("http://{address}") };
        let endpoint = Endpoint::try_from(url).map_err(|error| Status::internal(error.to_string()))?;
        let channel = endpoint
            .connect_timeout(Duration::from_secs(1))
            .tcp_nodelay(true)
            // An owner that hangs is suspected as soon as one that died.
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(2))
            .keep_alive_while_idle(true)
            .connect_lazy();
        channels.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

/// Whether a call never got an answer from the other replica: the connection was refused or broke.
pub fn unreached(status: &Status) -> bool {
    status.source().is_some()
}

/// Whether a call never left this process: there was no connection to send it on.
pub fn unsent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use souk_proto::internal::v1::ownership_service_server::OwnershipServiceServer;
    use tokio::{net::TcpListener, time::timeout};
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::transport::Server;

    use super::*;
    use crate::{api::Nudges, ownership::Directory};

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "one call of one test needs no limits")]
    async fn a_nudge_asks_the_other_replica_to_read_the_leases() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let directory = Directory::default();
        let server = Server::builder().add_service(OwnershipServiceServer::new(Nudges(directory.clone())));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Peers::default().nudge(&address).await;
        timeout(Duration::from_secs(10), directory.asked()).await.expect("asked to read the leases");
    }

    #[tokio::test]
    async fn what_was_never_sent_is_told_from_what_was() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let there = listener.local_addr().unwrap().to_string();
        // Takes the call, and breaks the connection.
        tokio::spawn(async move {
            let (mut connection, _) = listener.accept().await.unwrap();
            tokio::io::AsyncReadExt::read(&mut connection, &mut [0; 1024]).await.unwrap();
        });
        for (to, expected) in [("127.0.0.1:1", true), (there.as_str(), false)] {
            let method = "grpc.health.v1.Health/Check";
            let outgoing = Outgoing { to, hop: Hop::Region, method, metadata: MetadataMap::new(), patience: PATIENCE };
            let status = Peers::default().call::<(), ()>(outgoing, ()).await.unwrap_err();
            assert!(unreached(&status) && unsent(&status) == expected, "{to}: {status:?}");
        }
    }

    #[tokio::test]
    async fn a_replica_that_hangs_is_told_from_one_that_answers_anything() {
        const PATIENCE: Duration = Duration::from_millis(300);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        // It takes connections, and nobody looks at them.
        assert!(!Peers::default().answers(&address, PATIENCE).await);
        #[expect(clippy::disallowed_methods, reason = "one call of one test needs no limits")]
        let server = Server::builder().add_service(OwnershipServiceServer::new(Nudges(Directory::default())));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        // UNIMPLEMENTED is an answer.
        assert!(Peers::default().answers(&address, Duration::from_secs(10)).await);
        assert!(!Peers::default().answers("127.0.0.1:1", PATIENCE).await);
    }
}
