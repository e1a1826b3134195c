use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use tonic::Code;

use crate::Rpc;

/// A call to be made.
#[derive(Clone, Debug)]
pub struct Request {
    pub rpc: Arc<Rpc>,
    /// The message with its gRPC prefix, as [`frame`] makes it.
    pub message: Bytes,
    /// Which of the source's kinds it is counted as.
    pub kind: usize,
    /// Handed back with the reply.
    pub tag: u64,
    /// Whether the source wants to see the reply.
    pub keep_reply: bool,
}

impl Request {
    /// A call of the first kind whose reply nobody looks at.
    pub fn new(rpc: &Arc<Rpc>, message: Bytes) -> Self {
        Self { rpc: rpc.clone(), message, kind: 0, tag: 0, keep_reply: false }
    }

    pub fn kind(self, kind: usize) -> Self {
        Self { kind, ..self }
    }

    /// Shows the reply to [`Source::replied`], with this tag.
    pub fn keep_reply(self, tag: u64) -> Self {
        Self { tag, keep_reply: true, ..self }
    }
}

/// The end of a call, as the source sees it.
#[derive(Debug)]
pub struct Reply<'a> {
    pub kind: usize,
    pub tag: u64,
    pub code: Code,
    /// All messages as received, each with its prefix of five bytes.
    pub frames: &'a [u8],
}

impl<'a> Reply<'a> {
    /// The first message, if it came whole and uncompressed.
    pub fn message(&self) -> Option<&'a [u8]> {
        let (prefix, rest) = self.frames.split_first_chunk::<5>()?;
        let length = u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
        (prefix[0] == 0).then(|| rest.get(..length)).flatten()
    }
}

/// What is sent, call by call.
///
/// Both methods run between two calls on the loader's only thread: what they do there lengthens the measured times.
pub trait Source: Send + Sync + 'static {
    /// The kinds of calls, told apart in the report by their index.
    fn kinds(&self) -> Vec<String> {
        vec!["calls".to_owned()]
    }

    /// The call of this number, asked for once and right before it is sent. Numbers count from 0 and may come out of order.
    fn next(&self, number: u64) -> Request;

    /// The end of a call that was to keep its reply.
    fn replied(&self, _reply: Reply<'_>) {}
}

impl<F: Fn(u64) -> Request + Send + Sync + 'static> Source for F {
    fn next(&self, number: u64) -> Request {
        self(number)
    }
}

/// An encoded message with the prefix gRPC puts before it: not compressed, and its length.
///
/// # Panics
/// From 4 GiB.
pub fn frame(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).expect("a message is shorter than 4 GiB");
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.put_u8(0);
    frame.put_u32(length);
    frame.put_slice(message);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_back_unless_cut_or_compressed() {
        let frame = frame(b"souk");
        let message = |frames: &[u8]| Reply { kind: 0, tag: 0, code: Code::Ok, frames }.message().map(<[u8]>::to_vec);
        assert_eq!(frame[..5], [0, 0, 0, 0, 4]);
        assert_eq!(message(&frame), Some(b"souk".to_vec()));
        assert_eq!(message(&[&frame[..], b"more"].concat()), Some(b"souk".to_vec()));
        assert_eq!(message(&frame[..8]), None);
        assert_eq!(message(&frame[..4]), None);
        assert_eq!(message(b"\x01\0\0\0\x04souk"), None);
    }
}
