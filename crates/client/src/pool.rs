use std::{
    error::Error as _,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::uri::PathAndQuery;
use tokio::time::{sleep, timeout};
use tonic::{
    Request,
    client::Grpc,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::endpoints::{InvalidEndpoint, endpoint};

/// How often a replica that was not reached is asked whether it answers again.
const PROBING: Duration = Duration::from_secs(1);
/// How long it has for that.
const PATIENCE: Duration = Duration::from_secs(2);

/// Connections to the replicas of one service. Calls take turns, so that the attempt after a failed one goes to another
/// replica, and pass over those that were not reached and have not answered since. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    replicas: Vec<Arc<Replica>>,
    next: AtomicUsize,
}

#[derive(Debug)]
struct Replica {
    channels: Vec<Channel>,
    unreached: AtomicBool,
}

/// One call's turn at a replica.
#[derive(Debug)]
pub(crate) struct Turn {
    pub channel: Channel,
    replica: Arc<Replica>,
}

impl Pool {
    /// Some connections to each of the urls, which are separated by commas. Must run inside a tokio runtime.
    ///
    /// # Errors
    /// When one of them is no url.
    pub fn new(urls: &str, connections: usize) -> Result<Self, InvalidEndpoint> {
        let replica = |url: &str| {
            let endpoint = endpoint(url.trim())?;
            let channels = (0..connections).map(|_| Endpoint::connect_lazy(&endpoint)).collect();
            Ok(Arc::new(Replica { channels, unreached: AtomicBool::new(false) }))
        };
        let replicas = urls.split(',').map(replica).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Inner { replicas, next: AtomicUsize::new(0) })))
    }

    /// The next replica in turn that answers; the next in turn if none does.
    pub fn turn(&self) -> Turn {
        let Inner { replicas, next } = &*self.0;
        let turn = next.fetch_add(1, Ordering::Relaxed);
        let mut in_turn = (0..replicas.len()).map(|offset| &replicas[(turn + offset) % replicas.len()]);
        let answers = |replica: &&Arc<Replica>| !replica.unreached.load(Ordering::Relaxed);
        let replica = in_turn.find(answers).unwrap_or(&replicas[turn % replicas.len()]);
        let channel = replica.channels[turn / replicas.len() % replica.channels.len()].clone();
        Turn { channel, replica: replica.clone() }
    }
}

impl Turn {
    /// Remembers whether the replica was reached, whatever it answered. If it was not, it is asked in the background until
    /// it answers, so that no caller has to find out.
    pub fn ended(&self, reached: bool) {
        let was_unreached = self.replica.unreached.swap(!reached, Ordering::Relaxed);
        if !reached && !was_unreached {
            tokio::spawn(probe(Arc::downgrade(&self.replica)));
        }
    }
}

/// Asks until there is an answer, or nobody has the pool any more.
async fn probe(replica: Weak<Replica>) {
    loop {
        sleep(PROBING).await;
        let Some(replica) = replica.upgrade() else { return };
        if !replica.unreached.load(Ordering::Relaxed) {
            return;
        }
        if answers(replica.channels[0].clone()).await {
            replica.unreached.store(false, Ordering::Relaxed);
            return;
        }
    }
}

/// Whether the service says anything at all: what it says is for the next call to judge.
async fn answers(channel: Channel) -> bool {
    const CHECK: PathAndQuery = PathAndQuery::from_static("/grpc.health.v1.Health/Check");
    let mut grpc = Grpc::new(channel);
    let asked = async {
        grpc.ready().await.map_err(|error| tonic::Status::from_error(error.into()))?;
        grpc.unary(Request::new(()), CHECK, ProstCodec::<(), ()>::default()).await
    };
    timeout(PATIENCE, asked).await.is_ok_and(|answer| answer.err().is_none_or(|status| status.source().is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(pool: &Pool, count: usize) -> Vec<usize> {
        let place = |turn: Turn| pool.0.replicas.iter().position(|replica| Arc::ptr_eq(replica, &turn.replica)).unwrap();
        (0..count).map(|_| place(pool.turn())).collect()
    }

    #[tokio::test]
    async fn a_replica_that_was_not_reached_is_passed_over() {
        let pool = Pool::new("http://a:1, http://b:1,http://c:1", 2).unwrap();
        assert_eq!(turns(&pool, 6), [0, 1, 2, 0, 1, 2]);
        let turn = pool.turn();
        turn.ended(false);
        assert!(turns(&pool, 12).iter().all(|replica| *replica != 0));
        turn.ended(true);
        assert!(turns(&pool, 12).contains(&0));
    }

    #[tokio::test]
    async fn all_take_turns_when_none_was_reached() {
        let pool = Pool::new("http://a:1,http://b:1", 1).unwrap();
        for _ in 0..2 {
            pool.turn().ended(false);
        }
        assert_eq!(turns(&pool, 4), [0, 1, 0, 1]);
    }

    #[tokio::test]
    async fn it_is_asked_until_it_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pool = Pool::new(&format!("http://{},http://a:1", listener.local_addr().unwrap()), 1).unwrap();
        pool.turn().ended(false);
        // A listener whose program hangs takes connections and says nothing.
        sleep(PROBING + PATIENCE / 2).await;
        assert_eq!(turns(&pool, 2), [1, 1]);
        #[expect(clippy::disallowed_methods, reason = "a health check of one test needs no limits")]
        let server = tonic::transport::Server::builder().add_service(tonic_health::server::health_reporter().1);
        tokio::spawn(server.serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener)));
        let answers = async {
            while !turns(&pool, 2).contains(&0) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), answers).await.expect("it answers again");
    }
}
