use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use souk_event_sourcing::{Epoch, LogId};
use souk_event_store::{Addresses, Survey};
use tokio::sync::{Notify, watch};

/// Where the owner of a log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    pub owner: String,
    pub addresses: Addresses,
    pub epoch: Epoch,
}

/// Who owns what, as last read from the databases: a hint, since the append alone decides (law 6). Cheap to clone.
#[derive(Clone, Default)]
pub struct Directory(Arc<Inner>);

#[derive(Default)]
struct Inner {
    homes: Mutex<HashMap<LogId, Home>>,
    /// Replicas that refused a connection since they were last heard of.
    suspects: Mutex<BTreeSet<String>>,
    /// Counts what was learnt.
    learnt: watch::Sender<u64>,
    /// Somebody needs the directory read again.
    asked: Notify,
}

impl Directory {
    /// Where the log is owned; `None` when nobody is known to.
    pub fn home(&self, log: LogId) -> Option<Home> {
        lock(&self.0.homes).get(&log).cloned()
    }

    /// Takes in what a database says of its logs. An owner that has no heartbeat left is none.
    pub fn learn(&self, logs: impl IntoIterator<Item = LogId>, survey: &Survey) {
        let replicas: HashMap<_, _> = survey.replicas.iter().map(|replica| (replica.id.as_str(), replica)).collect();
        let mut homes = lock(&self.0.homes);
        logs.into_iter().for_each(|log| drop(homes.remove(&log)));
        for lease in &survey.leases {
            if let Some(replica) = replicas.get(lease.owner.as_str()) {
                homes.insert(lease.log, Home { owner: lease.owner.clone(), addresses: replica.addresses.clone(), epoch: lease.epoch });
            }
        }
        drop(homes);
        self.0.learnt.send_modify(|count| *count += 1);
    }

    /// A replica refused a connection: if it misses its heartbeat as well, its logs are free.
    pub fn suspect(&self, replica: &str) {
        lock(&self.0.suspects).insert(replica.to_owned());
        self.ask();
    }

    /// The replicas suspected so far; they are to be suspected again from now on.
    pub fn take_suspects(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.0.suspects)).into_iter().collect()
    }

    /// Asks for the directory to be read again soon.
    pub fn ask(&self) {
        self.0.asked.notify_one();
    }

    /// Waits until somebody asks for the directory to be read again.
    pub async fn asked(&self) {
        self.0.asked.notified().await;
    }

    /// To wait for what is learnt next.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.learnt.subscribe()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
