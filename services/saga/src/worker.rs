//! Carrying one step out.

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, stream};
use metrics::{counter, histogram};
use souk_domain::order::{Line, Placed, Refusal};
use souk_event_sourcing::{Epoch, UnixMillis};
use souk_runtime::telemetry;
use tokio::{sync::Semaphore, time::Instant};
use tracing::Instrument;

use crate::{
    backoff::Backoff,
    commands::{Answer, Command, Commands, Trouble},
    step::{Step, StepKind, Subject},
};

/// Commands of one step under way at a time.
const PARALLEL_LINES: usize = 8;
/// How long after the payment deadline a hold that nobody ended is given back.
const HOLD_MARGIN_MS: i64 = 24 * 3600 * 1000;
/// A payment that was not due by the command service's clock is looked at again after this time.
const EARLY_MS: i64 = 1000;
/// A hold that is still needed is looked at again after this time.
const KEPT_MS: i64 = 24 * 3600 * 1000;

/// A step on its way: what is known of it besides what is stored.
#[derive(Debug)]
pub(crate) struct Task {
    pub step: Step,
    /// Under which the log was held when the step went out: the outcome of an earlier one is stale.
    pub epoch: Epoch,
    /// Answers by line, as far as there are any; kept between attempts, lost in a crash, since asking again is harmless.
    pub answers: Vec<Option<Answer>>,
    pub backoff: Backoff,
    pub since: Instant,
}

/// What became of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything was answered definitely.
    Finished,
    /// To be done again then.
    Again(UnixMillis),
    /// Under the same ids after a pause.
    Later(Duration),
    /// Under new ids, once they are stored.
    Renew,
}

/// Carries steps out, so many at a time.
#[derive(Clone)]
pub(crate) struct Worker {
    pub commands: Arc<dyn Commands>,
    pub permits: Arc<Semaphore>,
}

impl Task {
    pub fn new(step: Step, epoch: Epoch, backoff: Backoff) -> Self {
        Self { step, epoch, answers: Vec::new(), backoff, since: Instant::now() }
    }
}

