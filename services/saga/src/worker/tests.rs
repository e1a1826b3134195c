use std::{collections::VecDeque, sync::Mutex};

use async_trait::async_trait;
use souk_event_sourcing::RequestId;

use super::*;
use crate::testing::{order_id, origin, placed};

/// Answers from a script, by name of the command and line; DONE when the script says nothing.
#[derive(Default)]
struct Script {
    replies: Mutex<VecDeque<(&'static str, Result<Answer, Trouble>)>>,
    sent: Mutex<Vec<(RequestId, Command)>>,
}

fn about(command: &Command) -> String {
    match command {
        Command::Reserve { product, .. } => format!("reserve {product}"),
        Command::Release { product, .. } => format!("release {product}"),
        Command::Commit { product, .. } => format!("commit {product}"),
        Command::RecordReservation { .. } => "record".into(),
        Command::ExpirePayment { .. } => "expire payment".into(),
        Command::ExpireReservation { product, .. } => format!("expire {product}"),
    }
}

#[async_trait]
impl Commands for Script {
    async fn send(&self, request_id: RequestId, command: Command) -> Result<Answer, Trouble> {
        let name = about(&command);
        self.sent.lock().unwrap().push((request_id, command));
        let mut replies = self.replies.lock().unwrap();
        let found = replies.iter().position(|(about, _)| *about == name);
        found.and_then(|at| replies.remove(at)).map_or(Ok(Answer::Done), |(_, reply)| reply)
    }
}

impl Script {
    fn sent(&self) -> Vec<(RequestId, Command)> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

fn script(replies: impl IntoIterator<Item = (&'static str, Result<Answer, Trouble>)>) -> (Arc<Script>, Worker) {
    let script = Arc::new(Script { replies: Mutex::new(replies.into_iter().collect()), sent: Mutex::default() });
    (script.clone(), Worker { commands: script, permits: Arc::new(Semaphore::new(1)) })
}

fn task(kind: StepKind) -> Task {
    let subject = match kind {
        StepKind::ExpireReservation => Subject::Hold("p-1".parse().unwrap(), order_id(1).into()),
        _ => Subject::Order(order_id(1)),
    };
    let step = Step { kind, subject, origin: origin(7), placed: Some(placed()) };
    Task::new(step, Epoch(1), Backoff::new(Duration::from_millis(100), Duration::from_secs(10)))
}

fn unavailable() -> Result<Answer, Trouble> {
    Err(Trouble::Passing { why: String::new(), retry_after: Some(Duration::from_secs(1)) })
}

fn refused(available: i64) -> Result<Answer, Trouble> {
    Ok(Answer::Refused { reason: "INSUFFICIENT_STOCK".into(), available })
}

#[tokio::test]
async fn all_outcomes_of_an_order_are_recorded_once() {
    let (script, worker) = script([("reserve p-2", refused(0))]);
    let (_, outcome) = worker.work(task(StepKind::Reserve)).await;
    assert_eq!(outcome, Outcome::Finished);
    let sent = script.sent();
    assert_eq!(sent.iter().map(|(_, command)| about(command)).collect::<Vec<_>>(), ["reserve p-1", "reserve p-2", "record"]);
    let refusal = Refusal { product: "p-2".parse().unwrap(), reason: "INSUFFICIENT_STOCK".into(), available: 0 };
    assert_eq!(sent[2].1, Command::RecordReservation { order: order_id(1), refusals: vec![refusal] });
    let Command::Reserve { valid_until, expires, .. } = &sent[0].1 else { panic!("{:?}", sent[0]) };
    assert_eq!((*valid_until, *expires), (placed().payment_deadline, placed().payment_deadline.plus_ms(24 * 3600 * 1000)));
}

#[tokio::test]
async fn trouble_repeats_only_what_has_no_answer_under_the_same_ids() {
    let (script, worker) = script([("reserve p-2", unavailable()), ("record", unavailable())]);
    let (task, outcome) = worker.clone().work(task(StepKind::Reserve)).await;
    assert_eq!(outcome, Outcome::Later(Duration::from_secs(1)));
    let first = script.sent();
    let (task, outcome) = worker.clone().work(task).await;
    assert!(matches!(outcome, Outcome::Later(_)));
    let second = script.sent();
    assert_eq!(second.iter().map(|(_, command)| about(command)).collect::<Vec<_>>(), ["reserve p-2", "record"]);
    assert_eq!(second[0], first[1]);
    assert_eq!(worker.work(task).await.1, Outcome::Finished);
    assert_eq!(script.sent(), [second[1].clone()]);
}

#[tokio::test]
async fn a_refused_line_is_released_like_the_others() {
    let (script, worker) = script([("release p-1", refused(0))]);
    assert_eq!(worker.work(task(StepKind::Release)).await.1, Outcome::Finished);
    assert_eq!(script.sent().iter().map(|(_, command)| about(command)).collect::<Vec<_>>(), ["release p-1", "release p-2"]);
}

#[tokio::test]
async fn a_spent_id_renews_the_step() {
    let (_, worker) = script([("commit p-1", unavailable()), ("commit p-2", Err(Trouble::IdSpent))]);
    assert_eq!(worker.work(task(StepKind::Commit)).await.1, Outcome::Renew);
}

#[tokio::test]
async fn what_is_still_open_is_looked_at_again() {
    let (_, worker) = script([("expire payment", Ok(Answer::StillOpen)), ("expire p-1", Ok(Answer::StillOpen))]);
    let now = UnixMillis::now();
    let Outcome::Again(soon) = worker.clone().work(task(StepKind::ExpirePayment)).await.1 else { panic!("not again") };
    let Outcome::Again(late) = worker.clone().work(task(StepKind::ExpireReservation)).await.1 else { panic!("not again") };
    assert!(soon > now && soon < now.plus_ms(60_000) && late > now.plus_ms(23 * 3600 * 1000));
    assert_eq!(worker.clone().work(task(StepKind::ExpirePayment)).await.1, Outcome::Finished);
    assert_eq!(worker.work(task(StepKind::ExpireReservation)).await.1, Outcome::Finished);
}

#[tokio::test]
async fn what_is_not_understood_stays() {
    let (_, worker) = script([("expire payment", Err(Trouble::Broken { why: String::new() }))]);
    assert_eq!(worker.clone().work(task(StepKind::ExpirePayment)).await.1, Outcome::Later(Duration::from_secs(10)));
    let mut bare = task(StepKind::Commit);
    bare.step.placed = None;
    assert_eq!(worker.work(bare).await.1, Outcome::Later(Duration::from_secs(10)));
}
