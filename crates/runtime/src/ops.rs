//! HTTP for operators: `/livez`, `/readyz`, `/metrics`. One per process.

use axum::{Router, extract::State, http::StatusCode, http::header, response::IntoResponse, routing::get};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{Health, metrics};

/// Serves until `shutdown`. It ends after everything else, so that the drain can be watched.
pub async fn serve(listener: TcpListener, health: Health, shutdown: CancellationToken) -> std::io::Result<()> {
    metrics::install();
    let routes = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(health.clone());
    let _process = metrics::watch_process(health.clone());
    let upkeep = tokio::spawn(metrics::upkeep());
    let served = axum::serve(listener, routes).with_graceful_shutdown(shutdown.cancelled_owned()).await;
    upkeep.abort();
    served
}

async fn readyz(State(health): State<Health>) -> impl IntoResponse {
    let reasons = health.reasons();
    let (status, lines) = match (reasons.is_empty(), health.impairments()) {
        (true, impaired) if impaired.is_empty() => (StatusCode::OK, vec!["ready".to_owned()]),
        (true, impaired) => (StatusCode::OK, ["ready, and impaired".to_owned()].into_iter().chain(impaired).collect()),
        (false, impaired) => {
            (StatusCode::SERVICE_UNAVAILABLE, ["not ready".to_owned()].into_iter().chain(reasons).chain(impaired).collect())
        }
    };
    (status, lines.join("\n") + "\n")
}

async fn scrape() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::render())
}
