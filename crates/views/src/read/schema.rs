use souk_read_store::{Demand, ReadStore, ReadStoreError, Server};

use crate::ViewsMigrator;

/// Migrations this build reads the result of and a database does not have yet, by name. Also a sign of life: every database
/// is asked, a replica of it if the primary is away, as for queries.
pub async fn missing_migrations(store: &ReadStore) -> Result<Vec<String>, ReadStoreError> {
    let anybody = Demand { fresh: None, least: Some([].into()) };
    let mut missing = Vec::new();
    for database in store.databases() {
        let pending = |server: Server| async move {
            let pending = souk_read_store::missing_migrations::<ViewsMigrator>(server.orm()).await;
            let pending = pending.map_err(|source| ReadStoreError::Orm { database: database.name().to_owned(), source })?;
            Ok((pending, Vec::new()))
        };
        let (pending, _) = database.read(&anybody, pending).await?;
        missing.extend(pending.iter().map(|name| format!("{name} in {}", database.name())));
    }
    Ok(missing)
}
