//! Replies that nobody takes are cut off.
//!
//! A peer that stops reading closes its flow-control window, and hyper then asks the body for nothing more: a timer in the
//! body would never be looked at. So the clock stands outside, around the task of each stream, and the body only notes when
//! it gave something that was not followed by another question. Dropping the task resets the stream, and HTTP/2 lets go of
//! what it had queued for it.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, Bytes};
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::rt::Executor;
use tokio::{
    task::futures::TaskLocalFuture,
    time::{Instant, Sleep, sleep_until},
};
use tonic::{Status, body::Body};

/// Data handed to HTTP/2 at once: what it has taken, it queues whatever the window, and keeps after the reply's task ended.
const PIECE: usize = 16 * 1024;

/// How long a reply may lie untaken, put into the extensions of a response whose service has its own mind about it.
#[derive(Debug, Clone, Copy)]
pub struct ReplyPatience(pub Duration);

/// Until when the peer has to take what it was given; `None` while the service makes more.
#[derive(Debug, Default)]
struct Due(Mutex<Option<Instant>>);

impl Due {
    fn set(&self, due: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = due;
    }

    fn get(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

tokio::task_local! {
    static DUE: Arc<Due>;
}

/// Runs the streams of a connection, each as a task that ends when its reply is not taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamTasks;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for StreamTasks {
    fn execute(&self, stream: F) {
        let due = Arc::new(Due::default());
        let stream = Box::pin(DUE.scope(due.clone(), stream));
        tokio::spawn(CutOff { stream, due, clock: None });
    }
}

struct CutOff<F> {
    stream: Pin<Box<TaskLocalFuture<Arc<Due>, F>>>,
    due: Arc<Due>,
    clock: Option<Pin<Box<Sleep>>>,
}

impl<F: Future<Output = ()>> Future for CutOff<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if this.stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        // The stream alone changes it, when it is polled.
        let Some(due) = this.due.get() else { return Poll::Pending };
        let clock = this.clock.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if clock.deadline() != due {
            clock.as_mut().reset(due);
        }
        ready!(clock.as_mut().poll(context));
        metrics::counter!("souk_rpc_untaken_total").increment(1);
        tracing::debug!("a reply was not taken in time: its stream is reset");
        Poll::Ready(())
    }
}

/// The body of a reply, which notes when it waits for its reader.
pub(super) struct Reply {
    body: Body,
    /// Of a large chunk what was not given yet.
    rest: Bytes,
    due: Option<Arc<Due>>,
    patience: Duration,
}

impl Reply {
    pub fn of(response: Response<Body>, patience: Duration) -> Response<Self> {
        let patience = response.extensions().get().map_or(patience, |own: &ReplyPatience| own.0);
        let due = DUE.try_with(Arc::clone).ok();
        response.map(|body| Self { body, rest: Bytes::new(), due, patience })
    }

    fn next(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)).transpose()?.map(Frame::into_data) {
                Some(Ok(chunk)) if chunk.len() > PIECE => self.rest = chunk,
                Some(Ok(chunk)) => return Poll::Ready(Some(Ok(Frame::data(chunk)))),
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            }
        }
        // A copy: a slice would keep the whole chunk alive until its last byte is sent.
        let piece = Bytes::copy_from_slice(&self.rest[..PIECE.min(self.rest.len())]);
        self.rest.advance(piece.len());
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl HttpBody for Reply {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = self.next(context);
        if let Some(due) = &self.due {
            let given = matches!(polled, Poll::Ready(Some(Ok(_))));
            due.set(given.then(|| Instant::now() + self.patience));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // Of a body with a rest it would be too small; nobody asks then.
        self.body.size_hint()
    }
}
