use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::LogId;

/// The replica that a log falls to: the one with the highest weight for it (Thaler and Ravishankar, "A name-based mapping
/// scheme for rendezvous", 1996). Everybody who knows the same replicas names the same one, and when a replica comes or
/// goes only its own share moves. `None` without replicas.
pub fn rendezvous<'a>(log: LogId, replicas: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let seed = u64::from(log.region.0) << 16 | u64::from(log.partition.0);
    // Ties cannot be told apart by weight; the name decides then, so that the order of the replicas does not.
    replicas.into_iter().max_by_key(|replica| (xxh3_64_with_seed(replica.as_bytes(), seed), *replica))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Partition, Region};

    fn logs() -> impl Iterator<Item = LogId> {
        (0..64).map(|partition| LogId { region: Region(1), partition: Partition(partition) })
    }

    #[test]
    fn only_the_share_of_who_comes_or_goes_moves() {
        let before = ["command-1", "command-2", "command-3"];
        let after = ["command-4", "command-3", "command-1", "command-2"];
        for log in logs() {
            let (old, new) = (rendezvous(log, before), rendezvous(log, after));
            assert!(new == old || new == Some("command-4"), "{log}: {old:?} to {new:?}");
        }
    }

    #[test]
    fn every_replica_has_a_fair_share() {
        let replicas = ["command-1", "command-2", "command-3"];
        for replica in replicas {
            let share = logs().filter(|log| rendezvous(*log, replicas) == Some(replica)).count();
            assert!((10..=32).contains(&share), "{replica} has {share} of 64");
        }
        assert_eq!(rendezvous(logs().next().unwrap(), []), None);
    }
}
