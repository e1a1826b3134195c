use std::sync::Arc;

use souk_event_sourcing::Topology;
use souk_event_store::{PostgresStore, StoreError};
use tokio::sync::watch;

/// The topology in force, as this process last read it. Cheap to clone.
#[derive(Clone)]
pub struct InForce(Arc<watch::Sender<Arc<Topology>>>);

impl InForce {
    pub fn new(topology: Topology) -> Self {
        Self(Arc::new(watch::Sender::new(Arc::new(topology))))
    }

    pub fn get(&self) -> Arc<Topology> {
        self.0.borrow().clone()
    }

    /// Takes in what is stored; an older document comes from a look that was overtaken.
    pub fn learn(&self, topology: Topology) {
        self.0.send_if_modified(|known| {
            let newer = topology.version() > known.version();
            if newer {
                tracing::info!(version = topology.version(), regions = topology.sites().len(), "the topology changed");
                *known = Arc::new(topology);
            }
            newer
        });
    }

    /// Reads what is stored.
    ///
    /// # Errors
    /// When the first write database does not answer.
    pub async fn refresh(&self, store: &PostgresStore) -> Result<(), StoreError> {
        if let Some(topology) = store.topology().await? {
            self.learn(topology);
        }
        Ok(())
    }
}
