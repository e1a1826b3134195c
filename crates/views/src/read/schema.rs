use sea_orm_migration::MigratorTrait;
use souk_read_store::{ReadStore, ReadStoreError};

use crate::ViewsMigrator;

/// Migrations this build reads the result of and a database does not have yet, by name. Also a sign of life: every database
/// is asked.
pub async fn missing_migrations(store: &ReadStore) -> Result<Vec<String>, ReadStoreError> {
    let mut missing = Vec::new();
    for database in store.databases() {
        let pending = ViewsMigrator::get_pending_migrations_read_only(database.orm())
            .await
            .map_err(|source| ReadStoreError::Orm { database: database.name().to_owned(), source })?;
        missing.extend(pending.iter().map(|migration| format!("{} in {}", migration.name(), database.name())));
    }
    Ok(missing)
}
