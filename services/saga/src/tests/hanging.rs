use async_trait::async_trait;
use souk_bus::{BusError, EventSource, Events, MemoryBus};
use souk_event_sourcing::LogId;

use super::*;

/// A bus whose next consumers never come, as many as `hangs` says.
pub(super) struct Bus {
    pub bus: MemoryBus,
    pub hangs: Arc<AtomicUsize>,
}

#[async_trait]
impl EventSource for Bus {
    async fn consume(&self, log: LogId, from: Position) -> Result<Events, BusError> {
        if self.hangs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            std::future::pending::<()>().await;
        }
        self.bus.consume(log, from).await
    }
}

pub(super) async fn a_reader_that_hangs_is_started_anew(mut world: World) {
    world.watchdog_after = Duration::from_secs(1);
    world.hangs.store(usize::from(PARTITIONS), Ordering::Relaxed);
    let lamp = world.product("lamp", 10).await;
    let process = world.start();
    let order = world.place("c-1", &[(&lamp, 2)], DAY_MS).await;
    until("the order is reserved", async || {
        world.announce(&process).await;
        world.shop.status(order).await == OrderStatus::AwaitingPayment
    })
    .await;
    // Readers of logs at their ends hang and have nothing to do.
    let lags = "select count(*) from partition_head where position > 0";
    let restarts = process.board.restarts();
    assert!((1..=world.count(lags).await as u64).contains(&restarts), "{restarts}");
    process.drain().await;
}

/// A write that the database never answers, as long as somebody else holds its row.
pub(super) async fn a_call_that_hangs_is_broken_off(mut world: World) {
    world.watchdog_after = Duration::from_millis(500);
    let lamp = world.product("lamp", 10).await;
    let process = world.start();
    until("it holds all", async || process.holds().len() == usize::from(PARTITIONS)).await;
    let mut connection = PgConnection::connect(&world.url).await.unwrap();
    let mut lock = connection.begin().await.unwrap();
    sqlx::query("select from saga_checkpoint for update").execute(&mut *lock).await.unwrap();
    let order = world.place("c-1", &[(&lamp, 2)], DAY_MS).await;
    until("the watchdog bites", async || process.board.restarts() >= 2).await;
    lock.rollback().await.unwrap();
    world.becomes(order, OrderStatus::AwaitingPayment).await;
    world.settled().await;
    process.drain().await;
}
