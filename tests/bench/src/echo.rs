//! Servers that answer any `GetProduct` with the same bytes: what a query costs apart from finding its answer.

mod codec;

use std::{
    convert::Infallible,
    path::PathBuf,
    process::{ExitCode, Stdio},
    task::{Context, Poll},
};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use souk_proto::catalog::v1::GetProductRequest;
use souk_runtime::{GrpcServer, Listeners, Process, ServiceKind, run_service, use_small_pages};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};
use tokio_stream::StreamExt;
use tonic::{
    Request, Response, Status,
    body::Body,
    codegen::{BoxFuture, Service, http},
    server::{Grpc, NamedService, UnaryService},
    transport::Server,
};

use codec::ByteCodec;

#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Bytes of each reply
    #[arg(long)]
    bytes: usize,
    /// Settings of an installation: with them all of Souk's layers stand before the echo, without them none
    #[arg(long)]
    config: Option<PathBuf>,
}

/// Runs an echo server until it is killed; its first line tells where it listens.
pub fn serve(args: Args) -> ExitCode {
    let echo = Echo(Bytes::from(vec![b'x'; args.bytes]));
    match args.config {
        Some(file) => run_service(ServiceKind::Query, Some(&file), |process, listeners| layered(echo, process, listeners)),
        None => match bare(echo) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("echo: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}

/// The query service's own server, with an echo in place of its cache.
async fn layered(echo: Echo, process: Process, listeners: Listeners) -> Result<()> {
    let public = listeners.public.context("no public listener")?;
    println!("{}", public.local_addr()?);
    let limit = process.settings.grpc.max_message_bytes;
    GrpcServer::new("public", &process).add(EchoServer { echo, limit }).serve(public).await
}

/// tonic alone, tuned.
#[expect(clippy::disallowed_methods, reason = "what the query service's limits cost is to be seen")]
#[tokio::main]
async fn bare(echo: Echo) -> Result<()> {
    use_small_pages();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    let connections = tokio_stream::wrappers::TcpListenerStream::new(listener)
        .map(|connection| connection.inspect(|connection| drop(connection.set_nodelay(true))));
    let mut server = Server::builder().initial_stream_window_size(1 << 20).initial_connection_window_size(1 << 24);
    server.add_service(EchoServer { echo, limit: 1 << 20 }).serve_with_incoming(connections).await?;
    Ok(())
}

#[derive(Clone)]
struct Echo(Bytes);

impl UnaryService<GetProductRequest> for Echo {
    type Response = Bytes;
    type Future = std::future::Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, _: Request<GetProductRequest>) -> Self::Future {
        std::future::ready(Ok(Response::new(self.0.clone())))
    }
}

/// A server of one method, whatever it is called by.
#[derive(Clone)]
pub struct EchoServer<S> {
    pub echo: S,
    pub limit: usize,
}

impl<S> NamedService for EchoServer<S> {
    const NAME: &'static str = "souk.catalog.v1.QueryService";
}

impl<S> Service<http::Request<Body>> for EchoServer<S>
where
    S: UnaryService<GetProductRequest, Response = Bytes> + Clone + Send + 'static,
    S::Future: Send,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Infallible>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Self { echo, limit } = self.clone();
        Box::pin(async move {
            let mut grpc = Grpc::new(ByteCodec::<GetProductRequest>::default()).apply_max_message_size_config(Some(limit), Some(limit));
            Ok(grpc.unary(echo, request).await)
        })
    }
}

/// A running echo server; gone when dropped.
pub struct EchoProcess {
    child: Child,
    pub url: String,
}

impl EchoProcess {
    /// Starts one that answers with so many bytes, with the layers of an installation's settings or with none.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(bytes: usize, settings: Option<PathBuf>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["echo", "--bytes", &bytes.to_string()]).kill_on_drop(true).stdout(Stdio::piped());
        if let Some(file) = settings {
            command.arg("--config").arg(file);
            // Next to the query service of the same settings.
            for listener in ["query", "query_internal", "query_ops"] {
                command.env(format!("SOUK_listen__{listener}"), "127.0.0.1:0");
            }
        }
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().context("no stdout")?;
        let mut lines = BufReader::new(stdout).lines();
        let address = loop {
            let line = lines.next_line().await?.context("the echo server did not start")?;
            if let Ok(address) = line.parse::<std::net::SocketAddr>() {
                break address;
            }
        };
        // Whatever else it says must not block it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { child, url: format!("http://{address}") })
    }

    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("the echo server has ended")
    }
}
