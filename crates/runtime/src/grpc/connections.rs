use std::{
    convert::Infallible,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Shared,
    answer::answer,
    untaken::{Reply, StreamTasks},
};
use crate::settings::GrpcSettings;

/// Accepts until `shutdown`, then closes the listener, asks every connection to finish, and cuts off after `grace`.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>, shutdown: CancellationToken, grace: Duration) {
    let mut connections = JoinSet::new();
    accept_all(listener, &shared, &mut connections, &shutdown).await;
    shared.closing.cancel();
    let finished = timeout(grace, async { while connections.join_next().await.is_some() {} }).await;
    if finished.is_err() {
        tracing::warn!(connections = connections.len(), ?grace, "connections cut off after the grace");
        connections.shutdown().await;
    }
}

async fn accept_all(listener: TcpListener, shared: &Arc<Shared>, connections: &mut JoinSet<()>, shutdown: &CancellationToken) {
    let limits = limits(&shared.settings);
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if connections.len() >= shared.settings.max_connections => {
                // Closed at once: the caller sees it and goes elsewhere, rather than hang in the backlog.
                metrics::counter!("souk_rpc_connections_refused_total").increment(1);
            }
            Ok((stream, _)) => {
                connections.spawn(connection(stream, limits.clone(), shared.clone()));
            }
            Err(error) => {
                // Out of file descriptors, mostly: accepting again at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// What a peer may send unread per stream and per connection, and what may lie unsent per stream.
const STREAM_WINDOW: u32 = 128 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
const SEND_BUFFER: usize = 64 * 1024;
const FRAME: u32 = 16 * 1024;
/// Streams that the peer reset before they were looked at (rapid reset, CVE-2023-44487); h2's own default.
const PENDING_RESETS: usize = 20;

/// Every limit there is, rather than hyper's defaults of the day.
fn limits(settings: &GrpcSettings) -> http2::Builder<StreamTasks> {
    let mut builder = http2::Builder::new(StreamTasks);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_local_error_reset_streams(settings.max_local_error_resets)
        .max_header_list_size(settings.max_header_list_bytes)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_frame_size(FRAME)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout)
        .auto_date_header(false);
    builder
}

async fn connection(stream: TcpStream, limits: http2::Builder<StreamTasks>, shared: Arc<Shared>) {
    // Replies are small and must not wait for the caller's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let age = connection_age(&shared.settings);
    let closing = shared.closing.clone();
    let asked = Arc::new(AtomicBool::new(false));
    let idle = unasked(asked.clone(), shared.settings.first_request_timeout);
    let patience = shared.settings.reply_patience;
    let asking = asked.clone();
    let service = service_fn(move |request| {
        asking.store(true, Ordering::Relaxed);
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(Reply::of(answer(shared, request).await, patience)) }
    });
    let mut connection = pin!(limits.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = async { tokio::select! { () = idle => {}, () = sleep(age) => {}, () = closing.cancelled() => {} } } => {
            connection.as_mut().graceful_shutdown();
            match timeout(FAREWELL, connection.as_mut()).await {
                Ok(ended) => ended,
                Err(_) if asked.load(Ordering::Relaxed) => connection.await,
                Err(_) => {
                    metrics::counter!("souk_rpc_connections_unasked_total").increment(1);
                    Ok(())
                }
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Time to say goodbye to a connection that asked for nothing: one that hangs in its handshake is not waited for.
const FAREWELL: Duration = Duration::from_secs(1);

/// Resolves when nothing was asked for so long; never once something was.
async fn unasked(asked: Arc<AtomicBool>, patience: Duration) {
    sleep(patience).await;
    if asked.load(Ordering::Relaxed) {
        std::future::pending().await
    }
}

/// The age at which a connection is asked to close, apart by jitter so that callers do not come back all at once.
fn connection_age(settings: &GrpcSettings) -> Duration {
    let spread = rand::random_range(-1.0..=1.0) * settings.connection_age_jitter;
    settings.max_connection_age.mul_f64(1.0 + spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_age_differently_within_the_jitter() {
        let settings = GrpcSettings { max_connection_age: Duration::from_secs(100), connection_age_jitter: 0.1, ..GrpcSettings::default() };
        let ages: Vec<_> = (0..100).map(|_| connection_age(&settings)).collect();
        assert!(ages.iter().all(|age| (Duration::from_secs(90)..=Duration::from_secs(110)).contains(age)));
        assert!(ages.iter().any(|age| *age != ages[0]));
    }
}
