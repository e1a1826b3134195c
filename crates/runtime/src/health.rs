use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

/// Whether a process is ready to serve, and if not, why: the sum of its components. Cloned handles share it.
///
/// Several services may run in one process. Each works on its own scope ([`Health::scoped`]): readiness of the whole
/// process counts all components, gRPC health of one service only those of its scope.
#[derive(Debug, Clone)]
pub struct Health {
    shared: Arc<Shared>,
    /// Empty for the whole process, else "name/".
    scope: Arc<str>,
}

#[derive(Debug)]
struct Shared {
    /// Component to what it lacks; `None` is ready.
    components: Mutex<BTreeMap<String, Option<String>>>,
    changed: watch::Sender<u64>,
}

/// One part of a process that must be ready. Begins not ready, "starting".
#[derive(Debug, Clone)]
pub struct Component {
    shared: Arc<Shared>,
    name: Arc<str>,
}

/// Why a service waits that was not asked to migrate: these migrations are missing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the schema is too old, these migrations are missing: {}; `souk migrate` runs them", .0.join(", "))]
pub struct SchemaTooOld(pub Vec<String>);

const DRAIN: &str = "drain";

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    pub fn new() -> Self {
        let shared = Shared { components: Mutex::default(), changed: watch::Sender::new(0) };
        Self { shared: Arc::new(shared), scope: "".into() }
    }

    /// The part of this health that belongs to the service `name`.
    #[must_use]
    pub fn scoped(&self, name: &str) -> Self {
        Self { shared: self.shared.clone(), scope: format!("{}{name}/", self.scope).into() }
    }

    /// Adds a component, or takes up one of that name; it is not ready until it says so.
    pub fn component(&self, name: &str) -> Component {
        let component = Component { shared: self.shared.clone(), name: format!("{}{name}", self.scope).into() };
        component.not_ready("starting");
        component
    }

    /// Not serving any more, whatever the components say.
    pub fn drain(&self) {
        self.shared.set(&format!("{}{DRAIN}", self.scope), Some("draining"));
    }

    /// Whether this, or the whole process, was told to drain.
    pub fn is_draining(&self) -> bool {
        let own = format!("{}{DRAIN}", self.scope);
        let components = self.shared.lock();
        components.contains_key(&own) || components.contains_key(DRAIN)
    }

    pub fn is_ready(&self) -> bool {
        self.reasons().is_empty()
    }

    /// What is not ready, as "component: reason".
    pub fn reasons(&self) -> Vec<String> {
        let process_drains = DRAIN.to_owned();
        let components = self.shared.lock();
        let in_scope = components.iter().filter(|(name, _)| name.starts_with(&*self.scope) || **name == process_drains);
        in_scope.filter_map(|(name, lack)| lack.as_ref().map(|lack| format!("{name}: {lack}"))).collect()
    }

    /// Wakes when anything changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}

impl Component {
    pub fn ready(&self) {
        if self.shared.set(&self.name, None) {
            tracing::info!(component = %self.name, "ready");
        }
    }

    pub fn not_ready(&self, reason: &str) {
        if self.shared.set(&self.name, Some(reason)) && reason != "starting" {
            tracing::warn!(component = %self.name, reason, "not ready");
        }
    }
}

impl Shared {
    /// Returns whether this changed anything.
    fn set(&self, name: &str, lack: Option<&str>) -> bool {
        let mut components = self.lock();
        let before = components.insert(name.to_owned(), lack.map(str::to_owned));
        let changed = before.as_ref().map(Option::as_deref) != Some(lack);
        drop(components);
        if changed {
            self.changed.send_modify(|count| *count += 1);
        }
        changed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Option<String>>> {
        self.components.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_ready_when_all_its_components_are() {
        let health = Health::new();
        let (command, query) = (health.scoped("command"), health.scoped("query"));
        let (relay, cache) = (command.component("relay"), query.component("cache"));
        assert_eq!(health.reasons(), ["command/relay: starting", "query/cache: starting"]);
        let mut changes = health.changes();
        relay.ready();
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
        relay.ready();
        assert!(!changes.has_changed().unwrap());
        assert!(command.is_ready() && !query.is_ready() && !health.is_ready());
        cache.ready();
        assert!(health.is_ready());
        relay.not_ready("JetStream is away");
        assert_eq!(command.reasons(), ["command/relay: JetStream is away"]);
    }

    #[test]
    fn draining_a_process_drains_all_its_services_and_a_service_only_itself() {
        let health = Health::new();
        let (command, query) = (health.scoped("command"), health.scoped("query"));
        command.drain();
        assert!(!command.is_ready() && query.is_ready() && !health.is_ready());
        assert!(command.is_draining() && !query.is_draining() && !health.is_draining());
        health.drain();
        assert!(query.is_draining() && health.is_draining());
        assert_eq!(query.reasons(), ["drain: draining"]);
    }
}
