use std::{
    panic::resume_unwind,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval_at},
};

use crate::{
    Error, Reply, Report, Schedule, Second, Source, Target,
    call::Caller,
    pacer::{Pace, Pacer},
    recorder::Recorder,
    timer::Timer,
};

/// A run of load against a target.
pub struct Load<'a, S> {
    target: &'a Target,
    source: Arc<S>,
    patience: Duration,
    on_second: Box<dyn FnMut(&Second) + Send + 'a>,
    stop: Pin<Box<dyn Future<Output = ()> + Send + 'a>>,
}

/// When a closed loop ends: no call begins after that, and those under way are waited for.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Elapsed(Duration),
    Sent(u64),
    /// Whichever comes first.
    Either(Duration, u64),
}

impl<'a, S: Source> Load<'a, S> {
    pub fn new(target: &'a Target, source: S) -> Self {
        Self {
            target,
            source: Arc::new(source),
            patience: Duration::from_secs(10),
            on_second: Box::new(|_| {}),
            stop: Box::pin(std::future::pending()),
        }
    }

    /// How late a call may still be sent when nobody was free to send it in time; 10 s unless set. After that it is counted as unsent.
    #[must_use]
    pub fn patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Tells of each second as it passes.
    #[must_use]
    pub fn on_second(self, tell: impl FnMut(&Second) + Send + 'a) -> Self {
        Self { on_second: Box::new(tell), ..self }
    }

    /// Ends the run early when this future does; the report tells of what was.
    #[must_use]
    pub fn stopped_by(self, stop: impl Future<Output = ()> + Send + 'a) -> Self {
        Self { stop: Box::pin(stop), ..self }
    }

    /// Sends calls at their times, whatever became of those before, with at most `outstanding` under way. While all of those are, the
    /// next ones wait, and their latencies grow.
    ///
    /// # Errors
    /// When there is no timer to be had.
    pub async fn open_loop(self, schedule: Schedule, outstanding: usize) -> Result<Report, Error> {
        let (intended, window, patience) = (Some(schedule.calls()), schedule.duration(), self.patience);
        self.run(outstanding, intended, Some(window), |_| Pace::Open { schedule, patience }).await
    }

    /// So many callers, each with one call at a time: as much as the target takes.
    ///
    /// # Errors
    /// When there is no timer to be had.
    pub async fn closed_loop(self, callers: usize, until: Until) -> Result<Report, Error> {
        let (window, calls) = match until {
            Until::Elapsed(time) => (Some(time), u64::MAX),
            Until::Sent(calls) => (None, calls),
            Until::Either(time, calls) => (Some(time), calls),
        };
        self.run(callers, None, window, |began| Pace::Closed { calls, until: window.map(|time| began + time) }).await
    }

    async fn run(
        self,
        workers: usize,
        intended: Option<u64>,
        window: Option<Duration>,
        pace: impl FnOnce(Instant) -> Pace,
    ) -> Result<Report, Error> {
        let (timer, lost) = (Timer::new().map_err(Error::Timer)?, self.target.lost());
        let began = Instant::now();
        let recorder = Mutex::new(Recorder::new(self.source.kinds(), began, window.map(|window| began + window)));
        let shared = Arc::new(Shared { source: self.source, pacer: Pacer::new(pace(began), began), recorder });
        let workers = (0..workers.max(1)).map(|worker| work(shared.clone(), Caller::new(self.target.links(worker)))).collect();
        shared.drive(workers, timer, self.stop, self.on_second).await;
        let unsent = shared.pacer.unsent();
        let recorder = Arc::into_inner(shared).expect("all workers have ended").recorder;
        let recorder = recorder.into_inner().unwrap_or_else(PoisonError::into_inner);
        Ok(recorder.finish(intended, unsent, self.target.lost() - lost))
    }
}

/// What all workers of a run have in common.
struct Shared<S> {
    source: Arc<S>,
    pacer: Pacer,
    recorder: Mutex<Recorder>,
}

impl<S> Shared<S> {
    fn recorder(&self) -> MutexGuard<'_, Recorder> {
        self.recorder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sees to it that workers wake in time and seconds are counted, until all workers have ended.
    async fn drive(
        &self,
        mut workers: JoinSet<()>,
        timer: Timer,
        mut stop: Pin<Box<dyn Future<Output = ()> + Send + '_>>,
        mut on_second: Box<dyn FnMut(&Second) + Send + '_>,
    ) {
        let second = Duration::from_secs(1);
        let mut seconds = interval_at(tokio::time::Instant::now() + second, second);
        seconds.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut pacing = pin!(self.pacer.run(timer));
        let mut stopped = false;
        loop {
            tokio::select! {
                () = &mut pacing => {}
                ended = workers.join_next() => match ended {
                    Some(Err(failure)) if failure.is_panic() => resume_unwind(failure.into_panic()),
                    Some(_) => {}
                    None => return,
                },
                _ = seconds.tick() => {
                    let second = self.recorder().turn_second(Instant::now());
                    on_second(&second);
                }
                () = &mut stop, if !stopped => {
                    stopped = true;
                    self.pacer.stop();
                }
            }
        }
    }
}

async fn work<S: Source>(shared: Arc<Shared<S>>, mut caller: Caller) {
    while let Some(turn) = shared.pacer.next().await {
        let request = shared.source.next(turn.number);
        let sent = Instant::now();
        let answer = caller.call(&request, sent).await;
        let ended = Instant::now();
        if request.keep_reply {
            shared.source.replied(Reply { kind: request.kind, tag: request.tag, code: answer.code, frames: &answer.frames });
        }
        shared.recorder().record(turn, &request, &answer, sent, ended);
    }
}
