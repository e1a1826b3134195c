//! What becomes of each command of a batch, when others of it are refused, repeated or in doubt.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use souk_command::committer::{
    Answer, CommandError, Committer, DamagedHistory, Job, Limits, LostOwnership, Model, Outlet, Request, Watchers, Work,
};
use souk_event_sourcing::{Epoch, LogId, NewEvent, Partition, Position, RecordedEvent, Region, RequestId, StreamId, UnixMillis};
use souk_event_store::{BatchOutcome, Belief, EventLog, Fingerprint, Lane, LogBatch, MemoryStore, StoreError, StoredStream, Taken};
use souk_runtime::Queue;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

/// Entities that count.
struct Counter;

impl Model for Counter {
    type Entity = u64;
    type Event = ();
    const FOLD_VERSION: u32 = 1;

    fn initial(_: &StreamId) -> Option<u64> {
        Some(0)
    }

    fn evolve(count: &mut u64, (): &()) -> Result<(), DamagedHistory> {
        *count += 1;
        Ok(())
    }

    fn encode(stream: &StreamId, (): &()) -> NewEvent {
        NewEvent { stream: stream.clone(), kind: "Counted", schema_version: 1, payload: Bytes::new() }
    }

    fn decode(_: &RecordedEvent) -> Result<(), DamagedHistory> {
        Ok(())
    }

    fn encode_snapshot(_: &u64) -> Bytes {
        Bytes::new()
    }

    fn decode_snapshot(_: &StreamId, _: u32, _: &[u8]) -> Option<u64> {
        None
    }
}

/// A store in memory that refuses NUL as Postgres does, and may lose the answers to its first appends.
#[derive(Clone, Default)]
struct Store {
    memory: MemoryStore,
    appends: Arc<AtomicUsize>,
    unanswered: usize,
}

#[async_trait::async_trait]
impl Lane for Store {
    async fn append(&mut self, batches: &[LogBatch]) -> Result<Vec<BatchOutcome>, StoreError> {
        let number = self.appends.fetch_add(1, Ordering::Relaxed);
        if batches.iter().flat_map(|batch| &batch.ledger).any(|entry| entry.actor.contains('\0')) {
            return Err(StoreError::Data { sqlstate: "22021".into(), message: "invalid byte sequence".into() });
        }
        // The first is lost on the way there, the others on the way back.
        if number == 0 && self.unanswered > 0 {
            return Err(StoreError::Unknown("cut".into()));
        }
        let outcomes = self.memory.append(batches).await;
        if number < self.unanswered { Err(StoreError::Unknown("cut".into())) } else { outcomes }
    }

    async fn heads(&mut self, logs: &[LogId]) -> Result<Vec<(LogId, Belief)>, StoreError> {
        self.memory.heads(logs).await
    }

    async fn load(&mut self, streams: &[(LogId, StreamId)], fold_version: u32) -> Result<Vec<StoredStream>, StoreError> {
        self.memory.load(streams, fold_version).await
    }
}

const LIMITS: Limits = Limits {
    batch_commands: 256,
    batch_bytes: 1 << 20,
    batch_interval: Duration::ZERO,
    attempts: 5,
    cached_entities: NonZeroUsize::new(100).expect("not nought"),
    snapshot_every: 1_000,
};

struct Nowhere;

impl Outlet for Nowhere {
    fn push(&self, _: Arc<RecordedEvent>) {}
    fn ends_at(&self, _: &Belief) {}
}

const fn log(partition: u16) -> LogId {
    LogId { region: Region(1), partition: Partition(partition) }
}

fn request() -> RequestId {
    RequestId(Uuid::now_v7())
}

/// One command: counts up an entity and answers with its count.
struct Count {
    log: LogId,
    entity: &'static str,
    id: RequestId,
    actor: &'static str,
}

impl Count {
    fn up(partition: u16, entity: &'static str) -> Self {
        Self { log: log(partition), entity, id: request(), actor: "tester" }
    }

    fn job(self, answer: oneshot::Sender<Result<Answer, CommandError>>) -> Job<Counter> {
        let request = Request {
            id: self.id,
            method: "test/Count",
            body: Bytes::new(),
            fingerprint: Fingerprint::new([1; 16]),
            actor: self.actor.into(),
            received: UnixMillis::now(),
            traceparent: String::new(),
            causation_id: None,
            correlation_id: None,
        };
        Job {
            log: self.log,
            streams: vec![StreamId::new("counter", self.entity)],
            etag: None,
            request,
            decide: Box::new(|_| Ok(vec![(0, ())])),
            respond: Box::new(|entities| entities[0].0.to_string().into()),
            answer,
        }
    }
}

