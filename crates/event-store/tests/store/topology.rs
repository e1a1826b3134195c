//! The document of all regions: stored one version after the other, whoever writes at the same time.

use souk_event_sourcing::{Region, Site, Topology};
use tokio::task::JoinSet;

use crate::world::{World, connect};

fn topology(version: u64, endpoint: &str) -> Topology {
    let site = Site { number: Region(1), name: "eu".into(), command_internal: format!("http://{endpoint}") };
    Topology::new(version, vec![site], vec![Region(1); 8]).expect("a document")
}

#[tokio::test]
async fn one_of_several_writers_of_a_version_stores_it() {
    let world = World::new().await;
    assert_eq!(world.store.topology().await.expect("read"), None);
    // The first is that of the regions that are joined.
    for version in 5..=7 {
        let mut writers = JoinSet::new();
        for writer in 0..4 {
            let store = connect(&world.url).await;
            writers.spawn(async move {
                let offered = topology(version, &format!("writer-{writer}:1"));
                store.apply_topology(&offered).await.expect("apply").then_some(offered)
            });
        }
        let stored: Vec<_> = writers.join_all().await.into_iter().flatten().collect();
        assert_eq!(stored.len(), 1, "version {version}: {stored:?}");
        assert_eq!(world.store.topology().await.expect("read").as_ref(), stored.first());
        for other in [version - 1, version + 2] {
            assert!(!world.store.apply_topology(&topology(other, "late:1")).await.expect("apply"), "{other} does not follow {version}");
        }
    }
}
