use std::{
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Reason, SendStream,
    client::{self, Builder, ResponseFuture, SendRequest},
};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use crate::Rpc;

/// Replies never wait for a window of ours.
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 64 << 20;
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// A connection that is opened anew whenever it is lost.
#[derive(Debug)]
pub struct Connection {
    states: watch::Receiver<State>,
    lost: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
enum State {
    Up(Up),
    /// Lost, or refused; what the last attempt said.
    Down(Arc<str>),
}

#[derive(Clone, Debug)]
struct Up {
    requests: SendRequest<Bytes>,
    /// Told when it takes no more requests, though calls under way may still be answered.
    closing: Arc<Notify>,
}

type Driver = client::Connection<TcpStream, Bytes>;

/// Connects, and returns what keeps the connection up as long as it is polled.
pub async fn open(authority: String) -> io::Result<(Connection, impl Future<Output = ()> + Send + 'static)> {
    let (up, driver) = connect(&authority).await?;
    let (publish, states) = watch::channel(State::Up(up.clone()));
    let lost = Arc::new(AtomicU64::new(0));
    Ok((Connection { states, lost: lost.clone() }, keep(authority, up, driver, publish, lost)))
}

async fn connect(authority: &str) -> io::Result<(Up, Driver)> {
    let handshake = async {
        let socket = TcpStream::connect(authority).await?;
        socket.set_nodelay(true)?;
        let mut settings = Builder::new();
        settings
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buffer_size(STREAM_WINDOW as usize)
            .enable_push(false);
        settings.handshake(socket).await.map_err(io::Error::other)
    };
    let (requests, driver) = timeout(CONNECT_TIME, handshake).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    Ok((Up { requests, closing: Arc::default() }, driver))
}

async fn keep(authority: String, mut up: Up, mut driver: Driver, publish: watch::Sender<State>, lost: Arc<AtomicU64>) {
    // Connections that are saying goodbye, with calls still under way.
    let mut leaving = JoinSet::new();
    loop {
        tokio::select! {
            ended = &mut driver => drop(ended),
            () = up.closing.notified() => drop(leaving.spawn(driver)),
        }
        lost.fetch_add(1, Ordering::Relaxed);
        let mut pause = PAUSE;
        (up, driver) = loop {
            match connect(&authority).await {
                Ok(connected) => break connected,
                Err(error) => publish.send_replace(State::Down(format!("cannot connect to {authority}: {error}").into())),
            };
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        publish.send_replace(State::Up(up.clone()));
        while leaving.try_join_next().is_some() {}
    }
}

impl Connection {
    pub fn link(&self) -> Link {
        let mut link = Link { states: self.states.clone(), up: None };
        link.look();
        link
    }

    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}

/// A worker's hold on a connection, for one call at a time.
#[derive(Debug)]
pub struct Link {
    states: watch::Receiver<State>,
    up: Option<Up>,
}

/// No connection could be had.
#[derive(Debug)]
pub struct Down(pub Arc<str>);

impl Link {
    /// Begins a call as soon as the connection takes it.
    ///
    /// # Errors
    /// When there is no connection, and an attempt to get one failed while this waited.
    pub async fn begin(&mut self, rpc: &Rpc) -> Result<(ResponseFuture, SendStream<Bytes>), Down> {
        loop {
            if let Some(up) = &mut self.up {
                if poll_fn(|context| up.requests.poll_ready(context)).await.is_ok()
                    && let Ok(begun) = up.requests.send_request(rpc.head(), false)
                {
                    return Ok(begun);
                }
                up.closing.notify_one();
                self.up = None;
            }
            if self.states.changed().await.is_err() {
                return Err(Down("the target is gone".into()));
            }
            if let Some(reason) = self.look() {
                return Err(Down(reason));
            }
        }
    }

    /// Takes the connection as it is now; if there is none, tells why.
    fn look(&mut self) -> Option<Arc<str>> {
        match &*self.states.borrow_and_update() {
            State::Up(up) => {
                self.up = Some(up.clone());
                None
            }
            State::Down(reason) => Some(reason.clone()),
        }
    }
}

/// Whether the server is sure never to have looked at the call, so that another connection may carry it (RFC 9113, 8.7).
pub fn untouched(error: &h2::Error) -> bool {
    error.is_remote()
        && ((error.is_go_away() && error.reason() == Some(Reason::NO_ERROR)) || error.reason() == Some(Reason::REFUSED_STREAM))
}
