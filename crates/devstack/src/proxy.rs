//! A TCP connection that fails as networks do.
//!
//! A [`FaultProxy`] stands between a client and a server of a test and passes bytes on, until it is told to be slow, to hold everything
//! back, or to be gone. What it holds is bounded; a sender beyond that waits, as on a real connection.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::ports::free_port;

/// Bytes read at once, and how many such chunks are under way per direction. Together with the buffers of the kernel this bounds what a
/// stalled connection holds.
const CHUNK: usize = 16 << 10;
const CHUNKS: usize = 64;
/// Connections that may wait to be accepted.
const BACKLOG: u32 = 128;
/// Before the next attempt to accept, after one failed.
const PAUSE: Duration = Duration::from_millis(10);

/// How the network is; every connection looks at it before it passes something on.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    latency: Duration,
    stalled: bool,
    /// How often connections were reset; one that has seen fewer is.
    resets: u64,
}

/// A proxy on a port of its own, in this process. Dropping it resets its connections.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    target: Arc<str>,
    weather: watch::Sender<Weather>,
    /// Who accepts; nobody while the proxy is cut off.
    door: Mutex<Option<JoinHandle<()>>>,
    /// Bound and not listened on: keeps others off the port while the proxy is cut off.
    _place: TcpSocket,
}

impl FaultProxy {
    /// Listens on a free port of 127.0.0.1, and passes on to `target` (`host:port`) all it is sent. Needs nothing to listen there yet.
    ///
    /// # Errors
    /// If no port is free.
    pub async fn start(target: impl Into<String>) -> Result<Self> {
        let (address, place) = take_place()?;
        let (target, weather) = (target.into().into(), watch::Sender::default());
        let proxy = Self { address, target, weather, door: Mutex::new(None), _place: place };
        proxy.heal().await?;
        Ok(proxy)
    }

    /// Where clients connect.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Delays everything by this time, in each direction. What was sent within the time arrives within the time: throughput stays.
    pub fn set_latency(&self, latency: Duration) {
        self.weather.send_modify(|weather| weather.latency = latency);
    }

    /// Passes nothing on in either direction while connections stay open, as a half-open connection or a lost route does. New connections
    /// are accepted and get nowhere. What was sent arrives after [`FaultProxy::heal`].
    pub fn stall(&self) {
        self.weather.send_modify(|weather| weather.stalled = true);
    }

    /// Resets all connections and refuses new ones, as a machine without the server does.
    pub async fn cut(&self) {
        if let Some(door) = self.door.lock().await.take() {
            door.abort();
            // The listener is closed when the task is gone.
            let _ = door.await;
        }
        self.reset_all();
    }

    /// Ends all faults: no delay, nothing held back, new connections accepted. Connections that were reset stay so.
    ///
    /// # Errors
    /// If the port cannot be listened on.
    pub async fn heal(&self) -> Result<()> {
        let mut door = self.door.lock().await;
        if door.is_none() {
            let listener = bind(self.address)
                .and_then(|socket| socket.listen(BACKLOG))
                .with_context(|| format!("cannot listen on {}", self.address))?;
            *door = Some(tokio::spawn(accept(listener, self.target.clone(), self.weather.clone())));
        }
        self.weather.send_modify(|weather| (weather.latency, weather.stalled) = (Duration::ZERO, false));
        Ok(())
    }

    /// Resets all connections there are (RST, not an orderly end). New ones are accepted.
    pub fn reset_all(&self) {
        self.weather.send_modify(|weather| weather.resets += 1);
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        if let Some(door) = self.door.get_mut().take() {
            door.abort();
        }
        self.reset_all();
    }
}

/// A free port, taken. Somebody may have looked at it just now or been quicker; the next one will do as well.
fn take_place() -> Result<(SocketAddr, TcpSocket)> {
    loop {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?));
        match bind(address) {
            Ok(place) => return Ok((address, place)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error).with_context(|| format!("cannot take {address}")),
        }
    }
}