/// Hands all commands to a committer at once and returns what each was answered.
async fn commit(store: &Store, commands: Vec<Count>) -> Vec<Result<String, CommandError>> {
    let (queue, work) = mpsc::channel::<Work<Counter>>(commands.len() + 2);
    for partition in [1, 2] {
        let taken = Taken { log: log(partition), belief: store.memory.take(log(partition), 1), written: Epoch(0) };
        queue.try_send(Work::Own { taken, outlet: Box::new(Nowhere) }).expect("room");
    }
    let door = Queue::new("test", Duration::from_secs(60), 1);
    let mut answers = Vec::new();
    for command in commands {
        let (answer, answered) = oneshot::channel();
        queue.try_send(Work::Command(Box::new(command.job(answer)), door.enter().expect("short"))).expect("room");
        answers.push(answered);
    }
    drop(queue);
    let committer = Committer::new("w0", store.clone(), LIMITS, Arc::<Watchers>::default(), Box::new(|_, _, _, _| {}), Box::new(|_| {}));
    committer.run(work).await;
    let mut told = Vec::new();
    for answer in answers {
        let answer = answer.await.expect("an answer");
        told.push(answer.map(|answer| String::from_utf8(answer.response.to_vec()).expect("a number")));
    }
    told
}

async fn events(store: &Store, partition: u16) -> usize {
    store.memory.read(log(partition), Position(1), 1_000).await.expect("read").len()
}

fn counts(answers: Vec<Result<String, CommandError>>) -> Vec<String> {
    answers.into_iter().map(|answer| answer.expect("accepted")).collect()
}

#[tokio::test]
async fn only_the_command_whose_data_is_refused_fails() {
    let store = Store::default();
    let mut commands = vec![Count::up(1, "a"), Count::up(1, "a"), Count::up(1, "b"), Count::up(2, "c")];
    commands[1].actor = "NUL\0";
    let mut answers = commit(&store, commands).await;
    let culprit = answers.remove(1);
    assert!(matches!(&culprit, Err(CommandError::Unstorable(sqlstate)) if sqlstate == "22021"), "{culprit:?}");
    assert_eq!(counts(answers), ["1", "1", "1"]);
    assert_eq!((events(&store, 1).await, events(&store, 2).await), (2, 1));
}

#[tokio::test]
async fn a_repeat_within_a_batch_gets_the_same_answer() {
    let store = Store::default();
    let (first, other) = (Count::up(1, "a"), Count::up(1, "a"));
    let repeat = Count { id: first.id, ..Count::up(1, "a") };
    assert_eq!(counts(commit(&store, vec![first, other, repeat]).await), ["1", "2", "1"]);
    assert_eq!(events(&store, 1).await, 2);
}

#[tokio::test]
async fn commands_on_one_entity_share_one_append() {
    let store = Store::default();
    let answers = commit(&store, (0..50).map(|_| Count::up(1, "hot")).collect()).await;
    assert_eq!(counts(answers), (1..=50).map(|count| count.to_string()).collect::<Vec<_>>());
    assert_eq!(store.appends.load(Ordering::Relaxed), 1);
}

/// Two commands arrive together, two more one after the other within the interval, and one long after.
#[tokio::test]
async fn commands_that_come_fast_share_an_append_and_lonely_ones_wait_for_nobody() {
    const INTERVAL: Duration = Duration::from_millis(400);
    for (interval, appends) in [(INTERVAL, [1, 2, 3]), (Duration::ZERO, [1, 3, 4])] {
        let store = Store::default();
        let (queue, work) = mpsc::channel::<Work<Counter>>(8);
        let taken = Taken { log: log(1), belief: store.memory.take(log(1), 1), written: Epoch(0) };
        queue.send(Work::Own { taken, outlet: Box::new(Nowhere) }).await.expect("room");
        let door = Queue::new("test", Duration::from_secs(60), 1);
        let send = || {
            let (answer, answered) = oneshot::channel();
            let command = Box::new(Count::up(1, "a").job(answer));
            queue.try_send(Work::Command(command, door.enter().expect("short"))).expect("room");
            answered
        };
        let mut answers = vec![send(), send()];
        let limits = Limits { batch_interval: interval, ..LIMITS };
        let committer = Committer::new("w0", store.clone(), limits, Arc::default(), Box::new(|_, _, _, _| {}), Box::new(|_| {}));
        let committing = tokio::spawn(committer.run(work));
        let mut seen = Vec::new();
        let mut answered = async |answers: Vec<oneshot::Receiver<Result<Answer, CommandError>>>| {
            for answer in answers {
                answer.await.expect("an answer").expect("accepted");
            }
            seen.push(store.appends.load(Ordering::Relaxed));
        };
        answered(std::mem::take(&mut answers)).await;
        answers.push(send());
        tokio::time::sleep(Duration::from_millis(20)).await;
        answers.push(send());
        answered(answers).await;
        tokio::time::sleep(INTERVAL).await;
        let began = Instant::now();
        answered(vec![send()]).await;
        assert!(began.elapsed() < INTERVAL / 2, "a lonely command waited for {:?}", began.elapsed());
        assert_eq!(seen, appends, "{interval:?}");
        drop(queue);
        committing.await.expect("the committer ends");
    }
}

