//! A real tonic server whose moods the tests choose, by the method that is called.

use std::{
    convert::Infallible,
    net::Shutdown,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Result;
use bytes::{Buf, BufMut, Bytes};
use http::Request;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{
    Code, Response, Status,
    body::Body,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    server::{Grpc, NamedService},
};
use tower::{Service, service_fn};

/// Passes messages on as they are.
#[derive(Clone, Copy, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

#[derive(Clone)]
struct Moods {
    open: watch::Receiver<bool>,
}

impl NamedService for Moods {
    const NAME: &'static str = "souk.load.Echo";
}

impl Service<Request<Body>> for Moods {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut open, mut grpc) = (self.open.clone(), Grpc::new(Raw));
        Box::pin(async move {
            Ok(match request.uri().path() {
                "/souk.load.Echo/Say" => {
                    let say = move |request: tonic::Request<Bytes>| async move {
                        let _ = open.wait_for(|open| *open).await;
                        Ok(Response::new(request.into_inner()))
                    };
                    let mut say = Some(say);
                    grpc.unary(service_fn(move |request| (say.take().expect("one request"))(request)), request).await
                }
                "/souk.load.Echo/Fail" => grpc.unary(service_fn(fail), request).await,
                "/souk.load.Echo/BreakOff" => grpc.server_streaming(service_fn(break_off), request).await,
                "/souk.load.Echo/Ignore" => std::future::pending().await,
                _ => Status::unimplemented("no such mood").into_http(),
            })
        })
    }
}

/// The first byte of the message is the code to fail with.
async fn fail(request: tonic::Request<Bytes>) -> Result<Response<Bytes>, Status> {
    Err(Status::new(Code::from_i32(i32::from(request.into_inner()[0])), "no luck: 50 %"))
}

/// A message, and then a failure in the trailers.
async fn break_off(
    request: tonic::Request<Bytes>,
) -> Result<Response<impl tokio_stream::Stream<Item = Result<Bytes, Status>> + Send + 'static>, Status> {
    Ok(Response::new(tokio_stream::iter([Ok(request.into_inner()), Err(Status::aborted("half way"))])))
}

/// The server, and a door before it that stays while servers come and go behind it.
pub struct Echo {
    pub address: String,
    gate: watch::Sender<bool>,
    accepted: Arc<Mutex<Accepted>>,
    door: JoinHandle<()>,
}

struct Accepted {
    /// Where the next connection goes.
    server: mpsc::Sender<std::io::Result<TcpStream>>,
    leave: Arc<Notify>,
    /// Second handles of all connections.
    sockets: Vec<std::net::TcpStream>,
}

impl Echo {
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let gate = watch::Sender::new(true);
        let (server, leave) = serve(gate.subscribe());
        let accepted = Arc::new(Mutex::new(Accepted { server, leave, sockets: Vec::new() }));
        let door = tokio::spawn({
            let accepted = accepted.clone();
            async move {
                while let Ok((socket, _)) = listener.accept().await {
                    let socket = socket.into_std().expect("a socket");
                    let server = {
                        let mut accepted = accepted.lock().expect("no test panicked with it");
                        accepted.sockets.push(socket.try_clone().expect("a second handle"));
                        accepted.server.clone()
                    };
                    let _ = server.send(TcpStream::from_std(socket)).await;
                }
            }
        });
        Ok(Self { address, gate, accepted, door })
    }

    /// While it is closed, `Say` answers nobody.
    pub fn gate(&self, open: bool) {
        self.gate.send_replace(open);
    }

    /// Puts another server behind the door; the old one says GOAWAY and finishes what it has begun.
    pub fn replace(&self) {
        let (server, leave) = serve(self.gate.subscribe());
        let mut accepted = self.accepted.lock().expect("no test panicked with it");
        accepted.server = server;
        std::mem::replace(&mut accepted.leave, leave).notify_one();
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        let sockets = std::mem::take(&mut self.accepted.lock().expect("no test panicked with it").sockets);
        for socket in sockets {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.door.abort();
    }
}

#[expect(clippy::disallowed_methods, reason = "a server on loopback that ends with its test")]
fn serve(open: watch::Receiver<bool>) -> (mpsc::Sender<std::io::Result<TcpStream>>, Arc<Notify>) {
    let (sender, receiver) = mpsc::channel(16);
    let leave = Arc::new(Notify::new());
    let incoming = ReceiverStream::new(receiver)
        .map(|socket: std::io::Result<TcpStream>| socket.and_then(|socket| socket.set_nodelay(true).map(|()| socket)));
    let left = leave.clone();
    tokio::spawn(async move {
        let mut server = tonic::transport::Server::builder().max_concurrent_streams(1000);
        server.add_service(Moods { open }).serve_with_incoming_shutdown(incoming, async move { left.notified().await }).await
    });
    (sender, leave)
}

/// Long enough for anything on a busy machine; a test that takes so long has failed.
pub const PATIENCE: Duration = Duration::from_secs(30);
