//! Owners in several processes take logs from each other and append, while backends are terminated, wires cut, appends
//! dropped mid-statement and processes killed or stopped, and while readers tail. Nothing may be lost, doubled, skipped
//! or deadlocked.
//!
//! Longer by `SOUK_APPEND_SECONDS`; the choices, not the races, repeat with `SOUK_APPEND_SEED`.
//!
//! # Layout
//! - `worker`: a process with two owners; `report`: what it tells the test
//! - `owner`: takes over, loads, appends, asks again; `command`: what is appended; `proxy`: the wire that is cut
//! - `reader`: watches while it goes on; `audit`: checks when it is over

mod audit;
mod command;
mod owner;
mod proxy;
mod reader;
mod report;
mod worker;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use sqlx::PgPool;
use uuid::Uuid;

use self::{
    report::{Ack, Reply, Report},
    worker::Worker,
};
use crate::world::{World, connect};

const WORKERS: usize = 3;
const DEFAULT_SECONDS: u64 = 10;
/// Between two disturbances.
const RESPITE: Duration = Duration::from_millis(60);

/// What happened, for the reader of the test's output and against passing without an attack.
#[derive(Debug, Default)]
struct Counts {
    acks: usize,
    without_events: usize,
    repeated: usize,
    stale: usize,
    takeovers: usize,
    fenced: usize,
    unknown: usize,
    abandoned: usize,
    wires_cut: usize,
    backends_killed: usize,
    processes_killed: usize,
    processes_stopped: usize,
    tailed: u64,
    snapshots: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_doubled_skipped_or_deadlocked() {
    let seed = setting("SOUK_APPEND_SEED").unwrap_or_else(rand::random);
    let time = Duration::from_secs(setting("SOUK_APPEND_SECONDS").unwrap_or(DEFAULT_SECONDS));
    println!("SOUK_APPEND_SEED={seed} for {time:?}");
    let world = World::new().await;
    let stop = Arc::new(AtomicBool::new(false));
    let watched = Arc::new(connect(&world.url).await);
    let (_, pool) = watched.pools().next().expect("configured");
    let tails = [(); 2].map(|()| tokio::spawn(reader::tail(watched.clone(), stop.clone())));
    let snapshots = tokio::spawn(reader::snapshots(pool.clone(), stop.clone()));

    let mut counts = Counts::default();
    let reports = attack(&world, pool, time, seed, &mut counts).await;
    stop.store(true, Ordering::Relaxed);
    for tail in tails {
        counts.tailed += tail.await.expect("a tailing reader");
    }
    counts.snapshots = snapshots.await.expect("snapshots");

    let (acks, void) = sort(reports, &mut counts);
    println!("{counts:?}");
    let events = audit::audit(&world, &acks, &void).await;
    assert_eq!(counts.tailed, 2 * events, "events seen by two readers");
    counts.require();
}

fn setting(name: &str) -> Option<u64> {
    env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name}={value} is no number")))
}

/// Lets workers loose on the store for a while and disturbs them.
async fn attack(world: &World, pool: &PgPool, time: Duration, seed: u64, counts: &mut Counts) -> Vec<Report> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut reports = Vec::new();
    let mut workers: Vec<_> = (0..WORKERS).map(|_| Worker::start(&world.url, rng.random_range(0..1 << 40))).collect();
    let end = Instant::now() + time;
    for turn in 0.. {
        tokio::time::sleep(RESPITE).await;
        if Instant::now() > end {
            break;
        }
        match turn % 30 {
            10 => {
                let victim = workers.swap_remove(rng.random_range(0..WORKERS));
                reports.extend(victim.kill().await);
                workers.push(Worker::start(&world.url, rng.random_range(0..1 << 40)));
                counts.processes_killed += 1;
            }
            20 => {
                let victim = &workers[rng.random_range(0..WORKERS)];
                victim.signal(Signal::SIGSTOP);
                tokio::time::sleep(RESPITE * 5).await;
                victim.signal(Signal::SIGCONT);
                counts.processes_stopped += 1;
            }
            _ => counts.backends_killed += terminate_one(pool).await,
        }
    }
    for worker in workers {
        reports.extend(worker.stop().await);
    }
    reports
}

/// Terminates a backend that appends or takes over, rather one that is at it.
async fn terminate_one(pool: &PgPool) -> usize {
    let gone = sqlx::query_scalar::<_, bool>(
        "select pg_terminate_backend(pid) from (select pid from pg_stat_activity where datname = current_database()
           and (query like '-- heads%' or query like 'with free%') order by state = 'active' desc, random() limit 1) victim",
    );
    gone.fetch_all(pool).await.expect("terminate").len()
}

/// Counts the reports; returns what was acknowledged and what must not be there.
fn sort(reports: Vec<Report>, counts: &mut Counts) -> (Vec<Ack>, Vec<Uuid>) {
    let (mut acks, mut void, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for report in reports {
        match report {
            Report::Ack(ack) => {
                counts.without_events += usize::from(!matches!(ack.reply, Reply::Wrote { .. }));
                acks.push(ack);
            }
            Report::Void(request) => void.push(request),
            Report::Repeated => counts.repeated += 1,
            Report::Took => counts.takeovers += 1,
            Report::Abandoned => counts.abandoned += 1,
            Report::Cut => counts.wires_cut += 1,
            Report::Unknown => counts.unknown += 1,
            Report::Fenced => counts.fenced += 1,
            Report::Wrong(what) => wrong.push(what),
        }
    }
    (counts.acks, counts.stale) = (acks.len(), void.len());
    assert!(wrong.is_empty(), "{} wrongs, such as {:#?}", wrong.len(), &wrong[..wrong.len().min(5)]);
    (acks, void)
}

impl Counts {
    fn require(&self) {
        let least = [
            ("acks", self.acks, 1_000),
            ("answers without events", self.without_events, 100),
            ("repeats", self.repeated, 20),
            ("stale versions", self.stale, 20),
            ("takeovers", self.takeovers, 100),
            ("fenced parts", self.fenced, 20),
            ("unknown outcomes", self.unknown, 20),
            ("abandoned appends", self.abandoned, 20),
            ("cut wires", self.wires_cut, 20),
            ("killed backends", self.backends_killed, 20),
            ("killed processes", self.processes_killed, 2),
            ("stopped processes", self.processes_stopped, 2),
            ("snapshots", self.snapshots as usize, 50),
        ];
        for (what, count, least) in least {
            assert!(count >= least, "only {count} {what}; {least} make an attack");
        }
    }
}
