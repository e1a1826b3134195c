use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use hyper::{server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Shared, answer::answer};
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

fn limits(settings: &GrpcSettings) -> http2::Builder<TokioExecutor> {
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(settings.max_concurrent_streams)
        .max_local_error_reset_streams(settings.max_local_error_resets)
        .max_header_list_size(settings.max_header_list_bytes)
        .keep_alive_interval(settings.keepalive_interval)
        .keep_alive_timeout(settings.keepalive_timeout)
        .auto_date_header(false);
    builder
}

async fn connection(stream: TcpStream, limits: http2::Builder<TokioExecutor>, shared: Arc<Shared>) {
    // Replies are small and must not wait for the caller's delayed acknowledgement.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot set TCP_NODELAY");
    }
    let age = connection_age(&shared.settings);
    let closing = shared.closing.clone();
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(shared, request).await) }
    });
    let mut connection = pin!(limits.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = async { tokio::select! { () = sleep(age) => {}, () = closing.cancelled() => {} } } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
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
