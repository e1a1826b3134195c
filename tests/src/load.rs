use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// What became of the calls of a load. These are calls of a client, refusals with all their details; `souk-load` sends bare frames.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Time each accepted call took, from when it was due; sorted.
    pub accepted: Vec<Duration>,
    /// Calls refused with RESOURCE_EXHAUSTED and a time to come back.
    pub shed: usize,
    /// Anything else.
    pub failed: Vec<Status>,
    pub took: Duration,
}

impl Outcome {
    /// Accepted calls per second.
    pub fn goodput(&self) -> f64 {
        self.accepted.len() as f64 / self.took.as_secs_f64()
    }

    /// The time that this share of the accepted calls took at most.
    pub fn percentile(&self, share: f64) -> Duration {
        let index = (self.accepted.len() as f64 * share) as usize;
        self.accepted.get(index.min(self.accepted.len().saturating_sub(1))).copied().unwrap_or_default()
    }

    fn add(&mut self, took: Duration, answer: Result<(), Status>) {
        match answer {
            Ok(()) => self.accepted.push(took),
            Err(status) if status.code() == Code::ResourceExhausted && has_retry_info(&status) => self.shed += 1,
            Err(status) => self.failed.push(status),
        }
    }

    fn merge(&mut self, other: Self) {
        self.accepted.extend(other.accepted);
        self.shed += other.shed;
        self.failed.extend(other.failed);
    }

    fn finish(mut self, began: Instant) -> Self {
        self.took = began.elapsed();
        self.accepted.sort_unstable();
        self
    }
}

fn has_retry_info(status: &Status) -> bool {
    status.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some_and(|delay| !delay.is_zero()))
}

/// So many callers, each with one call at a time: as much as the system takes.
pub async fn closed_loop<F, C>(callers: usize, duration: Duration, call: C) -> Outcome
where
    F: Future<Output = Result<(), Status>> + Send,
    C: Fn(u64) -> F + Clone + Send + Sync + 'static,
{
    let (began, number) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let (call, number) = (call.clone(), number.clone());
        tasks.spawn(async move {
            let mut outcome = Outcome::default();
            while began.elapsed() < duration {
                let due = Instant::now();
                let answer = call(number.fetch_add(1, Ordering::Relaxed)).await;
                outcome.add(due.elapsed(), answer);
            }
            outcome
        });
    }
    let mut all = Outcome::default();
    while let Some(outcome) = tasks.join_next().await {
        all.merge(outcome.unwrap_or_default());
    }
    all.finish(began)
}

/// So many calls per second, whatever becomes of those before.
pub async fn open_loop<F, C>(per_second: f64, duration: Duration, call: C) -> Outcome
where
    F: Future<Output = Result<(), Status>> + Send,
    C: Fn(u64) -> F + Clone + Send + Sync + 'static,
{
    let (began, total) = (Instant::now(), (per_second * duration.as_secs_f64()) as u64);
    let (mut tasks, mut all) = (JoinSet::new(), Outcome::default());
    for number in 0..total {
        let due = began + Duration::from_secs_f64(number as f64 / per_second);
        sleep_until(due).await;
        let call = call.clone();
        tasks.spawn(async move {
            let answer = call(number).await;
            (due.elapsed(), answer)
        });
        while let Some(Ok((took, answer))) = tasks.try_join_next() {
            all.add(took, answer);
        }
    }
    let offered = Instant::now();
    while let Some(Ok((took, answer))) = tasks.join_next().await {
        all.add(took, answer);
    }
    let mut all = all.finish(began);
    all.took = offered - began;
    all
}
