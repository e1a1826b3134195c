use anyhow::Result;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinHandle,
};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames, by their number in RFC 9113.
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const GOAWAY: u8 = 7;
    pub const CONTINUATION: u8 = 9;
}

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// One HTTP/2 frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Header fields as HPACK literals; values of fewer than 127 bytes.
pub fn fields<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block
}

/// The header fields of a gRPC call.
pub fn call(path: &str) -> Vec<u8> {
    let te = ("te", "trailers");
    fields([(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", path), ("content-type", "application/grpc"), te])
}

/// One gRPC message as DATA carries it.
pub fn message(bytes: &[u8]) -> Vec<u8> {
    let mut framed = vec![0];
    framed.extend((bytes.len() as u32).to_be_bytes());
    framed.extend(bytes);
    framed
}

/// What a server said until it closed the connection, or until somebody lost patience.
#[derive(Debug, Default, Clone, Copy)]
pub struct Said {
    /// Streams that ended with their trailers.
    pub ended: usize,
    pub resets: usize,
    pub goaway: bool,
    pub data_bytes: usize,
}

/// A connection that says what it likes and answers nothing, pings included.
pub struct RawHttp2 {
    pub write: OwnedWriteHalf,
    reading: JoinHandle<Said>,
}

impl RawHttp2 {
    /// Connects without a word.
    ///
    /// # Errors
    /// When nobody accepts.
    pub async fn silent(address: &str) -> Result<Self> {
        let (read, write) = TcpStream::connect(address).await?.into_split();
        Ok(Self { write, reading: tokio::spawn(listen(read)) })
    }

    /// Connects and shakes hands, granting each stream of the server `window` bytes.
    ///
    /// # Errors
    /// When nobody accepts.
    pub async fn open(address: &str, window: u32) -> Result<Self> {
        const INITIAL_WINDOW_SIZE: u16 = 4;
        let mut this = Self::silent(address).await?;
        let mut setting = INITIAL_WINDOW_SIZE.to_be_bytes().to_vec();
        setting.extend(window.to_be_bytes());
        this.write.write_all(&[PREFACE, &frame(kind::SETTINGS, 0, 0, &setting)].concat()).await?;
        Ok(this)
    }

    /// Begins a call and sends its only message.
    ///
    /// # Errors
    /// When the connection is closed.
    pub async fn call(&mut self, stream: u32, path: &str, request: &[u8]) -> Result<()> {
        let head = frame(kind::HEADERS, END_HEADERS, stream, &call(path));
        let body = frame(kind::DATA, END_STREAM, stream, &message(request));
        Ok(self.write.write_all(&[head, body].concat()).await?)
    }

    /// Whether the server has closed it.
    pub fn is_closed(&self) -> bool {
        self.reading.is_finished()
    }

    /// Waits until the server closes it; the writing half stays open meanwhile.
    ///
    /// # Errors
    /// When the reader panicked.
    pub async fn closed(self) -> Result<Said> {
        let Self { write, reading } = self;
        let said = reading.await?;
        drop(write);
        Ok(said)
    }
}

async fn listen(mut read: OwnedReadHalf) -> Said {
    let (mut said, mut payload) = (Said::default(), Vec::new());
    loop {
        let mut head = [0; 9];
        if read.read_exact(&mut head).await.is_err() {
            return said;
        }
        payload.resize(u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize, 0);
        if read.read_exact(&mut payload).await.is_err() {
            return said;
        }
        match head[3] {
            kind::DATA => said.data_bytes += payload.len(),
            kind::RST_STREAM => said.resets += 1,
            kind::GOAWAY => said.goaway = true,
            kind::HEADERS if head[4] & END_STREAM != 0 => said.ended += 1,
            _ => {}
        }
    }
}
