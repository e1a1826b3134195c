//! The gRPC server of every service: limits, layers, health, reflection and drain in one place.
//!
//! It stands on hyper rather than on tonic's `Server`, whose connection age is one for all connections (no jitter, so
//! that all callers come back at once), which cannot bound a drain, and whose own deadline answers without a reason.

mod answer;
mod connections;
mod explain;
mod health;
mod methods;
mod routes;
mod stream;
mod unary;
mod untaken;

use std::{convert::Infallible, sync::Arc};

use ::metrics::gauge;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::{
    body::Body,
    codegen::{BoxFuture, Service},
    server::NamedService,
};

use crate::{Failure, Process, metrics, settings::GrpcSettings};
use methods::Methods;
pub use methods::code_name;
use routes::Routes;
pub use unary::{take_unary, unary_reply, unary_reply_of};
pub use untaken::ReplyPatience;

/// A server being put together: services are added, then it serves one listener.
///
/// Health v1 and reflection v1 and v1alpha are there by themselves and tell of the services that were added. Message
/// limits belong to each generated service: wrap it in [`limited!`](crate::limited).
pub struct GrpcServer {
    name: &'static str,
    process: Process,
    shutdown: CancellationToken,
    routes: Routes,
    room: Room,
}

/// Whether there is room for one more call, whichever it is.
type Room = Box<dyn Fn() -> Result<(), Failure> + Send + Sync>;

/// What all connections of one server share.
struct Shared {
    settings: GrpcSettings,
    routes: Routes,
    methods: Methods,
    room: Room,
    calls: Semaphore,
    /// For refused calls whose request is still coming in, as many as may be under way.
    refused: Semaphore,
    streams: Arc<Semaphore>,
    /// Cancelled when the server drains: streams end then.
    closing: CancellationToken,
}

/// Sets the message limits of a generated service from the settings: `limited!(QueryServiceServer::new(x), process)`.
#[macro_export]
macro_rules! limited {
    ($server:expr, $process:expr) => {{
        let limit = $process.settings.grpc.max_message_bytes;
        $server.max_decoding_message_size(limit).max_encoding_message_size(limit)
    }};
}

impl GrpcServer {
    /// `name` tells the server apart in logs and readiness: "public", "internal".
    pub fn new(name: &'static str, process: &Process) -> Self {
        let shutdown = process.shutdown.clone();
        Self { name, process: process.clone(), shutdown, routes: Routes::default(), room: Box::new(|| Ok(())) }
    }

    #[must_use]
    #[expect(clippy::should_implement_trait, reason = "a builder, no sum")]
    pub fn add<S>(mut self, service: S) -> Self
    where
        S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
        S: Service<http::Request<Body>, Future = BoxFuture<http::Response<Body>, Infallible>>,
        S: NamedService + Clone + Send + Sync + 'static,
    {
        self.routes.add(service);
        self
    }

    /// Drains on `shutdown` instead of the process's own signal: for a service that must close its doors in an order.
    #[must_use]
    pub fn shutdown_on(mut self, shutdown: CancellationToken) -> Self {
        self.shutdown = shutdown;
        self
    }

    /// Asks `room` before each unary call, those of health and reflection excepted: what it refuses is refused before the
    /// request is read, at a fraction of the cost.
    #[must_use]
    pub fn while_room(mut self, room: impl Fn() -> Result<(), Failure> + Send + Sync + 'static) -> Self {
        self.room = Box::new(room);
        self
    }

    /// Serves until shutdown, then stops accepting, ends streams with UNAVAILABLE, lets calls finish within the grace
    /// and cuts off what is left.
    ///
    /// # Errors
    /// When the listener breaks for good.
    pub async fn serve(mut self, listener: TcpListener) -> anyhow::Result<()> {
        metrics::install();
        metrics::start_at_zero(&[
            "souk_rpc_shed_total",
            "souk_rpc_untaken_total",
            "souk_rpc_connections_refused_total",
            "souk_rpc_connections_unasked_total",
        ]);
        let component = self.process.health.component(&format!("grpc {}", self.name));
        let health = health::server(self.process.health.clone(), &self.routes.names());
        self = self.add(health);
        self = self.with_reflection()?;
        let settings = self.process.settings.grpc.clone();
        let shared = Arc::new(Shared {
            methods: Methods::from_descriptors()?,
            calls: Semaphore::new(settings.max_concurrent_calls),
            refused: Semaphore::new(settings.max_concurrent_calls),
            streams: Arc::new(Semaphore::new(settings.max_open_streams)),
            closing: CancellationToken::new(),
            routes: self.routes,
            room: self.room,
            settings,
        });
        let _load = watch_load(format!("{}/{}", self.process.service.name(), self.name), shared.clone());
        let address = listener.local_addr()?;
        tracing::info!(server = self.name, %address, "listening");
        component.ready();
        let grace = self.process.settings.process.shutdown_grace;
        connections::serve(listener, shared, self.shutdown, grace).await;
        tracing::info!(server = self.name, %address, "closed");
        Ok(())
    }

    /// Reflection v1 and v1alpha over all contracts, listing the services of this server.
    fn with_reflection(self) -> anyhow::Result<Self> {
        let services = self.routes.names();
        let builder = || {
            let builder = tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(souk_proto::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
            services.iter().fold(builder, |builder, service| builder.with_service_name(*service))
        };
        let (v1, v1alpha) = (builder().build_v1()?, builder().build_v1alpha()?);
        Ok(self.add(v1).add(v1alpha))
    }
}

/// Shows how many calls are under way at a door.
fn watch_load(door: String, shared: Arc<Shared>) -> metrics::Look {
    metrics::at_scrape(move || {
        let (calls, streams) = (shared.settings.max_concurrent_calls, shared.settings.max_open_streams);
        let figures = [
            ("souk_rpc_in_flight", calls.saturating_sub(shared.calls.available_permits())),
            ("souk_rpc_in_flight_max", calls),
            ("souk_rpc_streams_open", streams.saturating_sub(shared.streams.available_permits())),
        ];
        for (name, figure) in figures {
            gauge!(name, "door" => door.clone()).set(figure as f64);
        }
    })
}
