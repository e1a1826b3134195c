use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

/// Whether a process is ready to serve, and if not, why: the sum of its components. Cloned handles share it.
///
/// What several processes share, such as a database, is no reason for any of them not to be ready once it was: all would be taken
/// out of service at once, and callers would get no answer instead of a definite one. Such a process is impaired.
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
    components: Mutex<BTreeMap<String, Standing>>,
    changed: watch::Sender<u64>,
}

/// How a component is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Standing {
    Ready,
    /// It serves, and not all of it.
    Impaired(String),
    NotReady(String),
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
        self.shared.set(&format!("{}{DRAIN}", self.scope), Standing::NotReady("draining".to_owned()));
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
        self.standing(|standing| if let Standing::NotReady(reason) = standing { Some(reason) } else { None })
    }

    /// What is impaired, as "component: reason".
    pub fn impairments(&self) -> Vec<String> {
        self.standing(|standing| if let Standing::Impaired(reason) = standing { Some(reason) } else { None })
    }

    fn standing(&self, reason: impl Fn(&Standing) -> Option<&String>) -> Vec<String> {
        let components = self.shared.lock();
        let in_scope = components.iter().filter(|(name, _)| name.starts_with(&*self.scope) || *name == DRAIN);
        in_scope.filter_map(|(name, standing)| reason(standing).map(|reason| format!("{name}: {reason}"))).collect()
    }

    /// Wakes when anything changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }
}

impl Component {
    pub fn ready(&self) {
        if self.shared.set(&self.name, Standing::Ready) {
            tracing::info!(component = %self.name, "ready");
        }
    }

    pub fn not_ready(&self, reason: &str) {
        if self.shared.set(&self.name, Standing::NotReady(reason.to_owned())) && reason != "starting" {
            tracing::warn!(component = %self.name, reason, "not ready");
        }
    }

    /// Something that others share is away: still ready if this was ready before, else not.
    pub fn impaired(&self, reason: &str) {
        if matches!(self.shared.lock().get(&*self.name), None | Some(Standing::NotReady(_))) {
            return self.not_ready(reason);
        }
        if self.shared.set(&self.name, Standing::Impaired(reason.to_owned())) {
            tracing::warn!(component = %self.name, reason, "impaired");
        }
    }
}

impl Shared {
    /// Returns whether this changed anything.
    fn set(&self, name: &str, standing: Standing) -> bool {
        let mut components = self.lock();
        let changed = components.get(name) != Some(&standing);
        components.insert(name.to_owned(), standing);
        drop(components);
        if changed {
            self.changed.send_modify(|count| *count += 1);
        }
        changed
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Standing>> {
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
    fn what_others_share_takes_nobody_out_of_service_who_was_in_it() {
        let health = Health::new();
        let store = health.component("store");
        store.impaired("the database is away");
        assert_eq!((health.is_ready(), health.reasons()), (false, vec!["store: the database is away".to_owned()]));
        store.ready();
        store.impaired("the database is away");
        assert!(health.is_ready());
        assert_eq!((health.reasons(), health.impairments()), (vec![], vec!["store: the database is away".to_owned()]));
        store.not_ready("the schema is too old");
        store.impaired("the database is away");
        assert!(!health.is_ready());
        store.ready();
        assert!(health.is_ready() && health.impairments().is_empty());
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
