use std::sync::Arc;

use souk_bus::{BusError, JetStreamBus};
use souk_bus_publisher::{JetStreamPublisher, StreamLimits};
use souk_runtime::Settings;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{Relays, Tuning};

/// Events a lost stream is refilled with.
const REFILL_EVENTS: u64 = 10_000;

/// Relays of the logs of `store`, over a connection called `name`; streams carry the installation they belong to.
///
/// # Errors
/// When `nats.url` is malformed.
pub async fn connect<S>(
    settings: &Settings,
    name: &str,
    store: Arc<S>,
    installation: Uuid,
) -> Result<Arc<Relays<S, JetStreamPublisher, JetStreamBus>>, BusError> {
    let (nats, command) = (&settings.nats, &settings.command);
    let bus = JetStreamBus::connect(&nats.url, &nats.prefix, name).await?;
    let limits = StreamLimits { max_age: nats.stream_max_age, max_bytes: nats.stream_max_bytes, replicas: nats.stream_replicas };
    let publisher = JetStreamPublisher::new(bus.client().clone(), bus.subjects().clone(), limits, installation);
    let tuning = Tuning {
        ring_capacity: command.ring_capacity,
        check_every: command.relay_check_interval,
        announce_every: command.head_interval,
        refill: REFILL_EVENTS,
    };
    let window = Arc::new(Semaphore::new(command.relay_window));
    Ok(Arc::new(Relays { store, publisher: Arc::new(publisher), feed: Arc::new(bus), window, tuning }))
}
