use std::{convert::Infallible, future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::Body as HttpBody;
use tokio::time::Instant;
use tonic::{Code, body::Body};
use tower::Service;
use tracing::{Instrument, Span, field};

use super::{
    Shared,
    explain::{code, explain, respond},
    methods::Method,
    stream::Stream,
};
use crate::{
    Failure,
    call::{Deadline, timeout},
    telemetry,
};

type Answer<T = Response<Body>> = Result<T, Failure>;

/// The way of every call. Layers are nested futures, outermost first: none of them boxes or allocates.
pub(super) async fn answer<B>(shared: Arc<Shared>, request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let method = shared.methods.of(request.uri().path());
    let span = rpc_span(method, request.headers());
    if method.streaming {
        traced(open_stream(&shared, method, request)).instrument(span).await
    } else {
        let call = catching_panics(method, unary(&shared, method, request));
        traced(measured(method, call)).instrument(span).await
    }
}

/// Deadline, then load-shed with the limit of calls in flight, then the service.
async fn unary<B>(shared: &Shared, method: &Method, mut request: Request<B>) -> Answer
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let settings = &shared.settings;
    let asked = timeout(request.headers())?.unwrap_or(settings.default_deadline);
    let deadline = Deadline::after(asked.min(settings.max_deadline));
    request.extensions_mut().insert(deadline);
    within(deadline, async {
        let _permit = match shared.calls.try_acquire() {
            Err(_) if !method.vital => return Err(shed("too many calls in flight", settings.shed_retry_after)),
            permit => permit.ok(),
        };
        Ok(call(shared, request).await)
    })
    .await
}

/// The same for a streaming call, whose deadline and permit last as long as the stream.
async fn open_stream<B>(shared: &Shared, method: &Arc<Method>, mut request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let started = Instant::now();
    let opened = catching_panics(method, async {
        let deadline = timeout(request.headers())?.map_or(Deadline::NONE, Deadline::after);
        request.extensions_mut().insert(deadline);
        let permit = match shared.streams.clone().try_acquire_owned() {
            Err(_) if !method.vital => return Err(shed("too many open streams", shared.settings.shed_retry_after)),
            permit => permit.ok(),
        };
        let response = within(deadline, async { Ok(call(shared, request).await) }).await?;
        Ok((response, deadline, permit))
    });
    let response = match opened.await {
        Ok((response, deadline, permit)) if code(response.headers()).is_none() => {
            return response.map(|body| Body::new(Stream::new(body, method.clone(), started, deadline, permit, &shared.closing)));
        }
        Ok((response, ..)) => explain(response),
        Err(failure) => respond(failure),
    };
    method.record(code(response.headers()).unwrap_or(Code::Ok), started.elapsed());
    response
}

async fn call<B>(shared: &Shared, request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let incoming = telemetry::incoming(request.headers());
    // The routes are always ready; a clone shares them.
    let called = shared.routes.clone().call(request);
    let result: Result<_, Infallible> = telemetry::with_incoming(incoming, called).await;
    result.unwrap_or_else(|never| match never {})
}

fn rpc_span(method: &Method, headers: &HeaderMap) -> Span {
    let span = tracing::info_span!(
        target: "rpc",
        "rpc",
        otel.name = %format_args!("{}/{}", method.service, method.name),
        otel.kind = "server",
        otel.status_code = field::Empty,
        rpc.system = "grpc",
        rpc.service = method.service,
        rpc.method = method.name,
        rpc.grpc.status_code = field::Empty,
    );
    telemetry::set_parent_from_headers(&span, headers);
    span
}

async fn traced(call: impl Future<Output = Response<Body>>) -> Response<Body> {
    let response = call.await;
    let span = Span::current();
    if !span.is_disabled() {
        let code = code(response.headers()).unwrap_or(Code::Ok);
        span.record("rpc.grpc.status_code", code as i64);
        if is_our_fault(code) {
            span.record("otel.status_code", "ERROR");
        }
    }
    response
}

async fn measured(method: &Method, call: impl Future<Output = Answer>) -> Response<Body> {
    let started = Instant::now();
    let response = call.await.map_or_else(respond, explain);
    method.record(code(response.headers()).unwrap_or(Code::Ok), started.elapsed());
    response
}

async fn catching_panics<T>(method: &Method, call: impl Future<Output = Answer<T>>) -> Answer<T> {
    // Nothing of the call is used after a panic but its name.
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!(service = method.service, method = method.name, "a call panicked");
        Err(Failure::internal("PANIC", "internal error"))
    })
}

async fn within(deadline: Deadline, call: impl Future<Output = Answer>) -> Answer {
    let Some(at) = deadline.instant() else { return call.await };
    let late = || Failure::deadline_exceeded("the deadline passed before there was an answer; it may have taken effect");
    tokio::time::timeout_at(at, call).await.unwrap_or_else(|_| Err(late()))
}

fn shed(what: &'static str, retry_after: Duration) -> Failure {
    metrics::counter!("souk_rpc_shed_total").increment(1);
    Failure::exhausted("OVERLOADED", what, retry_after)
}

/// Whether a code tells of trouble on our side rather than of the caller's request.
fn is_our_fault(code: Code) -> bool {
    matches!(code, Code::Unknown | Code::DeadlineExceeded | Code::Internal | Code::Unavailable | Code::DataLoss)
}