/// A socket that shares its port with others made here, and with no other program's.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(listener: TcpListener, target: Arc<str>, weather: watch::Sender<Weather>) {
    loop {
        match listener.accept().await {
            Ok((client, _)) => {
                let weather = weather.subscribe();
                let resets = weather.borrow().resets;
                // A task of its own, which outlives this one: connections are ended by a reset, not by the door.
                tokio::spawn(pass_on(client, target.clone(), weather, resets));
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Serves one connection until both directions have ended. If one breaks, or when there are more resets, both are reset.
async fn pass_on(mut client: TcpStream, target: Arc<str>, weather: watch::Receiver<Weather>, resets: u64) {
    let mut changes = weather.clone();
    // Also resolves, with an error, when the proxy is gone.
    let mut reset = std::pin::pin!(changes.wait_for(|now| now.resets != resets));
    let server = tokio::select! {
        _ = &mut reset => None,
        server = connect(&target, weather.clone()) => server.ok(),
    };
    let Some(mut server) = server else { return abort(&client) };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let in_order = tokio::select! {
        _ = &mut reset => false,
        ended = async { tokio::try_join!(pump(from_client, to_server, &weather), pump(from_server, to_client, &weather)) } => ended.is_ok(),
    };
    if !in_order {
        abort(&client);
        abort(&server);
    }
}

async fn connect(target: &str, mut weather: watch::Receiver<Weather>) -> io::Result<TcpStream> {
    unless_stalled(&mut weather).await;
    let server = TcpStream::connect(target).await?;
    server.set_nodelay(true)?;
    Ok(server)
}

/// Lets the end of a connection be a reset.
fn abort(connection: &TcpStream) {
    if let Err(error) = connection.set_zero_linger() {
        tracing::debug!(%error, "a connection ends in order instead of by a reset");
    }
}

/// A piece of what was sent, and when it may arrive; an empty one is the end.
type Chunk = (Instant, Vec<u8>);

async fn pump(from: ReadHalf<'_>, to: WriteHalf<'_>, weather: &watch::Receiver<Weather>) -> io::Result<()> {
    let (queue, chunks) = mpsc::channel(CHUNKS);
    tokio::try_join!(take(from, queue, weather), deliver(chunks, to, weather.clone())).map(drop)
}

async fn take(mut from: ReadHalf<'_>, queue: mpsc::Sender<Chunk>, weather: &watch::Receiver<Weather>) -> io::Result<()> {
    loop {
        let mut chunk = vec![0; CHUNK];
        let read = from.read(&mut chunk).await?;
        chunk.truncate(read);
        let due = Instant::now() + weather.borrow().latency;
        if queue.send((due, chunk)).await.is_err() || read == 0 {
            return Ok(());
        }
    }
}

async fn deliver(mut chunks: mpsc::Receiver<Chunk>, mut to: WriteHalf<'_>, mut weather: watch::Receiver<Weather>) -> io::Result<()> {
    while let Some((due, chunk)) = chunks.recv().await {
        tokio::time::sleep_until(due).await;
        unless_stalled(&mut weather).await;
        if chunk.is_empty() {
            return to.shutdown().await;
        }
        to.write_all(&chunk).await?;
    }
    Ok(())
}

/// Waits for the end of a stall.
async fn unless_stalled(weather: &mut watch::Receiver<Weather>) {
    // An error says that the proxy is gone, and then the connection is reset anyway.
    let _ = weather.wait_for(|now| !now.stalled).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::is_free;

    /// Nothing arrives within this time, if nothing is to arrive.
    const QUIET: Duration = Duration::from_millis(200);

    /// A server that sends back what it is sent.
    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut connection, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = connection.split();
                    tokio::io::copy(&mut from, &mut to).await?;
                    to.shutdown().await
                });
            }
        });
        address
    }

    async fn proxy() -> FaultProxy {
        FaultProxy::start(echo().await.to_string()).await.unwrap()
    }

    async fn client(proxy: &FaultProxy) -> TcpStream {
        TcpStream::connect(proxy.address()).await.unwrap()
    }

    async fn say(connection: &mut TcpStream, text: &[u8]) {
        connection.write_all(text).await.unwrap();
        hear(connection, text).await;
    }

    async fn hear(connection: &mut TcpStream, text: &[u8]) {
        let mut heard = vec![0; text.len()];
        connection.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, text);
    }

    async fn is_quiet(connection: &mut TcpStream) -> bool {
        tokio::time::timeout(QUIET, connection.read_u8()).await.is_err()
    }

    #[tokio::test]
    async fn bytes_and_the_end_of_a_direction_are_passed_on() {
        let proxy = proxy().await;
        let mut connection = client(&proxy).await;
        say(&mut connection, b"hello").await;
        connection.write_all(b"last words").await.unwrap();
        connection.shutdown().await.unwrap();
        let mut rest = Vec::new();
        connection.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last words");
    }

    #[tokio::test]
    async fn latency_delays_and_does_not_throttle() {
        let proxy = proxy().await;
        let mut connection = client(&proxy).await;
        say(&mut connection, b"here").await;
        let latency = Duration::from_millis(100);
        proxy.set_latency(latency);
        let begin = Instant::now();
        let text = vec![7; 50 * CHUNK];
        let (mut from, mut to) = connection.split();
        let mut heard = vec![0; text.len()];
        tokio::try_join!(to.write_all(&text), from.read_exact(&mut heard)).unwrap();
        assert!(begin.elapsed() >= 2 * latency, "there and back");
        assert!(begin.elapsed() < 20 * latency, "chunks are delayed side by side");
    }

    #[tokio::test]
    async fn a_stalled_connection_stays_open_and_goes_on_later() {
        let proxy = proxy().await;
        let mut old = client(&proxy).await;
        say(&mut old, b"before").await;
        proxy.stall();
        let mut new = client(&proxy).await;
        for connection in [&mut old, &mut new] {
            connection.write_all(b"held back").await.unwrap();
            assert!(is_quiet(connection).await);
        }
        proxy.heal().await.unwrap();
        hear(&mut old, b"held back").await;
        hear(&mut new, b"held back").await;
    }

    #[tokio::test]
    async fn a_stalled_connection_holds_a_bounded_number_of_bytes() {
        let proxy = proxy().await;
        let mut connection = client(&proxy).await;
        say(&mut connection, b"here").await;
        proxy.stall();
        let flood = vec![7; 256 << 20];
        assert!(tokio::time::timeout(QUIET * 5, connection.write_all(&flood)).await.is_err(), "the sender waits");
    }

    #[tokio::test]
    async fn a_reset_ends_what_there_is_and_nothing_else() {
        let proxy = proxy().await;
        let mut connection = client(&proxy).await;
        say(&mut connection, b"here").await;
        proxy.reset_all();
        assert_eq!(connection.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        say(&mut client(&proxy).await, b"again").await;
    }

    #[tokio::test]
    async fn a_cut_refuses_until_it_is_healed() {
        let proxy = proxy().await;
        let mut connection = client(&proxy).await;
        say(&mut connection, b"here").await;
        proxy.cut().await;
        assert_eq!(connection.read_u8().await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(TcpStream::connect(proxy.address()).await.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert!(!is_free(proxy.address().port()), "nobody else takes the port meanwhile");
        proxy.heal().await.unwrap();
        say(&mut client(&proxy).await, b"again").await;
    }

    #[tokio::test]
    async fn without_a_server_connections_are_reset_until_there_is_one() {
        let server = free_port().unwrap();
        let proxy = FaultProxy::start(format!("127.0.0.1:{server}")).await.unwrap();
        assert!(client(&proxy).await.read_u8().await.is_err());
        let listener = TcpListener::bind(("127.0.0.1", server)).await.unwrap();
        let mut connection = client(&proxy).await;
        listener.accept().await.unwrap().0.write_all(b"x").await.unwrap();
        hear(&mut connection, b"x").await;
    }

    #[tokio::test]
    async fn nothing_is_left_of_a_dropped_proxy() {
        let proxy = proxy().await;
        let mut connection = client(&proxy).await;
        say(&mut connection, b"here").await;
        let address = proxy.address();
        drop(proxy);
        assert!(connection.read_u8().await.is_err());
        while TcpStream::connect(address).await.is_ok() {}
    }
}
