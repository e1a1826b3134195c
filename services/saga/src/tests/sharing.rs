use souk_devstack::FaultProxy;
use souk_event_sourcing::{LogId, rendezvous};

use super::*;
use crate::{
    changes::{Advance, Changes, Tail},
    step::{Origin, Step, StepKind, Subject},
    store::Taken,
    testing::{order_id, origin, placed},
};

/// Those of all partitions that fall to `of`; everybody has some.
fn share(replicas: &[&str], of: &str) -> BTreeSet<u16> {
    let falls = |partition: &Partition| rendezvous(log(*partition), replicas.iter().copied()) == Some(of);
    let share: BTreeSet<_> = partitions().into_iter().filter(falls).map(|partition| partition.0).collect();
    assert!(!share.is_empty());
    share
}

async fn shared(processes: &[(&str, &Process)]) {
    let names: Vec<_> = processes.iter().map(|(name, _)| *name).collect();
    let what = format!("the logs are shared by {names:?}");
    until(&what, async || processes.iter().all(|(name, process)| process.holds() == share(&names, name))).await;
}

impl World {
    /// Orders of many customers, whose logs are all of them, are placed and reserved.
    async fn orders_proceed(&self, product: &ProductId) {
        let mut logs = BTreeSet::new();
        let mut orders = Vec::new();
        for customer in 0.. {
            let order = self.place(&format!("c-{customer}"), &[(product, 1)], DAY_MS).await;
            logs.insert(souk_event_sourcing::partition_of(order.key().hash(), PARTITIONS));
            orders.push(order);
            if logs.len() == usize::from(PARTITIONS) {
                break;
            }
        }
        for order in orders {
            self.becomes(order, OrderStatus::AwaitingPayment).await;
        }
        self.settled().await;
    }

    fn store(&self) -> SagaStore {
        SagaStore::connect(&self.url, REGION).unwrap()
    }

    /// Nothing was sent under a second request id, however often it was sent.
    fn nothing_was_done_twice(&self) {
        for (about, ids) in self.shop.ids.lock().unwrap().iter() {
            assert_eq!(ids.len(), 1, "{about}");
        }
    }
}

pub(super) async fn replicas_share_logs_and_who_leaves_gives_them_up_at_once(mut world: World) {
    // Longer than anybody waits: nothing here comes from a heartbeat that is old.
    world.lease_ttl = Duration::from_secs(600);
    let lamp = world.product("lamp", 1000).await;
    let one = world.start_as("one", &world.url);
    shared(&[("one", &one)]).await;
    world.orders_proceed(&lamp).await;
    let two = world.start_as("two", &world.url);
    shared(&[("one", &one), ("two", &two)]).await;
    world.orders_proceed(&lamp).await;
    let three = world.start_as("three", &world.url);
    shared(&[("one", &one), ("two", &two), ("three", &three)]).await;
    world.orders_proceed(&lamp).await;
    two.drain().await;
    shared(&[("one", &one), ("three", &three)]).await;
    world.orders_proceed(&lamp).await;
    one.drain().await;
    three.drain().await;
    let members = world.store().members(world.lease_ttl).await.unwrap();
    assert!(members.live.is_empty() && members.owners.values().all(|owner| owner.id.is_empty()), "{members:?}");
    world.nothing_was_done_twice();
}

pub(super) async fn who_dies_is_replaced_when_its_heartbeat_is_old(world: World) {
    let lamp = world.product("lamp", 1000).await;
    let (one, two) = (world.start_as("one", &world.url), world.start_as("two", &world.url));
    shared(&[("one", &one), ("two", &two)]).await;
    two.kill();
    world.orders_proceed(&lamp).await;
    shared(&[("one", &one)]).await;
    // Under its own name it takes its work up at once.
    let before = world.store().members(world.lease_ttl).await.unwrap().owners;
    one.kill();
    let one = world.start_as("one", &world.url);
    shared(&[("one", &one)]).await;
    let after = world.store().members(world.lease_ttl).await.unwrap().owners;
    assert!(after.iter().all(|(log, owner)| owner.epoch > before[log].epoch), "{before:?} {after:?}");
    one.drain().await;
    world.nothing_was_done_twice();
}

/// As a paused process that wakes, or a network that heals: what it still had to write comes after it was replaced.
pub(super) async fn who_was_cut_off_is_fenced_and_takes_its_share_again(world: World) {
    let lamp = world.product("lamp", 1000).await;
    let server = world.url.split(['@', '/']).nth(3).unwrap();
    let proxy = FaultProxy::start(server).await.unwrap();
    let one = world.start_as("one", &world.url);
    let two = world.start_as("two", &world.url.replace(server, &proxy.address().to_string()));
    shared(&[("one", &one), ("two", &two)]).await;
    world.orders_proceed(&lamp).await;
    proxy.stall();
    world.orders_proceed(&lamp).await;
    assert_eq!(one.holds().len(), usize::from(PARTITIONS));
    assert_eq!(two.holds(), share(&["one", "two"], "two"), "it believes so still");
    proxy.heal().await.unwrap();
    shared(&[("one", &one), ("two", &two)]).await;
    world.orders_proceed(&lamp).await;
    one.drain().await;
    two.drain().await;
    world.nothing_was_done_twice();
}

