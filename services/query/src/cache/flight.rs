use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, PoisonError},
};

use futures::{FutureExt, future::Shared};
use tokio::sync::oneshot;

use super::sync::{AtomicU64, Mutex, Ordering, spawn};

/// Loads under way, at most one per key. A load runs as a task of its own, so that it survives the caller that began it.
pub(crate) struct Flights<K, T>(Arc<Inner<K, T>>);

struct Inner<K, T> {
    under_way: Mutex<HashMap<K, Flight<T>>>,
    clock: AtomicU64,
}

/// A load under way.
pub(crate) struct Flight<T> {
    /// When it began, by the clock of [`Flights::now`].
    pub began: u64,
    landing: Shared<oneshot::Receiver<T>>,
}

/// What came of asking for a load.
pub(crate) enum Boarding<T, H> {
    /// One that began before or just now.
    Flight(Flight<T>),
    /// None is needed.
    Found(H),
}

/// The load's task ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the load was broken off")]
pub(crate) struct Crashed;

impl<K: Hash + Eq + Clone + Send + 'static, T: Clone + Send + Sync + 'static> Flights<K, T> {
    pub fn new() -> Self {
        Self(Arc::new(Inner { under_way: Mutex::default(), clock: AtomicU64::new(1) }))
    }

    /// A moment: loads that begin later have a later one.
    pub fn now(&self) -> u64 {
        self.0.clock.load(Ordering::SeqCst)
    }

    /// Joins the load of `key` or begins it. `find` is asked before one begins, when no other is under way: the last one
    /// may just have landed.
    pub fn board<H, F>(&self, key: &K, find: impl FnOnce() -> Option<H>, load: impl FnOnce() -> F) -> Boarding<T, H>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut under_way = self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = under_way.get(key) {
            return Boarding::Flight(flight.clone());
        }
        if let Some(found) = find() {
            return Boarding::Found(found);
        }
        let (land, landing) = oneshot::channel();
        let began = self.0.clock.fetch_add(1, Ordering::SeqCst) + 1;
        let flight = Flight { began, landing: landing.shared() };
        under_way.insert(key.clone(), flight.clone());
        let (place, load) = (UnderWay { inner: self.0.clone(), key: key.clone() }, load());
        spawn(async move {
            let result = load.await;
            // Whoever comes now begins anew.
            drop(place);
            let _ = land.send(result);
        });
        Boarding::Flight(flight)
    }
}

impl<T: Clone> Flight<T> {
    /// The result of the load.
    pub async fn land(self) -> Result<T, Crashed> {
        self.landing.await.map_err(|_| Crashed)
    }
}

impl<T> Clone for Flight<T> {
    fn clone(&self) -> Self {
        Self { began: self.began, landing: self.landing.clone() }
    }
}

/// Takes the flight off the list, also when its task panics or is cancelled.
struct UnderWay<K: Hash + Eq, T> {
    inner: Arc<Inner<K, T>>,
    key: K,
}

impl<K: Hash + Eq, T> Drop for UnderWay<K, T> {
    fn drop(&mut self) {
        self.inner.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
    }
}
