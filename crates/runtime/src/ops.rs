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
    if reasons.is_empty() {
        return (StatusCode::OK, "ready\n".to_owned());
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready\n{}\n", reasons.join("\n")))
}

async fn scrape() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics::render())
}