#[tokio::test]
async fn a_command_in_doubt_is_carried_out_once() {
    for unanswered in [1, 2, 3] {
        let store = Store { unanswered, ..Store::default() };
        assert_eq!(counts(commit(&store, vec![Count::up(1, "a"), Count::up(2, "b")]).await), ["1", "1"], "{unanswered}");
        assert_eq!((events(&store, 1).await, events(&store, 2).await), (1, 1));
    }
}

/// A store that can be replaced by its backup while a committer works on it.
#[derive(Clone, Default)]
struct Restorable(Arc<Mutex<MemoryStore>>);

impl Restorable {
    fn now(&self) -> MemoryStore {
        self.0.lock().expect("not poisoned").clone()
    }
}

#[async_trait::async_trait]
impl Lane for Restorable {
    async fn append(&mut self, batches: &[LogBatch]) -> Result<Vec<BatchOutcome>, StoreError> {
        self.now().append(batches).await
    }

    async fn heads(&mut self, logs: &[LogId]) -> Result<Vec<(LogId, Belief)>, StoreError> {
        self.now().heads(logs).await
    }

    async fn load(&mut self, streams: &[(LogId, StreamId)], fold_version: u32) -> Result<Vec<StoredStream>, StoreError> {
        self.now().load(streams, fold_version).await
    }
}

#[tokio::test]
async fn a_log_that_went_back_is_given_up_before_anything_is_answered() {
    let store = Restorable::default();
    let (queue, work) = mpsc::channel::<Work<Counter>>(8);
    let belief = store.now().take(log(1), 1);
    let taken = Taken { log: log(1), belief, written: Epoch(0) };
    queue.send(Work::Own { taken, outlet: Box::new(Nowhere) }).await.expect("room");
    let (told, mut lost) = mpsc::channel(8);
    let tell = Box::new(move |lost| told.try_send(lost).expect("room"));
    let watchers = Arc::<Watchers>::default();
    let committing = tokio::spawn(Committer::new("w0", store.clone(), LIMITS, watchers, Box::new(|_, _, _, _| {}), tell).run(work));
    let door = Queue::new("test", Duration::from_secs(60), 1);
    let send =
        async |command: Job<Counter>| queue.send(Work::Command(Box::new(command), door.enter().expect("short"))).await.expect("room");
    let count = async || {
        let (answer, answered) = oneshot::channel();
        send(Count::up(1, "a").job(answer)).await;
        answered.await.expect("an answer")
    };
    assert!(count().await.is_ok());
    let backup = store.now().back_up();
    assert!(count().await.is_ok());
    *store.0.lock().expect("not poisoned") = backup;

    // Satisfied already, if the lost part counted: no event would meet the fence.
    let (answer, answered) = oneshot::channel();
    send(Job { decide: Box::new(|_| Ok(vec![])), ..Count::up(1, "a").job(answer) }).await;
    let answered = answered.await.expect("an answer");
    assert!(matches!(&answered, Err(CommandError::NotOwner(_))), "{answered:?}");
    let known = LostOwnership { log: log(1), epoch: belief.epoch, went_back_from: Some(Position(2)) };
    assert_eq!(lost.recv().await, Some(known));
    let again = count().await;
    assert!(matches!(&again, Err(CommandError::NotOwner(_))), "not written under an epoch that the lost part used: {again:?}");
    drop(queue);
    committing.await.expect("ended");
}
