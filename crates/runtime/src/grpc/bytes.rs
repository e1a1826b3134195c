use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::ProstCodec;

/// Decodes requests with prost and sends replies as they are: encoded messages, in one piece or in several.
#[derive(Debug)]
pub struct ByteCodec<Q, R = Bytes>(PhantomData<fn() -> (Q, R)>);

impl<Q, R> Default for ByteCodec<Q, R> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Q: Message + Default + 'static, R: Buf + Send + 'static> Codec for ByteCodec<Q, R> {
    type Encode = R;
    type Decode = Q;
    type Encoder = ByteEncoder<R>;
    type Decoder = <ProstCodec<Q, Q> as Codec>::Decoder;

    fn encoder(&mut self) -> ByteEncoder<R> {
        ByteEncoder(PhantomData)
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<Q, Q>::raw_decoder(BufferSettings::default())
    }
}

/// The sending half of [`ByteCodec`].
#[derive(Debug)]
pub struct ByteEncoder<R>(PhantomData<fn() -> R>);

impl<R: Buf> Encoder for ByteEncoder<R> {
    type Item = R;
    type Error = Status;

    fn encode(&mut self, reply: R, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(reply);
        Ok(())
    }
}
