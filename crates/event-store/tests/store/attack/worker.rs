//! A process with two owners, started by the test from its own binary.

use std::{
    env,
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
    task::JoinHandle,
};

use super::{owner::Owner, proxy::Wire, report::Report};
use crate::world::{connect, process, started_for};

const SEED: &str = "SOUK_TEST_WORKER_SEED";
const OWNERS: u64 = 2;

/// Works until its standard input ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the attack as a process of its own"]
async fn owners() {
    let Some(url) = started_for() else { return };
    let seed: u64 = env::var(SEED).expect("seed").parse().expect("seed");
    let store = Arc::new(connect(&url).await);
    let stop = Arc::new(AtomicBool::new(false));
    let mut owners = Vec::new();
    for number in 0..OWNERS {
        let (store, stop) = (store.clone(), stop.clone());
        let (own, port) = port_of(&url);
        let wire = Arc::new(Wire::to(port).await);
        let wired = Arc::new(connect(&url.replace(own, &wire.port().to_string())).await);
        owners.push(tokio::spawn(async move {
            let mut owner = Owner::new(format!("{seed}-{number}"), store, wired, wire, seed + number);
            while !stop.load(Ordering::Relaxed) {
                owner.step().await;
            }
        }));
    }
    tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await.expect("stdin").expect("stdin");
    stop.store(true, Ordering::Relaxed);
    for owner in owners {
        owner.await.expect("owner");
    }
}

/// The port of a URL, as it stands there.
fn port_of(url: &str) -> (&str, u16) {
    let (_, rest) = url.rsplit_once("127.0.0.1:").expect("a server on this machine");
    let (port, _) = rest.split_once('/').expect("a database");
    (port, port.parse().expect("port"))
}

/// A worker as the test sees it.
pub struct Worker {
    child: Child,
    reports: JoinHandle<Vec<Report>>,
}

impl Worker {
    pub fn start(url: &str, seed: u64) -> Self {
        let mut child = process("attack::worker::owners", url).env(SEED, seed.to_string()).spawn().expect("worker");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let reports = tokio::spawn(async move {
            let mut reports = Vec::new();
            while let Ok(Some(line)) = lines.next_line().await {
                reports.extend(line.parse::<Report>());
            }
            reports
        });
        Self { child, reports }
    }

    pub fn signal(&self, signal: Signal) {
        let pid = self.child.id().expect("not waited for");
        kill(Pid::from_raw(pid as i32), signal).expect("signal");
    }

    /// Ends it as a power cut would.
    pub async fn kill(mut self) -> Vec<Report> {
        self.child.kill().await.expect("kill");
        // A line is a single write, so none of them is shortened.
        self.reports.await.expect("reports")
    }

    /// Lets it finish what it is at.
    pub async fn stop(mut self) -> Vec<Report> {
        drop(self.child.stdin.take());
        let status = self.child.wait().await.expect("wait");
        assert!(status.success(), "a worker ended with {status}");
        self.reports.await.expect("reports")
    }
}
