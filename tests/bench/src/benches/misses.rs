use std::sync::Arc;

use anyhow::Result;
use souk_devstack::Service;
use souk_load::Rpc;

use super::Bench;
use crate::{
    loader::{Press, all_ok},
    pairs::median_of,
    record::{Entry, Goal, progress},
    sources::{GET_PRODUCT, Gets, Keys},
};

impl Bench {
    /// A thousand callers ask at once for a row that is not cached.
    pub(super) async fn misses(&mut self) -> Result<()> {
        const CALLERS: usize = 1000;
        if !self.wants("B14") {
            return Ok(());
        }
        progress("B14: a thousand callers miss one key");
        self.stage.caught_up().await?;
        // So that what it has looked up is counted before.
        self.stage.system.stop(Service::Projector).await?;
        self.stage.lookups("souk-projector").await?;
        self.stage.system.start_again(Service::Projector).await?;
        let (mut loads, mut lookups) = (Vec::new(), Vec::new());
        for turn in 0..self.effort.pairs as u64 {
            // A cache that has just begun has nothing in it, and trusts no row of a log that it has not heard of.
            self.stage.system.stop(Service::Query).await?;
            let looked_up = self.stage.lookups("souk-read").await?;
            self.stage.system.start_again(Service::Query).await?;
            self.stage.feed_heard().await?;
            let loaded = self.stage.metric(Service::Query, "souk_cache_loads_total").await?;
            let (key, products) = (Keys::only(turn % self.stage.products + 1), self.stage.products);
            let source = move |rpcs: Vec<Arc<Rpc>>| Gets::new(rpcs[0].clone(), key, products);
            all_ok(self.stage.queries().run(&[(0, GET_PRODUCT)], source, Press::Calls(CALLERS, CALLERS as u64)).await?)?;
            loads.push(self.stage.metric(Service::Query, "souk_cache_loads_total").await? - loaded);
            self.stage.system.stop(Service::Query).await?;
            lookups.push((self.stage.lookups("souk-read").await? - looked_up) as f64);
        }
        self.stage.system.start_again(Service::Query).await?;
        self.stage.feed_heard().await?;
        let entry = Entry::new("B14", loads, Goal::Exactly(1.0), "queries of the database for 1,000 concurrent misses of one row")
            .figure("lookups_counted_by_the_database", median_of(lookups));
        self.record(entry);
        Ok(())
    }
}
