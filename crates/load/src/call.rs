use std::{
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::{HeaderMap, StatusCode};
use tokio::time::Sleep;
use tonic::Code;

use crate::{
    connection::{Down, Link, untouched},
    source::Request,
};

/// How a call ended.
#[derive(Debug)]
pub struct Answer {
    pub code: Code,
    /// The server's words for a failure, percent-encoded as it sent them, or ours.
    pub message: Bytes,
    /// Bytes of messages received, with their prefixes.
    pub received: u64,
    /// What was received, if it was to be kept.
    pub frames: Bytes,
    /// Begun again on another connection, because the first one never looked at it.
    pub resent: bool,
}

impl Answer {
    fn new(code: Code, message: Bytes) -> Self {
        Self { code, message, received: 0, frames: Bytes::new(), resent: false }
    }

    fn unavailable(reason: &str) -> Self {
        Self::new(Code::Unavailable, Bytes::copy_from_slice(reason.as_bytes()))
    }

    /// What a status in headers or trailers says.
    fn told(headers: &HeaderMap) -> Option<Self> {
        let code = Code::from_bytes(headers.get("grpc-status")?.as_bytes());
        let message = headers.get("grpc-message").filter(|_| code != Code::Ok);
        Some(Self::new(code, message.map(|message| Bytes::copy_from_slice(message.as_bytes())).unwrap_or_default()))
    }
}

/// A worker's side of its calls, one at a time.
pub struct Caller {
    /// By service.
    links: Vec<Link>,
    /// One timer for all calls: to move it on costs less than to make it anew.
    deadline: Pin<Box<Sleep>>,
}

impl Caller {
    pub fn new(links: Vec<Link>) -> Self {
        Self { links, deadline: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }

    /// Makes a call and waits for its end, at most until its deadline.
    pub async fn call(&mut self, request: &Request, now: Instant) -> Answer {
        self.deadline.as_mut().reset((now + request.rpc.time()).into());
        let link = &mut self.links[request.rpc.service()];
        tokio::select! {
            biased;
            answer = exchange(link, request) => answer,
            () = &mut self.deadline => Answer::new(Code::DeadlineExceeded, Bytes::from_static(b"no answer by the deadline")),
        }
    }
}

async fn exchange(link: &mut Link, request: &Request) -> Answer {
    let mut resent = false;
    loop {
        match attempt(link, request).await {
            Ok(answer) => return Answer { resent, ..answer },
            Err(Broken::Call(error)) if !resent && untouched(&error) => resent = true,
            Err(broken) => return Answer { resent, ..broken.answer() },
        }
    }
}

enum Broken {
    Connection(Arc<str>),
    Call(h2::Error),
}

impl From<h2::Error> for Broken {
    fn from(error: h2::Error) -> Self {
        Self::Call(error)
    }
}

impl From<Down> for Broken {
    fn from(Down(reason): Down) -> Self {
        Self::Connection(reason)
    }
}

impl Broken {
    fn answer(&self) -> Answer {
        match self {
            Self::Connection(reason) => Answer::unavailable(reason),
            Self::Call(error) => Answer::unavailable(&error.to_string()),
        }
    }
}

async fn attempt(link: &mut Link, request: &Request) -> Result<Answer, Broken> {
    let (response, mut body) = link.begin(&request.rpc).await?;
    body.send_data(request.message.clone(), true)?;
    let (head, body) = response.await?.into_parts();
    if head.status != StatusCode::OK {
        return Ok(Answer::new(code_of(head.status), Bytes::from(format!("HTTP status {}", head.status))));
    }
    match Answer::told(&head.headers) {
        Some(answer) => Ok(answer),
        None => receive(body, request.keep_reply).await,
    }
}

async fn receive(mut body: RecvStream, keep: bool) -> Result<Answer, Broken> {
    let (mut received, mut frames, mut more) = (0, Bytes::new(), BytesMut::new());
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        received += chunk.len() as u64;
        match () {
            () if !keep => {}
            () if frames.is_empty() => frames = chunk,
            () => more.extend_from_slice(&chunk),
        }
    }
    if !more.is_empty() {
        frames = [&frames[..], &more[..]].concat().into();
    }
    let told = body.trailers().await?.as_ref().and_then(Answer::told);
    let answer = told.unwrap_or_else(|| Answer::new(Code::Unknown, Bytes::from_static(b"the reply ended without a status")));
    Ok(Answer { received, frames, ..answer })
}

/// What a status of HTTP means where one of gRPC is missing (grpc/doc/http-grpc-status-mapping.md).
fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502 | 503 | 504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}
