//! The read store behind a queue per database, so that one that is slow or gone holds up no other.

use std::sync::Arc;

use async_trait::async_trait;
use souk_event_sourcing::LogId;
use souk_read_store::{Demand, ReadStore, RowRead};
use souk_runtime::{Place, Queue, Settings, TooLong};

use crate::cache::{ReadError, RowSource, View};

pub(crate) struct Doors {
    store: Arc<ReadStore>,
    /// As the store's databases. Whoever is inside waits for a connection or has one.
    queues: Vec<(String, Arc<Queue>)>,
}

impl Doors {
    pub fn new(store: Arc<ReadStore>, settings: &Settings) -> Self {
        let queue = |name: &str| {
            let configured = settings.read.databases.iter().find(|database| database.name == name);
            let connections = configured.map_or(1, |database| database.max_connections as usize * (1 + database.replicas.len()));
            (name.to_owned(), Queue::new(&format!("read/{name}"), settings.query.queue_wait, connections))
        };
        let queues = store.databases().iter().map(|database| queue(database.name())).collect();
        Self { store, queues }
    }

    /// A place at each database that holds one of the logs.
    pub fn enter(&self, logs: impl IntoIterator<Item = LogId>) -> Result<Vec<Place>, ReadError> {
        let mut wanted = vec![false; self.queues.len()];
        for log in logs {
            let database = self.store.database_of(log)?.name();
            if let Some(index) = self.queues.iter().position(|(name, _)| name == database) {
                wanted[index] = true;
            }
        }
        let asked = self.queues.iter().zip(wanted).filter(|(_, wanted)| *wanted);
        Ok(asked.map(|((_, queue), _)| queue.enter()).collect::<Result<_, TooLong>>()?)
    }
}

#[async_trait]
impl RowSource for Doors {
    async fn read_row(&self, view: View, log: LogId, key: &str, demand: &Demand) -> Result<RowRead, ReadError> {
        let _places = self.enter([log])?;
        Ok(self.store.read_row(view.table(), log, key, demand).await?)
    }

    async fn read_rows(&self, view: View, keys: &[(LogId, &str)], demand: &Demand) -> Result<Vec<RowRead>, ReadError> {
        let _places = self.enter(keys.iter().map(|(log, _)| *log))?;
        Ok(self.store.read_rows(view.table(), keys, demand).await?)
    }
}
