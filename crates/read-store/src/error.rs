use souk_event_sourcing::{LogId, Region};

/// Why the read store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ReadStoreError {
    #[error("read database '{database}': {source}")]
    Database { database: String, source: sqlx::Error },
    #[error("read database '{database}': {source}")]
    Orm { database: String, source: sea_orm::DbErr },
    #[error("read database '{0}' has no tables yet, or not all: a projector creates them when it starts, or `souk migrate`")]
    NotInstalled(String),
    #[error("read database '{database}' belongs to another installation than '{first}'")]
    ForeignDatabase { database: String, first: String },
    #[error("the read databases were installed with {stored} partitions, the configuration says {configured}; the count never changes")]
    PartitionCount { stored: u16, configured: u16 },
    #[error("the read databases belong to region {stored}, the configuration says {configured}")]
    WrongRegion { stored: Region, configured: Region },
    #[error("logs are placed in a read database '{0}' that is not configured")]
    UnknownDatabase(String),
    #[error("log {0} has no place in the read databases")]
    NotPlaced(LogId),
    #[error("a read store needs databases with distinct, non-empty names and at least one partition")]
    BadConfiguration,
    #[error("unreadable row in '{table}': {reason}")]
    Corrupt { table: String, reason: String },
}

impl ReadStoreError {
    pub(crate) fn database(name: &str) -> impl FnOnce(sqlx::Error) -> Self {
        move |source| Self::Database { database: name.to_owned(), source }
    }

    pub(crate) fn orm(name: &str) -> impl FnOnce(sea_orm::DbErr) -> Self {
        move |source| Self::Orm { database: name.to_owned(), source }
    }

    /// Whether the database refused the values it was given, as it will again: SQLSTATE 22 (data), 23 (constraint) and 54
    /// (limit).
    pub fn refuses_data(&self) -> bool {
        let Self::Database { source: sqlx::Error::Database(error), .. } = self else { return false };
        let code = error.code().unwrap_or_default();
        ["22", "23", "54"].iter().any(|class| code.starts_with(class))
    }

    /// Whether the same call may succeed later without anybody changing data or configuration.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Database { source, .. } => passing(source),
            Self::Orm { source: sea_orm::DbErr::Conn(_) | sea_orm::DbErr::ConnectionAcquire(_), .. } => true,
            Self::Orm { source: sea_orm::DbErr::Exec(error) | sea_orm::DbErr::Query(error), .. } => {
                matches!(error, sea_orm::RuntimeErr::SqlxError(source) if passing(source))
            }
            Self::Orm { .. } => false,
            // A place is given before the checkpoint, and a standby learns of both later.
            Self::NotInstalled(_) | Self::NotPlaced(_) => true,
            Self::ForeignDatabase { .. }
            | Self::PartitionCount { .. }
            | Self::WrongRegion { .. }
            | Self::UnknownDatabase(_)
            | Self::BadConfiguration
            | Self::Corrupt { .. } => false,
        }
    }
}

/// Connection trouble, a server that starts or stops, a deadlock or a lock timeout. Data and syntax errors stay.
fn passing(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Database(error) => {
            let code = error.code().unwrap_or_default();
            ["08", "40", "53", "55", "57", "58"].iter().any(|class| code.starts_with(class))
        }
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => {
            true
        }
        _ => false,
    }
}
