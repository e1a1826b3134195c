use std::{future::Future, panic::AssertUnwindSafe, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::FutureExt;
use http::{HeaderMap, Request, Response};
use http_body::Body as HttpBody;
use http_body_util::BodyExt;
use tokio::time::Instant;
use tonic::{Code, body::Body};
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

/// The way of every call. Layers are nested futures, outermost first. Each is pinned before it is handed on: a future
/// taken by value is kept twice by the one around it, and six layers make 26 kB of a call.
pub(super) async fn answer<B>(shared: Arc<Shared>, request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let method = shared.methods.of(request.uri().path());
    let span = rpc_span(method, request.headers());
    if method.streaming {
        let opening = pin!(open_stream(&shared, method, request));
        let traced = pin!(traced(opening));
        traced.instrument(span).await
    } else {
        let call = pin!(unary(&shared, method, request));
        let caught = pin!(catching_panics(method, call));
        let measured = pin!(measured(method, caught));
        let traced = pin!(traced(measured));
        traced.instrument(span).await
    }
}

/// Deadline, then load-shed with the limit of calls in flight and for want of room, then the service.
async fn unary<B>(shared: &Shared, method: &Method, mut request: Request<B>) -> Answer
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let settings = &shared.settings;
    let asked = timeout(request.headers())?.unwrap_or(settings.default_deadline);
    let deadline = Deadline::after(asked.min(settings.max_deadline));
    request.extensions_mut().insert(deadline);
    let permit = shared.calls.try_acquire();
    let room = match &permit {
        _ if method.vital => Ok(()),
        Err(_) => Err(shed("too many calls in flight", settings.shed_retry_after)),
        Ok(_) => (shared.room)(),
    };
    if let Err(full) = room {
        let unread = pin!(pass_over(shared, request.into_body(), deadline));
        unread.await;
        return Err(full);
    }
    let called = pin!(call(shared, request));
    within(deadline, called).await
}

/// The same for a streaming call, whose deadline and permit last as long as the stream.
async fn open_stream<B>(shared: &Shared, method: &Arc<Method>, mut request: Request<B>) -> Response<Body>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let started = Instant::now();
    let opening = pin!(async {
        let deadline = timeout(request.headers())?.map_or(Deadline::NONE, Deadline::after);
        request.extensions_mut().insert(deadline);
        let permit = match shared.streams.clone().try_acquire_owned() {
            Err(_) if !method.vital => {
                pass_over(shared, request.into_body(), deadline).await;
                return Err(shed("too many open streams", shared.settings.shed_retry_after));
            }
            permit => permit.ok(),
        };
        let called = pin!(call(shared, request));
        // A request that trickles in must not hold a stream's permit for ever.
        let latest = Instant::now() + shared.settings.max_deadline;
        let opened = Deadline::at(deadline.instant().map_or(latest, |at| at.min(latest)));
        let response = within(opened, called).await?;
        Ok((response, deadline, permit))
    });
    let response = match catching_panics(method, opening).await {
        Ok((response, deadline, permit)) if code(response.headers()).is_none() => {
            return response.map(|body| Body::new(Stream::new(body, method.clone(), started, deadline, permit, &shared.closing)));
        }
        Ok((response, ..)) => explain(response),
        Err(failure) => respond(failure),
    };
    method.record(code(response.headers()).unwrap_or(Code::Ok), started.elapsed());
    response
}

fn call<B>(shared: &Shared, request: Request<B>) -> impl Future<Output = Response<Body>> + use<B>
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let incoming = telemetry::incoming(request.headers());
    let called = shared.routes.call(request.map(Body::new)).map(|result| result.unwrap_or_else(|never| match never {}));
    telemetry::with_incoming(incoming, called)
}

/// Lets the request of a refused call come in unread. HTTP/2 resets a stream that is answered before its request has ended, and what
/// still comes in for streams that were reset ends the connection when it is too much.
///
/// Requests come within milliseconds. One that takes a second, is too large, or comes while as many are coming in as may be under
/// way, is answered without waiting for its end.
async fn pass_over<B: HttpBody<Data = Bytes>>(shared: &Shared, body: B, deadline: Deadline) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let Ok(_permit) = shared.refused.try_acquire() else { return };
    let (mut body, mut most) = (pin!(body), shared.settings.max_message_bytes);
    let ended = async {
        while let Some(Ok(frame)) = body.frame().await {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            if bytes > most {
                return;
            }
            most -= bytes;
        }
    };
    // Late or not, it is refused.
    let _ = tokio::time::timeout(deadline.remaining().min(PATIENCE), ended).await;
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

async fn within(deadline: Deadline, call: impl Future<Output = Response<Body>>) -> Answer {
    let Some(at) = deadline.instant() else { return Ok(call.await) };
    let late = |_| Failure::deadline_exceeded("the deadline passed before there was an answer; it may have taken effect");
    tokio::time::timeout_at(at, call).await.map_err(late)
}

fn shed(what: &'static str, retry_after: Duration) -> Failure {
    metrics::counter!("souk_rpc_shed_total").increment(1);
    Failure::exhausted("OVERLOADED", what, retry_after)
}

/// Whether a code tells of trouble on our side rather than of the caller's request.
fn is_our_fault(code: Code) -> bool {
    matches!(code, Code::Unknown | Code::DeadlineExceeded | Code::Internal | Code::Unavailable | Code::DataLoss)
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        grpc::{methods::Methods, routes::Routes},
        settings::GrpcSettings,
    };

    #[test]
    fn a_call_takes_little_memory_for_its_layers() {
        let shared = Shared {
            settings: GrpcSettings::default(),
            routes: Routes::default(),
            methods: Methods::from_descriptors().unwrap(),
            room: Box::new(|| Ok(())),
            calls: Semaphore::new(1),
            refused: Semaphore::new(1),
            streams: Arc::new(Semaphore::new(1)),
            closing: CancellationToken::new(),
        };
        let bytes = size_of_val(&answer(Arc::new(shared), Request::new(Body::empty())));
        assert!(bytes < 3_000, "{bytes}");
    }
}
