use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use tonic::{
    body::Body,
    transport::{Channel, Endpoint, Error},
};
use tower::{Service, ServiceExt};

/// Connections to the replicas of another service, each made when first used and again when broken. Calls take turns, so
/// that a call repeated after a failed one goes to another replica, if there are several. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Peer {
    channels: Arc<[Channel]>,
    next: Arc<AtomicUsize>,
}

impl Peer {
    /// Prepares connections to urls separated by commas. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// When one of them is no url.
    pub fn connect(urls: &str) -> Result<Self, Error> {
        let channel = |url: &str| {
            let endpoint = Endpoint::from_shared(url.trim().to_owned())?
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true)
                // A peer that vanished without a word is noticed in seconds.
                .http2_keep_alive_interval(Duration::from_secs(1))
                .keep_alive_timeout(Duration::from_secs(2))
                .keep_alive_while_idle(true);
            Ok(endpoint.connect_lazy())
        };
        let channels = urls.split(',').map(channel).collect::<Result<_, Error>>()?;
        Ok(Self { channels, next: Arc::default() })
    }
}

impl Service<Request<Body>> for Peer {
    type Response = Response<Body>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Error>> + Send>>;

    /// Always: readiness is that of the connection whose turn it is.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.channels.len();
        let channel = self.channels[turn].clone();
        Box::pin(channel.oneshot(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn urls_are_separated_by_commas() {
        assert_eq!(Peer::connect("http://a:1, http://b:2").unwrap().channels.len(), 2);
        assert!(Peer::connect("http://a:1,").is_err() && Peer::connect("").is_err());
    }
}
