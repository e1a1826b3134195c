use std::{
    collections::BTreeMap,
    future::poll_fn,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Result;
use axum::extract::Request;
use tokio::{net::TcpListener, task::JoinHandle};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service, http::Response},
    service::Routes,
    transport::{Channel, Endpoint, Server},
};

/// A door before a gRPC server that counts calls, and answers some of them itself; gone when dropped.
#[derive(Debug)]
pub struct Gate {
    address: SocketAddr,
    calls: Calls,
    serving: JoinHandle<()>,
}

/// Calls by path.
#[derive(Debug, Clone, Default)]
struct Calls(Arc<Mutex<BTreeMap<String, usize>>>);

impl Gate {
    /// `refuse` is told the path of a call and how many of that path came before, and says how it is answered; `None`
    /// lets it through to `server`.
    ///
    /// # Errors
    /// When the server's address is malformed, or there is no port to listen on.
    #[expect(clippy::disallowed_methods, reason = "a few calls of one test need no limits")]
    pub async fn start(server: &str, refuse: impl Fn(&str, usize) -> Option<Code> + Clone + Send + Sync + 'static) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (channel, calls) = (Endpoint::from_shared(server.to_owned())?.connect_lazy(), Calls::default());
        let seen = calls.clone();
        let pass = move |request: Request| {
            let refused = refuse(request.uri().path(), seen.count(request.uri().path()));
            let channel = channel.clone();
            async move {
                match refused {
                    Some(code) => Status::new(code, "the gate is closed").into_http(),
                    None => forward(channel, request).await,
                }
            }
        };
        let routes = Routes::from(Routes::default().into_axum_router().fallback(pass));
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        let serving =
            tokio::spawn(async move { Server::builder().add_routes(routes).serve_with_incoming(incoming).await.expect("the gate serves") });
        Ok(Self { address, calls, serving })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Calls so far, by path.
    pub fn calls(&self) -> BTreeMap<String, usize> {
        self.calls.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Calls {
    /// Counts a call; how many of its path came before.
    fn count(&self, path: &str) -> usize {
        let mut calls = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = calls.entry(path.to_owned()).or_default();
        *count += 1;
        *count - 1
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn forward(mut channel: Channel, request: Request) -> Response<Body> {
    let answer = async {
        poll_fn(|context| channel.poll_ready(context)).await?;
        channel.call(request.map(Body::new)).await
    };
    answer.await.unwrap_or_else(|error| Status::from_error(error.into()).into_http())
}