/// After an outage of the database all heartbeats are old; who comes back first must not take everything.
pub(super) async fn nobody_is_dead_to_a_replica_that_was_away_itself(world: World) {
    let (store, lease_ttl) = (world.store(), world.lease_ttl);
    store.claim(&partitions(), "two", Duration::ZERO).await.unwrap();
    store.heartbeat("two").await.unwrap();
    until("the other one seems dead", async || store.members(lease_ttl).await.unwrap().live.is_empty()).await;
    let begun = Instant::now();
    let one = world.start_as("one", &world.url);
    shared(&[("one", &one)]).await;
    assert!(begun.elapsed() >= lease_ttl);
    one.drain().await;
}

pub(super) async fn a_crash_that_takes_a_release_back_leaves_no_log_behind(world: World) {
    let lamp = world.product("lamp", 1000).await;
    let (one, two) = (world.start_as("one", &world.url), world.start_as("two", &world.url));
    shared(&[("one", &one), ("two", &two)]).await;
    let mut connection = PgConnection::connect(&world.url).await.unwrap();
    sqlx::query("update saga_checkpoint set owner = 'one', epoch = epoch + 1").execute(&mut connection).await.unwrap();
    world.orders_proceed(&lamp).await;
    shared(&[("one", &one), ("two", &two)]).await;
    one.drain().await;
    two.drain().await;
    world.nothing_was_done_twice();
}

pub(super) async fn who_lives_keeps_its_logs_and_who_left_or_is_silent_loses_them(world: World) {
    let (store, long) = (world.store(), Duration::from_secs(60));
    let claimed = async |by: &str, patience| {
        let taken = store.claim(&partitions(), by, patience).await.unwrap();
        taken.iter().map(|taken| taken.log).collect::<Vec<LogId>>()
    };
    let all: Vec<_> = partitions().into_iter().map(log).collect();
    store.heartbeat("one").await.unwrap();
    store.heartbeat("two").await.unwrap();
    assert_eq!(store.members(long).await.unwrap().live, ["one", "two"]);
    assert_eq!(store.members(Duration::ZERO).await.unwrap().live, Vec::<String>::new());
    assert_eq!((claimed("one", long).await, claimed("two", long).await), (all.clone(), vec![]));
    assert_eq!(claimed("one", long).await, all, "its own");
    assert_eq!(world.count("select count(*) from saga_checkpoint where lease_until = 'infinity'").await, i64::from(PARTITIONS));
    store.release(&partitions()[..1], "two").await.unwrap();
    assert_eq!(claimed("two", long).await, vec![], "it was not the owner's to release");
    store.release(&partitions()[..1], "one").await.unwrap();
    assert_eq!(world.count("select count(*) from saga_checkpoint where lease_until = '-infinity'").await, 1);
    assert_eq!(claimed("two", long).await, all[..1]);
    store.leave("one").await.unwrap();
    assert_eq!(claimed("two", long).await, all);
    assert_eq!(claimed("one", Duration::ZERO).await, all, "who is silent loses them");
    let owners = store.members(long).await.unwrap().owners;
    assert!(owners.len() == all.len() && owners.values().all(|owner| owner.id == "one"), "{owners:?}");
}

/// Neither epoch nor position alone is the fence, and a log that is fenced takes no other along.
pub(super) async fn a_write_under_another_epoch_or_position_changes_nothing(world: World) {
    let store = world.store();
    let old = store.claim(&partitions(), "old", Duration::ZERO).await.unwrap();
    let new = store.claim(&partitions()[..1], "new", Duration::ZERO).await.unwrap();
    assert!(new[0].epoch > old[0].epoch);

    let step = |position, log| {
        let origin = Origin { log, ..origin(position) };
        Step { kind: StepKind::Commit, subject: Subject::Order(order_id(1)), origin, placed: Some(placed()) }
    };
    let write = async |changes: &[(Taken, Position, u64)]| {
        let mut batch = Changes::default();
        for (taken, from, position) in changes {
            batch.advances.insert(taken.log, Advance { epoch: taken.epoch, from: *from, to: Tail { position: *from, ..taken.tail } });
            batch.due.push(step(*position, taken.log));
        }
        store.apply(&batch).await.unwrap()
    };
    let start = Position(0);
    assert_eq!(write(&[(old[0], start, 1)]).await, []);
    assert_eq!(write(&[(new[0], Position(1), 2)]).await, []);
    assert_eq!(write(&[(old[0], start, 3), (old[1], start, 4)]).await, [old[1].log]);
    assert_eq!(write(&[(new[0], start, 5)]).await, [new[0].log]);
    assert_eq!(store.steps(&partitions()).await.unwrap(), [step(5, new[0].log), step(4, old[1].log)]);
}
