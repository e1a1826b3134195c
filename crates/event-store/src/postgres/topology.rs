use souk_event_sourcing::Topology;

use super::PostgresStore;
use crate::StoreError;

impl PostgresStore {
    /// The topology in force; `None` when this region was never told of one.
    ///
    /// # Errors
    /// When the first database does not answer, or what it holds is no topology.
    pub async fn topology(&self) -> Result<Option<Topology>, StoreError> {
        let stored: Option<String> = sqlx::query_scalar("select document from topology").fetch_optional(self.first()).await?;
        let corrupt = |error: serde_json::Error| StoreError::Corrupt(format!("topology: {error}"));
        stored.map(|document| serde_json::from_str(&document).map_err(corrupt)).transpose()
    }

    /// Stores the document that follows the one in force, or the first, whose version is that of the regions that are joined;
    /// `false` when another is in force by now.
    ///
    /// # Errors
    /// When the first database does not answer.
    pub async fn apply_topology(&self, topology: &Topology) -> Result<bool, StoreError> {
        let document = serde_json::to_string(topology).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        let (version, before) = (topology.version() as i64, topology.version() as i64 - 1);
        let written = sqlx::query(
            "insert into topology as t (version, document) values ($1, $2) \
             on conflict (one) do update set version = excluded.version, document = excluded.document where t.version = $3",
        )
        .bind(version)
        .bind(document)
        .bind(before)
        .execute(self.first())
        .await?;
        Ok(written.rows_affected() == 1)
    }
}