impl Worker {
    /// One attempt at a step, when it is its turn.
    pub async fn work(self, mut task: Task) -> (Task, Outcome) {
        // Closed only when the process ends: the step stays in the outbox.
        let Ok(_permit) = self.permits.acquire().await else { return (task, Outcome::Later(Duration::ZERO)) };
        let kind = task.step.kind;
        let span = tracing::info_span!("saga step", step = kind.name(), attempt = task.step.origin.attempt);
        telemetry::set_parent(&span, &task.step.origin.traceparent);
        let result = self.attempt(&mut task).instrument(span).await;
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(Trouble::IdSpent) => Outcome::Renew,
            Err(Trouble::Passing { why, retry_after }) => {
                tracing::debug!(step = kind.name(), subject = %task.step.subject, why, "a step is tried again");
                Outcome::Later(task.backoff.pause().max(retry_after.unwrap_or_default()))
            }
            Err(Trouble::Broken { why }) => {
                tracing::error!(step = kind.name(), subject = %task.step.subject, why, "a step is not understood; it is tried on");
                Outcome::Later(task.backoff.longest())
            }
        };
        let label = match outcome {
            Outcome::Finished => "finished",
            Outcome::Again(_) => "again",
            Outcome::Later(_) => "later",
            Outcome::Renew => "renewed",
        };
        counter!("souk_saga_steps_total", "step" => kind.name(), "outcome" => label).increment(1);
        if matches!(outcome, Outcome::Finished | Outcome::Again(_)) {
            histogram!("souk_saga_step_seconds", "step" => kind.name()).record(task.since.elapsed().as_secs_f64());
        }
        (task, outcome)
    }

    async fn attempt(&self, task: &mut Task) -> Result<Outcome, Trouble> {
        let step = task.step.clone();
        match (step.kind, &step.subject, &step.placed) {
            (StepKind::Reserve, Subject::Order(order), Some(placed)) => {
                let (order, deadline) = (*order, placed.payment_deadline);
                let reserve = |line: &Line| {
                    let (product, quantity, expires) = (line.product.clone(), line.quantity, deadline.plus_ms(HOLD_MARGIN_MS));
                    Command::Reserve { product, order, quantity, valid_until: deadline, expires }
                };
                self.each_line(task, placed, "reserve", reserve).await?;
                let command = Command::RecordReservation { order, refusals: refusals(placed, &task.answers) };
                let answer = self.commands.send(step.request_id("record-reservation", 0), command).await?;
                note_refusal(&step, &answer);
                Ok(Outcome::Finished)
            }
            (StepKind::Release, Subject::Order(order), Some(placed)) => {
                let (order, valid_until) = (*order, placed.payment_deadline);
                let release = |line: &Line| Command::Release { product: line.product.clone(), order, valid_until };
                self.each_line(task, placed, "release", release).await?;
                Ok(finished(task))
            }
            (StepKind::Commit, Subject::Order(order), Some(placed)) => {
                let order = *order;
                self.each_line(task, placed, "commit", |line| Command::Commit { product: line.product.clone(), order }).await?;
                Ok(finished(task))
            }
            (StepKind::ExpirePayment, Subject::Order(order), _) => {
                let answer = self.commands.send(step.request_id("expire-payment", 0), Command::ExpirePayment { order: *order }).await?;
                note_refusal(&step, &answer);
                Ok(if answer == Answer::StillOpen { Outcome::Again(UnixMillis::now().plus_ms(EARLY_MS)) } else { Outcome::Finished })
            }
            (StepKind::ExpireReservation, Subject::Hold(product, reservation), _) => {
                let command = Command::ExpireReservation { product: product.clone(), reservation: reservation.clone() };
                let answer = self.commands.send(step.request_id("expire-reservation", 0), command).await?;
                note_refusal(&step, &answer);
                Ok(if answer == Answer::StillOpen { Outcome::Again(UnixMillis::now().plus_ms(KEPT_MS)) } else { Outcome::Finished })
            }
            _ => Err(Trouble::Broken { why: "the stored step lacks what it needs".into() }),
        }
    }

    /// Sends one command per line that has no answer yet. Every line is asked, whatever became of the others.
    async fn each_line(&self, task: &mut Task, placed: &Placed, name: &str, command: impl Fn(&Line) -> Command) -> Result<(), Trouble> {
        task.answers.resize(placed.lines.len(), None);
        let open: Vec<_> = (0..placed.lines.len())
            .filter(|line| task.answers[*line].is_none())
            .map(|line| (line, task.step.request_id(name, line), command(&placed.lines[line])))
            .collect();
        let sent = open.into_iter().map(|(line, request_id, command)| async move { (line, self.commands.send(request_id, command).await) });
        let mut sent = stream::iter(sent).buffer_unordered(PARALLEL_LINES);
        let mut trouble = None;
        while let Some((line, result)) = sent.next().await {
            match result {
                Ok(answer) => task.answers[line] = Some(answer),
                // A spent id outweighs what may pass: the whole step gets new ones.
                Err(spent @ Trouble::IdSpent) => trouble = Some(spent),
                Err(other) => trouble = trouble.or(Some(other)),
            }
        }
        trouble.map_or(Ok(()), Err)
    }
}

fn finished(task: &Task) -> Outcome {
    task.answers.iter().flatten().for_each(|answer| note_refusal(&task.step, answer));
    Outcome::Finished
}

/// A refusal where none belongs does not stop the order, but somebody should know.
fn note_refusal(step: &Step, answer: &Answer) {
    if let Answer::Refused { reason, .. } = answer {
        counter!("souk_saga_refusals_total", "step" => step.kind.name()).increment(1);
        tracing::warn!(step = step.kind.name(), subject = %step.subject, reason, "a step was refused");
    }
}

/// The lines that were refused, in the order of the lines.
fn refusals(placed: &Placed, answers: &[Option<Answer>]) -> Vec<Refusal> {
    let refusal = |(line, answer): (&Line, &Option<Answer>)| match answer {
        Some(Answer::Refused { reason, available }) => {
            Some(Refusal { product: line.product.clone(), reason: reason.clone(), available: *available })
        }
        _ => None,
    };
    placed.lines.iter().zip(answers).filter_map(refusal).collect()
}

#[cfg(test)]
mod tests;
