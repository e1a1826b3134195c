//! Calls of one small message each way, as nearly all are, without the machinery of a codec: it keeps two buffers of 8 KiB for each.

use std::{
    pin::Pin,
    task::{Context, Poll},
    vec,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::{StreamExt, stream};
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use http_body::{Body as HttpBody, Frame};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use prost::Message;
use tonic::{Status, body::Body};

/// Whether a message is compressed, and its length.
const PREFIX: usize = 5;
const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// Takes the message of a request that is one message in one frame, not compressed, of `limit` bytes at most. `None` for any
/// other request, which stays as it came: it is tonic's to read, or to refuse.
///
/// The request stays in its place, since each move of one is a copy of some hundred bytes.
pub async fn take_unary<Q: Message + Default>(request: &mut http::Request<Body>, limit: usize) -> Option<Q> {
    let body = request.body_mut();
    let first = body.frame().await?;
    let mut second = None;
    if let Some(message) = only_message(&first, limit) {
        // Many callers end the stream in a frame of its own.
        loop {
            second = if body.is_end_stream() { None } else { body.frame().await };
            match &second {
                None => return Some(message),
                Some(frame) if is_empty(frame) => {}
                Some(_) => break,
            }
        }
    }
    let rest = BodyStream::new(std::mem::take(body));
    *body = Body::new(StreamBody::new(stream::iter([first]).chain(stream::iter(second)).chain(rest)));
    None
}

fn is_empty(frame: &Result<Frame<Bytes>, Status>) -> bool {
    frame.as_ref().is_ok_and(|frame| frame.data_ref().is_some_and(Bytes::is_empty))
}

fn only_message<Q: Message + Default>(frame: &Result<Frame<Bytes>, Status>, limit: usize) -> Option<Q> {
    let mut data = frame.as_ref().ok()?.data_ref()?.clone();
    let plain = data.len() >= PREFIX && data.get_u8() == 0;
    let length = if plain { data.get_u32() as usize } else { return None };
    (length == data.len() && length <= limit).then(|| Q::decode(data).ok())?
}

/// The reply to it: an encoded message, in one frame.
pub fn unary_reply(message: impl Buf, limit: usize) -> Response<Body> {
    let length = message.remaining();
    framed_reply(length, limit, |prefix| {
        let mut frame = BytesMut::with_capacity(PREFIX + length);
        frame.put(&prefix[..]);
        frame.put(message);
        Rest::Message(frame.freeze())
    })
}

/// The reply to it: an encoded message in pieces. The large ones are not copied together, so that a reply that waits for its reader
/// keeps little memory of its own.
pub fn unary_reply_of(pieces: &[Bytes], limit: usize) -> Response<Body> {
    framed_reply(pieces.iter().map(Bytes::len).sum(), limit, |prefix| Rest::Frames(frames(&prefix, pieces).into_iter()))
}

fn framed_reply(length: usize, limit: usize, rest: impl FnOnce([u8; PREFIX]) -> Rest) -> Response<Body> {
    let Some(length_on_wire) = u32::try_from(length).ok().filter(|_| length <= limit) else {
        return Status::out_of_range(format!("the reply has {length} bytes, the limit is {limit}")).into_http();
    };
    let mut prefix = [0; PREFIX];
    prefix[1..].copy_from_slice(&length_on_wire.to_be_bytes());
    let mut response = Response::new(Body::new(Whole(rest(prefix))));
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    response
}

/// Pieces as they go to the wire: the small ones are gathered, for a frame costs about as much as copying so many bytes.
fn frames(prefix: &[u8], pieces: &[Bytes]) -> Vec<Bytes> {
    const WORTH_A_FRAME: usize = 4 * 1024;
    let small = |piece: &Bytes| piece.len() < WORTH_A_FRAME;
    let bytes = pieces.iter().filter(|piece| small(piece)).map(Bytes::len).sum::<usize>();
    let (mut frames, mut gathered) = (Vec::new(), BytesMut::with_capacity(prefix.len() + bytes));
    gathered.put_slice(prefix);
    for piece in pieces {
        if small(piece) {
            gathered.put_slice(piece);
        } else {
            frames.extend((!gathered.is_empty()).then(|| gathered.split().freeze()));
            frames.push(piece.clone());
        }
    }
    frames.extend((!gathered.is_empty()).then(|| gathered.freeze()));
    frames
}

/// A message and the status OK.
struct Whole(Rest);

enum Rest {
    Message(Bytes),
    Frames(vec::IntoIter<Bytes>),
    Trailers,
    Nothing,
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Rest::Frames(frames) = &mut self.0 {
            match frames.next() {
                Some(frame) => return Poll::Ready(Some(Ok(Frame::data(frame)))),
                None => self.0 = Rest::Trailers,
            }
        }
        Poll::Ready(match std::mem::replace(&mut self.0, Rest::Nothing) {
            Rest::Message(message) => {
                self.0 = Rest::Trailers;
                Some(Ok(Frame::data(message)))
            }
            Rest::Frames(_) | Rest::Trailers => {
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            Rest::Nothing => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Rest::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use souk_proto::catalog::v1::GetProductRequest;

    use super::*;

    const LIMIT: usize = 100;

    fn message() -> GetProductRequest {
        GetProductRequest { product_id: "p-1".into(), ..Default::default() }
    }

    fn framed(flag: u8, message: &[u8]) -> Bytes {
        let mut frame = BytesMut::new();
        frame.put_u8(flag);
        frame.put_u32(message.len() as u32);
        frame.put(message);
        frame.freeze()
    }

    fn request(frames: Vec<Result<Frame<Bytes>, Status>>) -> http::Request<Body> {
        let mut request = http::Request::new(Body::new(StreamBody::new(stream::iter(frames))));
        request.headers_mut().insert("caller", HeaderValue::from_static("test"));
        request.extensions_mut().insert(7_u8);
        request
    }

    /// The message, if it is taken, and the request afterwards.
    async fn taken(frames: Vec<Result<Frame<Bytes>, Status>>) -> (Option<GetProductRequest>, http::Request<Body>) {
        let mut request = request(frames);
        let message = take_unary(&mut request, LIMIT).await;
        assert_eq!(request.headers().get("caller").expect("headers"), "test");
        assert_eq!(request.extensions().get::<u8>(), Some(&7));
        (message, request)
    }

    fn data(frames: Vec<Bytes>) -> Vec<Result<Frame<Bytes>, Status>> {
        frames.into_iter().map(|data| Ok(Frame::data(data))).collect()
    }

    #[tokio::test]
    async fn one_message_is_taken_with_all_that_came_with_it() {
        let whole = framed(0, &message().encode_to_vec());
        for frames in [vec![whole.clone()], vec![whole, Bytes::new()]] {
            assert_eq!(taken(data(frames)).await.0, Some(message()));
        }
        assert_eq!(taken(data(vec![framed(0, b"")])).await.0, Some(GetProductRequest::default()));
        let whole = Full::new(framed(0, &message().encode_to_vec()));
        let mut ended = http::Request::new(Body::new(whole));
        assert_eq!(take_unary(&mut ended, LIMIT).await, Some(message()), "a body that tells of its end with its last frame");
    }

    #[tokio::test]
    async fn anything_else_is_handed_back_as_it_came() {
        let (encoded, large) = (message().encode_to_vec(), vec![b' '; LIMIT + 1]);
        let whole = framed(0, &encoded);
        let odd = [
            vec![],
            vec![Bytes::new()],
            vec![whole.slice(..4)],
            vec![whole.slice(..7), whole.slice(7..)],
            vec![whole.clone(), whole.clone()],
            vec![[&whole[..], &whole[..]].concat().into()],
            vec![framed(1, &encoded)],
            vec![framed(0, b"\xff\xff")],
            vec![framed(0, &large)],
        ];
        for frames in odd {
            let sent = frames.concat();
            let (message, back) = taken(data(frames.clone())).await;
            assert_eq!(message, None, "{frames:?}");
            assert_eq!(back.into_body().collect().await.expect("whole").to_bytes(), sent, "{frames:?}");
        }
    }

    #[tokio::test]
    async fn a_body_that_breaks_and_trailers_of_a_request_are_handed_back_too() {
        let whole = || Ok(Frame::data(framed(0, &message().encode_to_vec())));
        let (message, back) = taken(vec![whole(), Err(Status::cancelled("gone"))]).await;
        assert!(message.is_none() && back.into_body().collect().await.is_err());
        let trailers = Ok(Frame::trailers([(CONTENT_TYPE, GRPC)].into_iter().collect()));
        let (message, back) = taken(vec![whole(), trailers]).await;
        assert!(message.is_none() && back.into_body().collect().await.expect("whole").trailers().is_some());
    }

    #[tokio::test]
    async fn a_reply_is_one_frame_and_the_status() {
        let encoded = message().encode_to_vec();
        let response = unary_reply(Bytes::from_static(&[]).chain(&encoded[..]), LIMIT);
        assert_eq!(response.headers()[CONTENT_TYPE], GRPC);
        let mut body = response.into_body();
        let data = body.frame().await.expect("data").expect("whole").into_data().expect("data");
        assert_eq!(data, framed(0, &encoded));
        assert!(!body.is_end_stream());
        let trailers = body.frame().await.expect("trailers").expect("whole").into_trailers().expect("trailers");
        assert_eq!((trailers.len(), &trailers[Status::GRPC_STATUS]), (1, &HeaderValue::from_static("0")));
        assert!(body.is_end_stream() && body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_reply_in_pieces_copies_the_small_ones_alone() {
        let (small, large) = (Bytes::from(vec![1; 100]), Bytes::from(vec![2; 40_000]));
        for pieces in [vec![], vec![small.clone(); 3], vec![large.clone(); 2], vec![small.clone(), large.clone(), small.clone(), small]] {
            let encoded = pieces.concat();
            let mut body = unary_reply_of(&pieces, encoded.len()).into_body();
            let (mut sent, mut uncopied) = (Vec::new(), 0);
            while let Ok(data) = body.frame().await.expect("data or trailers").expect("whole").into_data() {
                uncopied += usize::from(data.as_ptr() == large.as_ptr());
                sent.extend(data);
            }
            assert_eq!(sent, framed(0, &encoded));
            assert_eq!(uncopied, pieces.iter().filter(|piece| **piece == large).count());
            assert!(body.is_end_stream() && body.frame().await.is_none());
        }
    }

    #[test]
    fn a_reply_beyond_the_limit_is_refused() {
        let beyond = vec![0; LIMIT + 1];
        for response in [unary_reply(&beyond[..], LIMIT), unary_reply_of(&[beyond.into()], LIMIT)] {
            assert_eq!(response.headers()[Status::GRPC_STATUS], "11");
        }
    }
}
