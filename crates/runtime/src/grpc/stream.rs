use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures::future::BoxFuture;
use http_body::{Body as HttpBody, Frame};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body};

use super::{explain::code, methods::Method};
use crate::{Failure, call::Deadline};

/// The body of a streaming call: ends it when its deadline passes, when the server drains or when the service panics,
/// and counts it when it is over.
pub(super) struct Stream {
    body: Body,
    method: Arc<Method>,
    started: Instant,
    /// Resolves to why the stream must end now.
    cut: BoxFuture<'static, Failure>,
    _permit: Option<OwnedSemaphorePermit>,
    over: bool,
}

/// Soon enough for a watch, and spread over replicas by the caller's own jitter.
const RESUME_AFTER: Duration = Duration::from_millis(200);

impl Stream {
    pub fn new(
        body: Body,
        method: Arc<Method>,
        started: Instant,
        deadline: Deadline,
        permit: Option<OwnedSemaphorePermit>,
        closing: &CancellationToken,
    ) -> Self {
        let closing = closing.clone();
        let cut = Box::pin(async move {
            let late = async {
                match deadline.instant() {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = late => Failure::deadline_exceeded("the stream's deadline passed"),
                () = closing.cancelled_owned() => Failure::unavailable("DRAINING", "this server is shutting down; resume elsewhere", RESUME_AFTER),
            }
        });
        Self { body, method, started, cut, _permit: permit, over: false }
    }

    fn end(&mut self, failure: Failure) -> Option<Result<Frame<Bytes>, Status>> {
        self.finish(failure.code);
        let mut trailers = http::HeaderMap::new();
        Some(match Status::from(failure).add_header(&mut trailers) {
            Ok(()) => Ok(Frame::trailers(trailers)),
            Err(status) => Err(status),
        })
    }

    fn finish(&mut self, code: Code) {
        if !std::mem::replace(&mut self.over, true) {
            self.method.record(code, self.started.elapsed());
        }
    }
}

impl HttpBody for Stream {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(failure) = this.cut.as_mut().poll(context) {
            return Poll::Ready(this.end(failure));
        }
        // The body is not touched again after a panic.
        let Ok(polled) = catch_unwind(AssertUnwindSafe(|| Pin::new(&mut this.body).poll_frame(context))) else {
            tracing::error!(service = this.method.service, method = this.method.name, "a stream panicked");
            return Poll::Ready(this.end(Failure::internal("PANIC", "internal error")));
        };
        let frame = ready!(polled);
        match &frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.finish(code(trailers).unwrap_or(Code::Ok));
                }
            }
            Some(Err(status)) => this.finish(status.code()),
            None => this.finish(Code::Ok),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }
}

impl Drop for Stream {
    /// The caller left before the end.
    fn drop(&mut self) {
        self.finish(Code::Cancelled);
    }
}
