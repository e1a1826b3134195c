//! Opening the read store and watching over it: ready when the databases answer and have the tables this build reads.

use std::{sync::Arc, time::Duration};

use souk_read_store::{Access, DatabaseConfig, Installation, ReadStore};
use souk_runtime::{Component, SchemaTooOld, Settings};
use souk_views::read::missing_migrations;

const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// Between two looks at the databases.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const LOOK_LIMIT: Duration = Duration::from_secs(5);

/// Opens the read store, as soon as it is there and has all tables. Says meanwhile what is missing; it is for whoever serves from
/// the store to say that it does.
pub(crate) async fn open(settings: &Settings, component: &Component) -> ReadStore {
    let configs: Vec<_> = settings
        .read
        .databases
        .iter()
        .map(|database| DatabaseConfig {
            name: database.name.clone(),
            url: database.url.to_string(),
            replicas: database.replicas.iter().map(|url| url.to_string()).collect(),
            max_connections: database.max_connections,
        })
        .collect();
    let installation = Installation { region: settings.installation.region(), partitions: settings.installation.partitions };
    let mut pause = RETRY.0;
    loop {
        match ReadStore::open(&configs, Access::Read, installation).await {
            Ok(store) => match lacks(&store).await {
                None => return store,
                Some(lack) => {
                    component.not_ready(&lack);
                    store.close().await;
                }
            },
            Err(error) => component.not_ready(&error.to_string()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(RETRY.1);
    }
}

/// Keeps readiness up to date, until it is dropped.
pub(crate) async fn watch(store: Arc<ReadStore>, component: Component) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        match tokio::time::timeout(LOOK_LIMIT, missing_migrations(&store)).await {
            Ok(Ok(missing)) if missing.is_empty() => component.ready(),
            Ok(Ok(missing)) => component.not_ready(&SchemaTooOld(missing).to_string()),
            // What is cached is answered.
            Ok(Err(error)) => component.impaired(&error.to_string()),
            Err(_) => component.impaired("the read databases do not answer"),
        }
    }
}

/// What keeps this build from reading the store.
async fn lacks(store: &ReadStore) -> Option<String> {
    match missing_migrations(store).await {
        Ok(missing) if missing.is_empty() => None,
        Ok(missing) => Some(SchemaTooOld(missing).to_string()),
        Err(error) => Some(error.to_string()),
    }
}
