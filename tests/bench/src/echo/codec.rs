use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{BufferSettings, Codec, EncodeBuf, Encoder},
};
use tonic_prost::ProstCodec;

/// Decodes requests with prost and sends replies as they are.
pub(super) struct ByteCodec<Q>(PhantomData<fn() -> Q>);

impl<Q> Default for ByteCodec<Q> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Q: Message + Default + 'static> Codec for ByteCodec<Q> {
    type Encode = Bytes;
    type Decode = Q;
    type Encoder = ByteEncoder;
    type Decoder = <ProstCodec<Q, Q> as Codec>::Decoder;

    fn encoder(&mut self) -> ByteEncoder {
        ByteEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstCodec::<Q, Q>::raw_decoder(BufferSettings::default())
    }
}

pub(super) struct ByteEncoder;

impl Encoder for ByteEncoder {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, reply: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(reply);
        Ok(())
    }
}
