use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use souk_event_sourcing::{Partition, partition_of};
use tonic::{metadata::MetadataMap, transport::Channel};

use crate::endpoints::endpoint;

/// Which replica of the command service owns which partition, as replies tell: the next command on it goes straight there.
/// A hint; any replica carries any command out.
#[derive(Debug, Default)]
pub(crate) struct Owners(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Number of partitions; 0 until a reply told it.
    count: u16,
    owners: HashMap<Partition, String>,
    channels: HashMap<String, Channel>,
}

/// More owners than any installation has replicas: what was learnt is old then.
const MAX_CHANNELS: usize = 256;

impl Owners {
    /// A channel to the owner of the entity with this routing hash, and its name, if known.
    pub fn of(&self, routing_hash: u32) -> Option<(String, Channel)> {
        let known = self.lock();
        let count = (known.count > 0).then_some(known.count)?;
        let owner = known.owners.get(&partition_of(routing_hash, count))?;
        Some((owner.clone(), known.channels.get(owner)?.clone()))
    }

    /// Takes in what a reply says of its owner.
    pub fn learn(&self, metadata: &MetadataMap) {
        let text = |key| metadata.get(key).and_then(|value| value.to_str().ok());
        let (Some(owner), Some((partition, count))) = (text("souk-owner"), text("souk-partition").and_then(|text| text.split_once('/')))
        else {
            return;
        };
        let (Ok(partition), Ok(count)) = (partition.parse(), count.parse()) else { return };
        let mut known = self.lock();
        if known.owners.get(&Partition(partition)).is_some_and(|known| known == owner) {
            return;
        }
        if !known.channels.contains_key(owner) {
            let Ok(endpoint) = endpoint(&format!("http://{owner}")) else { return };
            if known.channels.len() >= MAX_CHANNELS {
                *known = Known::default();
            }
            known.channels.insert(owner.to_owned(), endpoint.connect_lazy());
        }
        known.count = count;
        known.owners.insert(Partition(partition), owner.to_owned());
    }

    /// An owner was not reached: callers go through the common door again until a reply tells of a new one.
    pub fn forget(&self, owner: &str) {
        let mut known = self.lock();
        known.owners.retain(|_, known| known != owner);
        known.channels.remove(owner);
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use souk_event_sourcing::routing_hash;

    use super::*;

    fn reply(owner: &'static str, partition: &'static str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("souk-owner", owner.parse().unwrap());
        metadata.insert("souk-partition", partition.parse().unwrap());
        metadata
    }

    #[tokio::test]
    async fn the_owner_named_last_is_known_until_it_is_not_reached() {
        let owners = Owners::default();
        let hash = routing_hash("c-1");
        let partition = partition_of(hash, 64);
        assert!(owners.of(hash).is_none());
        let told: &'static str = format!("{partition}/64").leak();
        owners.learn(&reply("10.0.0.1:50051", told));
        owners.learn(&reply("10.0.0.2:50051", told));
        assert_eq!(owners.of(hash).unwrap().0, "10.0.0.2:50051");
        owners.forget("10.0.0.2:50051");
        assert!(owners.of(hash).is_none());
    }

    #[tokio::test]
    async fn what_is_no_hint_is_ignored() {
        let owners = Owners::default();
        for (owner, partition) in [("", "1/64"), ("10.0.0.1:50051", "1"), ("10.0.0.1:50051", "x/64"), ("not an address", "1/64")] {
            owners.learn(&reply(owner, partition));
        }
        owners.learn(&MetadataMap::new());
        assert!((0..64).all(|hash| owners.of(hash).is_none()));
    }
}
