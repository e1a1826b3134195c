//! The ways between regions, which can be slow, stall and break.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::proxy::FaultProxy;

/// The way of one region to another: all that the services of `from` send to those of `to` passes here, with the answers. What
/// `to` sends by itself to `from` passes through the link the other way.
#[derive(Debug)]
pub struct Link {
    from: String,
    to: String,
    /// One for each replica of the command service there.
    proxies: Vec<FaultProxy>,
    /// Held while it changes.
    state: Mutex<LinkState>,
}

/// How a link is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkState {
    /// Whose services call.
    pub from: String,
    /// Whose services are called.
    pub to: String,
    /// What each direction is delayed by, so that an answer takes twice as long.
    pub latency_ms: u64,
    /// Connections are reset and refused.
    pub down: bool,
    /// Connections stay open and nothing passes.
    pub stalled: bool,
}

impl Link {
    /// Lays the way to these ports of 127.0.0.1.
    pub(crate) async fn lay(from: &str, to: &str, ports: impl IntoIterator<Item = u16>) -> Result<Self> {
        let mut proxies = Vec::new();
        for port in ports {
            proxies.push(FaultProxy::start(format!("127.0.0.1:{port}")).await?);
        }
        let state = LinkState { from: from.to_owned(), to: to.to_owned(), ..LinkState::default() };
        Ok(Self { from: from.to_owned(), to: to.to_owned(), proxies, state: Mutex::new(state) })
    }

    /// Whose services call.
    pub fn from(&self) -> &str {
        &self.from
    }

    /// Whose services are called.
    pub fn to(&self) -> &str {
        &self.to
    }

    /// `http://…` of the other region's command service by this way, separated by commas.
    pub fn urls(&self) -> String {
        self.proxies.iter().map(|proxy| format!("http://{}", proxy.address())).collect::<Vec<_>>().join(",")
    }

    /// How it is.
    pub async fn state(&self) -> LinkState {
        self.state.lock().await.clone()
    }

    /// Resets all connections and refuses new ones.
    pub async fn cut(&self) {
        let mut state = self.state.lock().await;
        for proxy in &self.proxies {
            proxy.cut().await;
        }
        state.down = true;
    }

    /// Lets nothing pass while connections stay open, as a route that was lost without a word does.
    pub async fn stall(&self) {
        let mut state = self.state.lock().await;
        self.proxies.iter().for_each(FaultProxy::stall);
        state.stalled = true;
    }

    /// Delays what passes by this time in each direction, from now on.
    pub async fn set_latency(&self, latency: Duration) {
        let mut state = self.state.lock().await;
        self.proxies.iter().for_each(|proxy| proxy.set_latency(latency));
        state.latency_ms = latency.as_millis() as u64;
    }

    /// Ends all faults, latency included.
    ///
    /// # Errors
    /// If a port was taken while the link was cut.
    pub async fn heal(&self) -> Result<()> {
        let mut state = self.state.lock().await;
        for proxy in &self.proxies {
            proxy.heal().await.with_context(|| format!("the link from {} to {}", self.from, self.to))?;
        }
        (state.latency_ms, state.down, state.stalled) = (0, false, false);
        Ok(())
    }
}

/// The links of all regions to each other. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Links(Arc<RwLock<ByEnds>>);

/// Links by from and to.
type ByEnds = BTreeMap<(String, String), Arc<Link>>;

impl Links {
    pub(crate) fn add(&self, link: Link) {
        let ends = (link.from.clone(), link.to.clone());
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(ends, Arc::new(link));
    }

    /// All of them, in the order of their names.
    pub fn all(&self) -> Vec<Arc<Link>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// The link that the services of `from` call those of `to` by.
    ///
    /// # Errors
    /// If there is no such region; with the names of those there are.
    pub fn get(&self, from: &str, to: &str) -> Result<Arc<Link>> {
        ensure!(from != to, "{from:?} has no link to itself");
        let links = self.0.read().unwrap_or_else(PoisonError::into_inner);
        for name in [from, to] {
            let mut names: Vec<_> = links.keys().map(|(from, _)| from.as_str()).collect();
            names.dedup();
            ensure!(names.contains(&name), "there is no region {name:?}; there is {}", names.join(", "));
        }
        links.get(&(from.to_owned(), to.to_owned())).cloned().with_context(|| format!("there is no link from {from:?} to {to:?}"))
    }

    /// The links between two regions, both ways.
    ///
    /// # Errors
    /// As [`Links::get`].
    pub fn between(&self, one: &str, other: &str) -> Result<[Arc<Link>; 2]> {
        Ok([self.get(one, other)?, self.get(other, one)?])
    }

    /// The links of one region to and from all others.
    pub fn of(&self, region: &str) -> Vec<Arc<Link>> {
        self.all().into_iter().filter(|link| link.from == region || link.to == region).collect()
    }

    /// Cuts a region off from all others.
    pub async fn cut_off(&self, region: &str) {
        for link in self.of(region) {
            link.cut().await;
        }
    }

    /// Ends the faults of all links.
    ///
    /// # Errors
    /// If a port was taken while its link was cut.
    pub async fn heal_all(&self) -> Result<()> {
        for link in self.all() {
            link.heal().await?;
        }
        Ok(())
    }

    /// How all of them are.
    pub async fn states(&self) -> Vec<LinkState> {
        let mut states = Vec::new();
        for link in self.all() {
            states.push(link.state().await);
        }
        states
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn links() -> (Links, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let links = Links::default();
        for (from, to) in [("eu", "us"), ("us", "eu")] {
            links.add(Link::lay(from, to, [port]).await.unwrap());
        }
        (links, listener)
    }

    async fn connects(link: &Link) -> bool {
        TcpStream::connect(link.urls().trim_start_matches("http://")).await.is_ok()
    }

    #[tokio::test]
    async fn one_way_is_cut_and_healed_without_the_other() {
        let (links, _listener) = links().await;
        let [there, back] = links.between("eu", "us").unwrap();
        there.set_latency(Duration::from_millis(80)).await;
        there.cut().await;
        assert!(!connects(&there).await && connects(&back).await);
        let state = there.state().await;
        assert_eq!((state.from.as_str(), state.to.as_str(), state.down, state.latency_ms), ("eu", "us", true, 80));
        assert_eq!(back.state().await, LinkState { from: "us".into(), to: "eu".into(), ..LinkState::default() });
        links.heal_all().await.unwrap();
        assert!(connects(&there).await);
        assert_eq!(there.state().await, LinkState { from: "eu".into(), to: "us".into(), ..LinkState::default() });
    }

    #[tokio::test]
    async fn a_region_that_is_not_there_is_named_with_those_that_are() {
        let (links, _listener) = links().await;
        for ends in [("eu", "ap"), ("ap", "eu")] {
            let refused = links.get(ends.0, ends.1).unwrap_err().to_string();
            assert_eq!(refused, "there is no region \"ap\"; there is eu, us");
        }
        assert!(links.get("eu", "eu").unwrap_err().to_string().contains("no link to itself"));
    }

    #[tokio::test]
    async fn a_region_that_is_cut_off_has_no_way_in_or_out() {
        let (links, _listener) = links().await;
        links.cut_off("us").await;
        assert!(links.states().await.iter().all(|state| state.down));
    }
}
